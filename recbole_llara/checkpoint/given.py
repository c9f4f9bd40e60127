"""The key ``checkpoint``: is there a checkpoint that this model could load? Asked before the run makes anything."""

from pathlib import Path

from recbole_llara.checkpoint.llm_weights import read_meta
from recbole_llara.checkpoint.stock_weights import read_stock_model
from recbole_llara.utils.errors import UserError


def check_given_checkpoint(checkpoint: str, model: str, is_llm_recommender: bool) -> None:
    """Refuse what no run wrote, or a run of another model or format; the rest is compared when it is loaded.

    Args:
        checkpoint: the key's value.
        model: the run's.
        is_llm_recommender: whether that is one of our LLM recommenders, whose checkpoints are folders.

    Raises:
        UserError: it is not there, or cannot be one of this model's.
    """
    path = Path(checkpoint)
    expected = "the folder checkpoint/ of a finished run" if is_llm_recommender else "a file .safetensors of a finished run"
    if not (path.is_dir() if is_llm_recommender else path.is_file()):
        raise UserError(f"checkpoint: found {checkpoint!r}, which is not there; expected {expected}")
    if is_llm_recommender:
        read_meta(path)
        return
    facts, _ = read_stock_model(path)
    if facts.get("model") != model:
        raise UserError(f"checkpoint: {path} holds a {facts.get('model')}, expected a {model}: change model or checkpoint")
