"""Checkpoints of LLM recommenders: what was trained, in formats that run no code, loaded strictly.

A folder holds ``meta.json`` (what it belongs to, and a SHA-256 of each file), ``item_tokens.safetensors`` (projector,
placeholder and their like) and ``adapter/`` (PEFT's own format, for lora) or ``llm/`` (a Hugging Face folder, for full).
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from recbole_llara.errors import UserError
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.llm import causal_lm

META, OWN_WEIGHTS, ADAPTER, LLM = "meta.json", "item_tokens.safetensors", "adapter", "llm"
FORMAT = 1


def _own_state(model: LLMRecommender) -> dict[str, torch.Tensor]:
    """What is trained outside the LLM."""
    return {name: value.detach().cpu().contiguous() for name, value in model.item_tokens.state_dict().items()}


def belongs_to(model: LLMRecommender) -> dict[str, Any]:
    """What a checkpoint fits: compared on loading."""
    llm = causal_lm(model.llm)
    return {
        "format": FORMAT,
        "llm_architecture": type(llm).__name__,
        "llm_shape": [llm.config.num_hidden_layers, llm.config.hidden_size, llm.config.vocab_size],
        "llm_tuning": model.llm_tuning,
        "llm_quantization": model.llm_quantization,
        "representation": model.representation.name,
        "recommender_sha256": None if model.recommender is None else model.recommender.sha256,
        "n_items": model.n_items,
        "item_tokens": {name: list(value.shape) for name, value in model.item_tokens.state_dict().items()},
    }


def save_llm_recommender(model: LLMRecommender, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint beside ``path`` and put it there by renaming, so that a whole one is always on disk.

    Args:
        model: whose trained parts are written.
        path: folder of the checkpoint; an older one there is replaced.
        facts: epoch, score and the like, kept in ``meta.json``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        save_file(_own_state(model), temporary / OWN_WEIGHTS)
        if model.llm_tuning == "lora":
            model.llm.save_pretrained(temporary / ADAPTER)
        elif model.llm_tuning == "full":
            model.llm.save_pretrained(temporary / LLM)
            model.tokenizer.save_pretrained(temporary / LLM)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        sha256 = {file.relative_to(temporary).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        meta = {"belongs_to": belongs_to(model), "sha256": sha256, **facts}
        (temporary / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")
        old = path.with_name(f".{path.name}.old.{uuid.uuid4().hex}")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_llm_recommender(model: LLMRecommender, path: Path) -> dict[str, Any]:
    """Load a checkpoint into a model built by the same configuration.

    Returns:
        the contents of ``meta.json``.

    Raises:
        UserError: no checkpoint there, a file was altered, or it belongs to something else.
    """
    if not (path / META).is_file():
        raise UserError(f"checkpoint: found no {META} in {path}, expected the folder of a run's checkpoint")
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    here = belongs_to(model)
    differing = {
        key: (meta["belongs_to"].get(key), value) for key, value in here.items() if meta["belongs_to"].get(key) != value
    }
    if differing:
        lines = "; ".join(f"{key}: {found!r} there, {expected!r} here" for key, (found, expected) in differing.items())
        raise UserError(f"checkpoint {path} belongs to another model: {lines}")
    for name, digest in meta["sha256"].items():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise UserError(f"checkpoint {path}: {name} is missing or was altered since it was written")
    model.item_tokens.load_state_dict(load_file(path / OWN_WEIGHTS))
    if model.llm_tuning == "lora":
        _load_adapter(model.llm, path / ADAPTER)
    elif model.llm_tuning == "full":
        saved = type(model.llm).from_pretrained(path / LLM, dtype=torch.float32)
        model.llm.load_state_dict(saved.state_dict())
    return meta


def _load_adapter(llm: PeftModel, folder: Path) -> None:
    """PEFT's adapter file into the model's adapter: every tensor there, and no other."""
    saved = load_file(folder / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(llm)
    if saved.keys() != expected.keys():
        differing = sorted(saved.keys() ^ expected.keys())
        raise UserError(f"adapter {folder}: {len(differing)} tensors differ from this run's lora keys, such as {differing[0]}")
    set_peft_model_state_dict(llm, saved)
