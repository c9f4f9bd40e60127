"""Checkpoints of three formats, read by one function; and the writers of the two that are ours.

- A folder, of an LLM recommender: ``meta.json`` (what it belongs to, and a SHA-256 of each file), ``numbering.safetensors`` (the
  ids of the items by their numbers), ``item_tokens.safetensors`` (projector, placeholder and the like) and ``adapter/`` (PEFT's
  format, for lora) or ``llm/`` (a Hugging Face folder, for full).
- A ``.safetensors`` file, of a stock recommender: what it belongs to is JSON in its header, the ids are among its tensors.
- A ``.pth`` file that RecBole's trainer wrote, read without running what it holds (``checkpoint.recbole_pickle``).

Nothing here knows a model: weights are tensors by name. ``model.weights`` and ``recommender.stock`` put them into one.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from recbole_llara.checkpoint.recbole_pickle import read_recbole_pickle
from recbole_llara.data import numbering
from recbole_llara.data.numbering import PREFIX, Numbering
from recbole_llara.utils.atomic import write_file, write_folder
from recbole_llara.utils.digests import file_sha256
from recbole_llara.utils.errors import RunError, UserError

META, ITEM_TOKENS, ADAPTER, LLM = "meta.json", "item_tokens.safetensors", "adapter", "llm"
FORMAT = 3  # of the folder
HEADER_KEY = "recbole_llara"
HEADER_FACTS = frozenset({"model", "dataset", "epoch", "numbering_sha256", "training_digest", "belongs_to", "other_parameter"})


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


class Format(StrEnum):
    """How a checkpoint is written."""

    LLM = "the folder checkpoint/ of a finished run"
    STOCK = "a file .safetensors of a finished run"
    RECBOLE = "a .pth of RecBole's"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: where it lies.
        format: how it is written.
        facts: what was told when it was saved: ``model``, ``epoch``, ``dataset`` and the like.
        belongs_to: what the weights fit, by name; None where the format does not tell.
        numbering: ids by number; None where the format does not tell.
        training_digest: of the interactions that the weights were trained on; None where the format does not tell.
        read_tensors: reads the weights, by name and on the CPU.
    """

    path: Path
    format: Format
    facts: dict[str, Any]
    belongs_to: dict[str, Any] | None
    numbering: Numbering | None
    training_digest: str | None
    read_tensors: Callable[[], dict[str, torch.Tensor]]

    def check_model(self, model: str, key: str = "checkpoint") -> None:
        """Refuse the weights of another model.

        Raises:
            UserError: it holds one, or does not tell.
        """
        if self.facts.get("model") != model:
            change = "rec_model or rec_checkpoint" if key == "rec_checkpoint" else "model or checkpoint"
            raise UserError(f"{key}: {self.path} holds a {self.facts.get('model')}, expected a {model}: change {change}")

    def check_belongs_to(self, here: Mapping[str, Any], model: str) -> None:
        """Compare what the weights fit with what is here.

        Args:
            here: as ``belongs_to``.
            model: the name of the run's model.

        Raises:
            UserError: something differs; every difference is named.
        """
        if differing := differences(self.belongs_to or {}, here):
            raise UserError(
                f"checkpoint {self.path} does not fit this {model}: {differing}. Give the keys and the data that it was trained with "
                "(of a recommender under an LLM with the prefix rec_), or train again."
            )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The entries in which two tables differ, as a text; empty where they are equal."""
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any of the three formats; its weights are read when ``read_tensors`` is called.

    Raises:
        UserError: nothing there, not one of the formats, or of another version. DamagedCheckpoint: it is not as it was written;
            ``read_tensors`` raises it too.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    return _read_recbole(path) if path.suffix == ".pth" else _read_stock(path)


def given_checkpoint(given: str, model: str, expected: Format) -> Checkpoint:
    """The checkpoint that the key ``checkpoint`` names, asked for before a run makes anything.

    Args:
        given: the key's value.
        model: the run's.
        expected: the format of that model's checkpoints.

    Raises:
        UserError: it is not there, or cannot be one of this model's.
    """
    path = Path(given)
    if not (path.is_dir() if expected is Format.LLM else path.is_file()):
        raise UserError(f"checkpoint: found {given!r}, which is not there; expected {expected}")
    checkpoint = _read_folder(path) if expected is Format.LLM else _read_stock(path)
    if expected is Format.STOCK:
        checkpoint.check_model(model)
    return checkpoint


# --- a folder --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LLMWeights:
    """What an LLM recommender gives to its checkpoint.

    Args:
        tensors: of the item tokens, by name.
        numbering: ids by number.
        belongs_to: what the weights fit.
        training_digest: of the interactions they were trained on.
        prompts_digest: of the templates they were trained under.
        write_llm: writes what was trained of the LLM into the folder, as ``adapter/`` or ``llm/``.
    """

    tensors: Mapping[str, torch.Tensor]
    numbering: Numbering
    belongs_to: Mapping[str, Any]
    training_digest: str | None
    prompts_digest: str | None
    write_llm: Callable[[Path], None]


def write_llm_checkpoint(
    path: Path, weights: LLMWeights, facts: Mapping[str, Any], fill: Callable[[Path], None] | None = None
) -> None:
    """Write a folder beside ``path`` and put it there in one step, so that a whole one is always on disk.

    Args:
        path: an older checkpoint there is replaced.
        weights: what was trained.
        facts: epoch, score and the like, kept in ``meta.json``.
        fill: adds files of its own to the folder.

    Raises:
        RunError: it cannot be written there; what was there is untouched.
    """

    def write(folder: Path) -> None:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.tensors.items()}, folder / ITEM_TOKENS)
        save_file(weights.numbering.tensors(), folder / numbering.FILE)
        weights.write_llm(folder)
        if fill is not None:
            fill(folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        sha256 = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
        trained = {"training_digest": weights.training_digest, "prompts_digest": weights.prompts_digest}
        meta = {"format": FORMAT, "belongs_to": weights.belongs_to, **trained, "sha256": sha256, **facts}
        (folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")

    try:
        write_folder(path, write)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"checkpoint: {path} cannot be written ({error}); what was saved before is untouched. Is the disk full or read-only? "
            "The folder is that of checkpoint_dir"
        ) from error


def _read_folder(path: Path) -> Checkpoint:
    if not (path / META).is_file():
        raise UserError(f"checkpoint: found no {META} in {path}, expected {Format.LLM}")
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

    def read_tensors() -> dict[str, torch.Tensor]:
        _check_files(path, meta["sha256"])
        return load_file(path / ITEM_TOKENS)

    try:
        ids = numbering.read_numbering(path, "checkpoint")
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from error
    return Checkpoint(path, Format.LLM, meta, meta["belongs_to"], ids, meta.get("training_digest"), read_tensors)


def _check_files(path: Path, sha256: Mapping[str, str]) -> None:
    """Compare a folder's files with their checksums, and refuse any file that was not written with it."""
    for name, digest in sha256.items():
        file = path / name
        if not file.is_file() or file_sha256(file) != digest:
            raise DamagedCheckpoint(
                f"checkpoint {path}: {name} is missing or was altered since it was written; choose another checkpoint"
            )
    foreign = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {*sha256, META}
    if foreign:
        raise DamagedCheckpoint(f"checkpoint {path}: found {min(foreign)}, which was not written with it; remove it")


# --- a .safetensors file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StockWeights:
    """What a stock recommender gives to its checkpoint.

    Args:
        tensors: by name.
        numbering: ids by number.
        belongs_to: what the weights fit.
        training_digest: of the interactions they were trained on.
        other_parameter: what JSON can hold of what the model keeps beside its weights.
    """

    tensors: Mapping[str, torch.Tensor]
    numbering: Numbering
    belongs_to: Mapping[str, Any]
    training_digest: str | None
    other_parameter: Mapping[str, Any]


def write_stock_checkpoint(path: Path, weights: StockWeights, facts: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file.
        weights: what was trained.
        facts: what JSON can hold; ``model``, ``dataset`` and ``epoch`` among them.
    """
    digests = {"numbering_sha256": weights.numbering.sha256, "training_digest": weights.training_digest}
    told = {**facts, **digests, "belongs_to": weights.belongs_to, "other_parameter": weights.other_parameter}
    tensors = {name: _own(tensor) for name, tensor in weights.tensors.items()} | weights.numbering.tensors()
    write_file(path, lambda place: save_file(tensors, place, metadata={HEADER_KEY: json.dumps(told)}))


def _read_stock(path: Path) -> Checkpoint:
    if not path.is_file():
        raise UserError(
            f"No checkpoint at {path} (checkpoint, rec_checkpoint), expected a .safetensors file written by a training run."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}): expected one written by a training run.") from error
    if header is None:
        raise UserError(f"{path} was not written by recbole-llara: its header names no model.")
    try:
        facts = json.loads(header)
    except ValueError as error:
        raise UserError(f"{path}: its header is damaged ({error}); train it again.") from error
    tables = ("belongs_to", "other_parameter")
    if (
        not isinstance(facts, dict)
        or not facts.keys() >= HEADER_FACTS
        or not all(isinstance(facts[key], dict) for key in tables)
    ):
        raise UserError(f"{path}: its header tells not all of {', '.join(sorted(HEADER_FACTS))}; train it again.")
    ids = Numbering.from_tensors({name: value for name, value in tensors.items() if name.startswith(PREFIX)}, str(path))
    if ids.sha256 != facts["numbering_sha256"]:
        raise UserError(f"{path}: its ids of items and users were altered since it was written; train it again.")
    weights = {name: value for name, value in tensors.items() if not name.startswith(PREFIX)}
    return Checkpoint(path, Format.STOCK, facts, facts["belongs_to"], ids, facts["training_digest"], lambda: weights)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().to("cpu", copy=True).contiguous()


# --- a .pth file -----------------------------------------------------------------------------------


def _read_recbole(path: Path) -> Checkpoint:
    weights, facts = read_recbole_pickle(path)
    return Checkpoint(path, Format.RECBOLE, facts, None, None, None, lambda: weights)
