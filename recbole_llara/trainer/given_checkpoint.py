"""The key ``checkpoint``: is there a checkpoint that this model could load? Asked before the run makes anything."""

import json
from pathlib import Path

from recbole_llara.errors import UserError
from recbole_llara.trainer.checkpoint import FORMAT, META
from recbole_llara.trainer.stock_checkpoint import read_stock_model


def check_given_checkpoint(checkpoint: str, model: str, is_ours: bool) -> None:
    """Refuse what no run wrote, or a run of another model or format; the rest is compared when it is loaded.

    Args:
        checkpoint: the key's value.
        model: the run's.
        is_ours: whether that is one of our LLM recommenders, whose checkpoints are folders.

    Raises:
        UserError: it is not there, or cannot be one of this model's.
    """
    path = Path(checkpoint)
    expected = "the folder checkpoint/ of a finished run" if is_ours else "a file .safetensors of a finished run"
    if not (path.is_dir() if is_ours else path.is_file()):
        raise UserError(f"checkpoint: found {checkpoint!r}, which is not there; expected {expected}")
    if is_ours:
        _check_format(path, expected)
        return
    facts, _ = read_stock_model(path)
    if facts.get("model") != model:
        raise UserError(f"checkpoint: {path} holds a {facts.get('model')}, expected a {model}: change model or checkpoint")


def _check_format(folder: Path, expected: str) -> None:
    if not (folder / META).is_file():
        raise UserError(f"checkpoint: found no {META} in {folder}, expected {expected}")
    try:
        written = json.loads((folder / META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"checkpoint: found a {META} in {folder} that is no JSON ({error}), expected {expected}") from error
    belongs_to = written.get("belongs_to") if isinstance(written, dict) else None
    if not isinstance(belongs_to, dict) or not isinstance(written.get("sha256"), dict):
        raise UserError(f"checkpoint: found a {META} in {folder} that no run wrote, expected {expected}")
    if belongs_to.get("format") != FORMAT:
        raise UserError(
            f"checkpoint: found format {belongs_to.get('format')!r} in {folder / META}, expected {FORMAT}: evaluate it with the "
            "version that wrote it, or train again"
        )
