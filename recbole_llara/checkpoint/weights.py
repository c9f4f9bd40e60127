"""Checkpoints of three formats, read by one function; the writers of the two that are ours; and what a checkpoint belongs to.

- A folder, of an LLM recommender: ``meta.json`` (what it belongs to, and a SHA-256 of each file), ``snapshot.safetensors``
  (what it knows of the items, see ``data.snapshot``), ``item_tokens.safetensors`` (projector, placeholder and the like),
  ``item_pieces.safetensors`` (the items' texts as tokens, see ``prompt.item_pieces``) and ``adapter/`` (PEFT's format, for lora) or ``llm/``
  (a Hugging Face folder, for full).
- A ``.safetensors`` file, of a stock recommender: what it belongs to is JSON in its header, what it knows of the items is among its tensors.
- A ``.pth`` file that RecBole's trainer wrote, read without running what it holds (``checkpoint.recbole_pickle``).

What a checkpoint belongs to (data, LLM, tokenizer) is told by short digests. Nothing here knows a model: weights are tensors by
name, and ``model.weights`` and ``recommender.stock`` put them into one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.checkpoint.recbole_pickle import FILTERS, read_recbole_pickle
from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.numbering import FILE, PREFIX, USERS, Numbering, kept_in, read_numbering
from recbole_llara.data.snapshot import Snapshot
from recbole_llara.data.text_table import TextTable
from recbole_llara.utils.atomic import run_errors, write_file, write_folder
from recbole_llara.utils.errors import UserError, differences
from recbole_llara.utils.hashing import DIGITS, facts_digest, facts_sha256, file_sha256, mix

META, ITEM_TOKENS, ADAPTER, LLM = "meta.json", "item_tokens.safetensors", "adapter", "llm"
FORMAT = 6  # of the folder
HEADER_KEY = "recbole_llara"
HEADER_FACTS = frozenset({"model", "dataset", "epoch", "snapshot_sha256", "training_digest", "belongs_to", "other_parameter"})


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


class Format(StrEnum):
    """How a checkpoint is written."""

    LLM = "the folder checkpoint/ of a finished run"
    STOCK = "a file .safetensors of a finished run"
    RECBOLE = "a .pth of RecBole's"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. RecBole's tells neither its numbering, nor what it belongs to, nor what it was trained on."""

    path: Path
    format: Format
    facts: dict[str, Any]  # told when it was saved: model, dataset, epoch, belongs_to, training_digest and the like
    numbering: Numbering | None  # ids by number
    # The weights, by name and on the CPU, mapped from the file; before that all files are compared with their digests, once.
    read_tensors: Callable[[], dict[str, torch.Tensor]]

    @property
    def training_digest(self) -> str | None:
        """Digest of the interactions that the weights were trained on."""
        return self.facts.get("training_digest")

    def check_model(self, model: str, key: str = "checkpoint") -> None:
        """Refuse, by a ``UserError``, the weights of another model, or of one that the checkpoint does not name."""
        if self.facts.get("model") != model:
            change = f"{key.replace('checkpoint', 'model')} or {key}"
            raise UserError(f"{key}: {self.path} holds a {self.facts.get('model')}, expected a {model}: change {change}")

    def check_belongs_to(self, here: Mapping[str, Any], model: str) -> None:
        """Refuse, by a ``UserError`` that names every difference, weights that fit something else than this run's."""
        if differing := differences(self.facts.get("belongs_to", {}), here):
            raise UserError(
                f"checkpoint {self.path} does not fit this {model}: {'; '.join(differing)}. Give the keys and the data that it was "
                "trained with (of a recommender under an LLM with the prefix rec_), or train again."
            )


@dataclass(frozen=True)
class Weights:
    """What a model gives to its checkpoint."""

    tensors: Mapping[str, torch.Tensor]  # of an LLM recommender those of its item tokens
    snapshot: Snapshot  # what they know of the items
    belongs_to: Mapping[str, Any]  # what the weights fit
    training_digest: str | None  # of the interactions they were trained on
    more: Mapping[str, Any]  # told too, as JSON has it: ``other_parameter`` or ``prompts_digest``
    write_llm: Callable[[Path], None] | None = None  # writes what was trained of the LLM into a folder, as adapter/ or llm/

    def facts(self) -> dict[str, Any]:
        """What is told of them."""
        return {"training_digest": self.training_digest, "belongs_to": self.belongs_to, **self.more}

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """Contiguous copies on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors.items()}


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """The shape of each tensor, as JSON has it."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any of the three formats; its weights are read when ``read_tensors`` is called.

    Raises:
        UserError: nothing there, not one of the formats, or of another version.
        DamagedCheckpoint: it is not as it was written; ``read_tensors`` raises it too.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix != ".pth":
        return _read_stock(path)
    weights, facts = read_recbole_pickle(path)
    return Checkpoint(path, Format.RECBOLE, facts, None, lambda: weights)


def given_checkpoint(given: str, model: str, expected: Format) -> None:
    """Refuse, by a ``UserError``, a value of ``checkpoint`` that is not there or cannot be a checkpoint of this model."""
    path = Path(given)
    if not (path.is_dir() if expected is Format.LLM else path.is_file()):
        raise UserError(f"checkpoint: found {given!r}, which is not there; expected {expected}")
    if expected is Format.LLM:
        _read_folder(path)
    else:
        _read_stock(path).check_model(model)


def write_llm_checkpoint(
    path: Path, weights: Weights, facts: Mapping[str, Any], fill: Callable[[Path], None] | None = None
) -> None:
    """Write the folder of an LLM recommender over an older one, so that a whole one is always on disk, or raise a ``RunError``.

    Args:
        facts: epoch, score and the like, kept in ``meta.json``.
        fill: adds files of its own to the folder.
    """

    def write(folder: Path) -> None:
        save_file(weights.own_tensors(), folder / ITEM_TOKENS)
        save_file(weights.snapshot.tensors(), folder / FILE)
        for writer in (weights.write_llm, fill):
            if writer is not None:
                writer(folder)
        sha256 = {name: file_sha256(folder / name) for name in sorted(_files(folder))}
        meta = {"format": FORMAT, **weights.facts(), "sha256": sha256, **facts}
        (folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")

    with run_errors(path):
        write_folder(path, write)


def _files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


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

    @cache
    def check_files() -> None:
        there = _files(path)
        for name, digest in meta["sha256"].items():
            if name not in there or file_sha256(path / name) != digest:
                raise DamagedCheckpoint(
                    f"checkpoint {path}: {name} is missing or was altered since it was written; choose another checkpoint"
                )
        if foreign := there - {*meta["sha256"], META}:
            raise DamagedCheckpoint(f"checkpoint {path}: found {min(foreign)}, which was not written with it; remove it")

    def read_tensors() -> dict[str, torch.Tensor]:
        check_files()
        return load_file(path / ITEM_TOKENS)

    try:
        ids = read_numbering(path, "checkpoint")
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from error
    return Checkpoint(path, Format.LLM, meta, ids, read_tensors)


def write_stock_checkpoint(path: Path, weights: Weights, facts: Mapping[str, Any]) -> None:
    """Write the file of a stock recommender, whole or not at all; ``model``, ``dataset`` and ``epoch`` are among the facts."""
    snapshot = weights.snapshot.tensors()
    told = {**facts, "snapshot_sha256": tensors_sha256(snapshot), **weights.facts()}
    tensors = weights.own_tensors() | snapshot
    with run_errors(path):
        write_file(path, lambda place: save_file(tensors, place, metadata={HEADER_KEY: json.dumps(told)}))


def _read_stock(path: Path) -> Checkpoint:
    if not path.is_file():
        raise UserError(
            f"No checkpoint at {path} (checkpoint, rec_checkpoint), expected a .safetensors file written by a training run."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header, names = (file.metadata() or {}).get(HEADER_KEY), list(file.keys())
            # Mapped apart from the weights, which stay when these go.
            snapshot = {name: file.get_tensor(name) for name in names if name.startswith(PREFIX)}
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}): expected one written by a training run.") from error
    try:
        facts = json.loads(header or "null")
    except ValueError as error:
        raise UserError(f"{path}: its header is damaged ({error}); train it again.") from error
    is_whole = isinstance(facts, dict) and facts.keys() >= HEADER_FACTS
    if not is_whole or not all(isinstance(facts[table], dict) for table in ("belongs_to", "other_parameter")):
        raise UserError(
            f"{path} was not written by this version of recbole-llara: its header tells not all of "
            f"{', '.join(sorted(HEADER_FACTS))}; train it again."
        )
    ids = Numbering.from_tensors(snapshot, str(path))
    if tensors_sha256(snapshot) != facts["snapshot_sha256"]:
        raise UserError(f"{path}: what it tells of items and users was altered since it was written; train it again.")

    def read_tensors() -> dict[str, torch.Tensor]:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names if not name.startswith(PREFIX)}

    return Checkpoint(path, Format.STOCK, facts, ids, read_tensors)


def weights_sha256(path: Path) -> str:
    """Digest of a file of weights of any recommender; whose hashes of ids are kept with them changes nothing."""
    told = path.stat()
    return _weights_sha256(path, told.st_ino, told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=16)
def _weights_sha256(path: Path, inode: int, size: int, changed: int) -> str:
    """Read once in a process, unless file, size or time of change are others."""
    if path.suffix != ".safetensors":
        return file_sha256(path)
    try:
        return tensors_sha256({name: tensor for name, tensor in load_file(path).items() if name != USERS})
    except SafetensorError:
        return file_sha256(path)  # whoever reads it will say what is wrong


def contents_sha256(path: Path) -> str:
    """Digest of all that a ``.safetensors`` file holds, the hashes of users and the header too, over ``weights_sha256``.

    Raises:
        SafetensorError, OSError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        header = json.dumps(file.metadata() or {}, sort_keys=True)
        users = file.get_tensor(USERS) if USERS in file.keys() else torch.zeros(0)  # noqa: SIM118 (no mapping)
    return facts_sha256([weights_sha256(path), header, tensors_sha256({USERS: users})])


def forget_users(path: Path) -> None:
    """Rewrite a checkpoint, folder or file, without hashes of users' ids; one with a table of users stays as it is."""
    place = kept_in(path)
    tensors = load_file(place)
    if not path.is_dir():
        with safe_open(place, framework="pt") as file:
            told = json.loads(file.metadata()[HEADER_KEY])
    own = {name: tensors.pop(name) for name in [name for name in tensors if name.startswith(PREFIX)]}
    snapshot = Snapshot.from_tensors(own, str(path))
    if any(snapshot.n_users in tensor.shape[:1] for tensor in tensors.values()):
        return
    own = replace(snapshot, numbering=snapshot.numbering.without_users()).tensors()
    if path.is_dir():
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        save_file(own, place)
        meta["sha256"][FILE] = file_sha256(place)
        (path / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")
    else:
        told["snapshot_sha256"] = tensors_sha256(own)
        save_file(tensors | own, place, metadata={HEADER_KEY: json.dumps(told)})


# What decides, beside the filters, which rows are training rows.
SPLIT_KEYS = ("split", "split_ratio", "min_train_history", "min_eval_history", "repeated_targets")
SAMPLED = 1024  # numbers of each tensor


def llm_digest(model: PreTrainedModel) -> str:
    """Digest of an LLM's weights before adapters are added: of every tensor name, shape and up to 1,024 evenly spread numbers.

    The numbers are rounded to bfloat16, so that an LLM is the same one in whichever floating type it was loaded. It tells
    models apart, fine-tuned ones from their base too; it is no checksum of a file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()
        numbers = flat[places.to(flat.device)].cpu()
        rounded = numbers.to(torch.bfloat16).float() if numbers.is_floating_point() else numbers
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(rounded.contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of a tokenizer's vocabulary and special tokens."""
    return facts_digest({"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map})


def data_facts(config: Any, data: PreparedData) -> dict[str, Any]:
    """Which items a model knows, by which titles, and by which split: a row it learned from may be a test row of another."""
    protocol = data.dataset.protocol
    split = {key: getattr(protocol, key) for key in SPLIT_KEYS} | {key: config[key] for key in FILTERS}
    if data.dataset.is_held_out is not None:
        split["held_out"] = data.dataset.held_out_digest
    return {
        "dataset": config["dataset"],
        "split": protocol.split,
        "split_digest": facts_digest(split),
        "items_digest": Numbering.of(data.dataset).items_sha256[:DIGITS],
        "titles_digest": TextTable.of(data.catalogue.titles).sha256[:DIGITS],
        "n_items": data.dataset.item_num,
    }


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def training_digest(dataset: Any) -> str:
    """Digest of the interactions that training rows rest on, by external ids and in no order: of all rows, not of a sample.

    Where it differs, a test row of one split of ``prepare_data`` may have been a training row of the other.
    """
    known = dataset.knowledge.known["train"]
    user, item = np.divmod(known.keys, known.n_items)
    items = pd.util.hash_array(np.array(dataset.field2id_token[dataset.iid_field], dtype=object), categorize=False)
    pairs = mix(mix(dataset.user_hashes[user - 1].view(np.uint64)) ^ items[item])
    return hashlib.sha256(np.sort(pairs).tobytes()).hexdigest()[:DIGITS]


def rows_digest(data: PreparedData, recommender: str | None = None) -> str:
    """Digest of the training rows, of the candidates of validation and test, and of what the draws of training take from a
    recommender: what a training may not change under way.

    Args:
        recommender: SHA-256 of the one with which training rows are read; None = it is the one that answers.
    """
    digest = hashlib.sha256(facts_digest(data.candidate_sha256).encode())
    for field in (data.dataset.uid_field, data.dataset.iid_field):
        digest.update(data.dataset.inter_feat[field].numpy().tobytes())
    if data.sampler.proposals is not None:
        digest.update(data.sampler.proposals.sha256.encode())
    digest.update((recommender or "").encode())
    return digest.hexdigest()[:DIGITS]
