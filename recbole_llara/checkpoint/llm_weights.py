"""Checkpoints of LLM recommenders: what was trained, in formats that run no code, loaded strictly.

A folder holds ``meta.json`` (what it belongs to, and a SHA-256 of each file), ``numbering.safetensors`` (the ids of the items
by their numbers), ``item_tokens.safetensors`` (projector, placeholder and their like) and ``adapter/`` (PEFT's own format, for lora) or ``llm/`` (a Hugging Face folder, for full).
"""

import json
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recbole_llara.data import numbering
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.utils.atomic import write_folder
from recbole_llara.utils.digests import file_sha256
from recbole_llara.utils.errors import RunError, UserError

META, OWN_WEIGHTS, ADAPTER, LLM = "meta.json", "item_tokens.safetensors", "adapter", "llm"
FORMAT = 3


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


def belongs_to(model: Any) -> dict[str, Any]:
    """What a checkpoint fits: compared on loading."""
    llm = causal_lm(model.llm)
    text = llm.config.get_text_config()
    return {
        **model.data_facts,
        "llm_architecture": type(llm).__name__,
        "llm_shape": [text.num_hidden_layers, text.hidden_size, text.vocab_size],
        "llm_digest": model.llm_digest,
        "tokenizer_digest": model.tokenizer_digest,
        "llm_tuning": model.llm_tuning,
        "llm_quantization": model.llm_quantization,
        "representation": model.representation.name,
        "recommender_sha256": None if model.recommender is None else model.recommender.sha256,
        "item_tokens": {name: list(value.shape) for name, value in model.item_tokens.state_dict().items()},
    }


def save_llm_recommender(model: Any, path: Path, facts: Mapping[str, Any], fill: Callable[[Path], None] | None = None) -> None:
    """Write a checkpoint beside ``path`` and put it there in one step, so that a whole one is always on disk.

    Args:
        model: whose trained parts are written.
        path: folder of the checkpoint; an older one there is replaced.
        facts: epoch, score and the like, kept in ``meta.json``.
        fill: adds files of its own to the folder.

    Raises:
        RunError: it cannot be written there; what was there is untouched.
    """

    def write(folder: Path) -> None:
        own = {name: value.detach().cpu().contiguous() for name, value in model.item_tokens.state_dict().items()}
        save_file(own, folder / OWN_WEIGHTS)
        save_file(model.numbering.tensors(), folder / numbering.FILE)
        if model.llm_tuning == "lora":
            model.llm.save_pretrained(folder / ADAPTER)
        elif model.llm_tuning == "full":
            model.llm.save_pretrained(folder / LLM)
            model.tokenizer.save_pretrained(folder / LLM)
        if fill is not None:
            fill(folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sha256 = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
        trained = {"training_digest": model.trained_on, "prompts_digest": model.trained_prompts}
        told = {"belongs_to": belongs_to(model), **trained, "sha256": sha256}
        meta = {"format": FORMAT, **told, **facts}
        (folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")

    try:
        write_folder(path, write)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"checkpoint: {path} cannot be written ({error}); what was saved before is untouched. Is the disk full or read-only? "
            "The folder is that of checkpoint_dir"
        ) from error


def load_llm_recommender(model: Any, path: Path) -> dict[str, Any]:
    """Load a checkpoint into a model built by the same configuration; ``trained_on`` tells on which interactions it was trained,
    ``trained_prompts`` under which templates.

    Returns:
        the contents of ``meta.json``.

    Raises:
        UserError: no checkpoint there, of another version, a file was altered, or it belongs to something else.
    """
    meta = read_meta(path)
    here, there = belongs_to(model), meta["belongs_to"]
    differing = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
    if differing:
        lines = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differing)
        raise UserError(f"checkpoint {path} belongs to another run: {lines}")
    _check_files(path, meta)
    model.item_tokens.load_state_dict(load_file(path / OWN_WEIGHTS))
    if model.llm_tuning == "lora":
        load_adapter(model.llm, path / ADAPTER)
    elif model.llm_tuning == "full":
        _load_whole(model, path / LLM)
    model.trained_on = meta.get("training_digest")
    model.trained_prompts = meta.get("prompts_digest")
    if has_other_prompts(model):
        getLogger().warning(
            f"checkpoint {path} was trained under other prompts than those of this run, and may answer worse under these; give "
            "the prompt_file and domain that it was trained under"
        )
    return meta


def has_other_prompts(model: Any) -> bool:
    """Whether a model's weights were trained under other templates than it is asked with."""
    return model.trained_prompts not in (None, model.prompts_digest)


def read_meta(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint's ``meta.json``.

    Raises:
        UserError: it is not there or of another version; DamagedCheckpoint: it is unreadable.
    """
    if not (path / META).is_file():
        raise UserError(f"checkpoint: found no {META} in {path}, expected the folder checkpoint/ of a finished run")
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpoint(f"checkpoint {path}: {META} is no JSON ({error}); choose another checkpoint") from error
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT or not all(isinstance(meta.get(key), dict) for key in ("belongs_to", "sha256")):
        raise UserError(
            f"checkpoint {path}: found format {found!r}, expected {FORMAT}: it was written by another version of "
            "recbole-llara; load it with that version, or train again"
        )
    return meta


def _check_files(path: Path, meta: Mapping[str, Any]) -> None:
    """Compare a checkpoint's files with their checksums.

    Raises:
        DamagedCheckpoint: one is missing, was altered, or is not among those that were written.
    """
    for name, digest in meta["sha256"].items():
        file = path / name
        if not file.is_file() or file_sha256(file) != digest:
            raise DamagedCheckpoint(
                f"checkpoint {path}: {name} is missing or was altered since it was written; choose another checkpoint"
            )
    written = {*meta["sha256"], META}
    foreign = sorted({file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - written)
    if foreign:
        raise DamagedCheckpoint(f"checkpoint {path}: found {foreign[0]}, which was not written with it; remove it")


def load_adapter(llm: PeftModel, folder: Path) -> None:
    """PEFT's adapter file into the model's adapter: every tensor there, of its shape, and no other; its config is not read.

    Args:
        llm: with an adapter of the same keys.
        folder: that ``save_pretrained`` wrote.

    Raises:
        UserError: the file's tensors are others.
    """
    saved = load_file(folder / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(llm)
    shapes, wanted = ({name: tensor.shape for name, tensor in each.items()} for each in (saved, expected))
    if shapes != wanted:
        differing = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise UserError(
            f"adapter {folder}: {len(differing)} tensors differ from this run's lora keys, such as {differing[0]}: found "
            f"{_shape(shapes, differing[0])}, expected {_shape(wanted, differing[0])}; change lora_r or lora_target_modules"
        )
    set_peft_model_state_dict(llm, saved)


def _load_whole(model: Any, folder: Path) -> None:
    """A Hugging Face folder into an LLM that is tuned whole: every tensor there, of its shape, and no other."""
    # By the config of the LLM that stands: that of the folder might name another model, or code.
    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    saved, loaded = type(model.llm).from_pretrained(
        folder, config=model.llm.config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    wrong = {key: sorted(map(str, names)) for key, names in loaded.items() if names}
    if wrong:
        raise UserError(f"checkpoint {folder}: its tensors are not those of this LLM: {wrong}")
    model.llm.load_state_dict(saved.state_dict())


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "none"
