"""The numbers by which a model knows items, users and values of features: kept with its weights, taken up where it is used.

RecBole numbers ids in the order in which the files name them. Another filter, or the same rows in another order, gives the
same items other numbers, and a table of weights has a row for each number. So every checkpoint keeps the ids in the order
of their numbers, and data that is prepared for a checkpoint is numbered as the checkpoint is. Whatever depends on numbers
(tables of items and of users, features, ties, the order of candidates in a prompt) is then as it was in training.

Users are kept as hashes: a checkpoint that is passed on names none of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from recbole_llara.data.tables import PADDING
from recbole_llara.data.text_table import TextIndex, TextTable
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import DIGITS, file_sha256

FILE = "snapshot.safetensors"  # in the folder of an LLM's checkpoint, see ``data.snapshot``
PREFIX = "snapshot/"  # of its tensors, among those of other things
USERS, _IDS, _FEATURE, _FACTS = (f"{PREFIX}{name}" for name in ("users", "ids", "feature/", "numbering"))


@dataclass(frozen=True, eq=False)
class Numbering:
    """External ids in the order of internal numbers, which begin at 1."""

    ids: TextTable  # N, the padding item's first
    n_known: int  # items 1 ... n_known - 1 have interactions; the others stand in the .item file alone
    users: np.ndarray  # [U - 1] int64, hashes of ids
    features: Mapping[str, TextTable] = field(default_factory=dict)  # a feature the model reads -> its values
    origin: str = ""  # key and path of the checkpoint it was read from
    kept_index: TextIndex | None = None  # of ``ids``, where it was kept with them

    @classmethod
    def of(cls, dataset: Any, selected_features: Sequence[str] | None = None) -> "Numbering":
        """That of a ``CandidateDataset`` that was built, of a split or of a snapshot; features without tokens have no numbers."""
        names = [name for name in selected_features or () if name in dataset.field2id_token]
        ids, *features = (TextTable.of(dataset.field2id_token[name]) for name in (dataset.iid_field, *names))
        values = {name: table[1:] for name, table in zip(names, features, strict=True)}
        return cls(ids, int(dataset.n_known), dataset.user_hashes, values)

    @property
    def items(self) -> TextTable:
        """The N - 1 items' ids."""
        return self.ids[1:]

    @cached_property
    def index(self) -> TextIndex:
        """By which an item is found by its id."""
        return TextIndex.of(self.ids) if self.kept_index is None else self.kept_index

    def without_users(self) -> "Numbering":
        """The same, which tells nobody's id, not even as a hash."""
        return replace(self, users=self.users[:0])

    @property
    def items_sha256(self) -> str:
        """Digest of the items in their order."""
        return self.ids.sha256

    def tensors(self) -> dict[str, torch.Tensor]:
        """What safetensors keep of it."""
        told = json.dumps({"n_known": int(self.n_known), "features": sorted(self.features)})
        tensors = {_FACTS: text_tensor(told), USERS: torch.from_numpy(self.users.copy())}
        for name, values in self.features.items():
            tensors |= values.tensors(_FEATURE + name)
        return tensors | self.ids.tensors(_IDS) | self.index.tensors(_IDS)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], origin: str) -> "Numbering":
        """What ``tensors`` gave; ``UserError`` where they are not what this package writes."""
        try:
            told, users, ids = json.loads(told_by(tensors[_FACTS])), tensors[USERS], TextTable.from_tensors(tensors, _IDS)
            features = {name: TextTable.from_tensors(tensors, _FEATURE + name) for name in told["features"]}
            if users.dtype != torch.int64 or users.dim() != 1 or type(told["n_known"]) is not int or not len(ids):
                raise TypeError("ids, users or n_known are of another kind")
            index = TextIndex.from_tensors(tensors, _IDS, len(ids))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{origin} tells not by which numbers it knows its items ({error!r}); train it again.") from error
        return cls(ids, told["n_known"], users.numpy(), features, origin, index)

    def known_ids(self, kind: str, here: np.ndarray) -> Sequence[str]:
        """External ids in the order of their numbers; users whom the data lacks have names that say so.

        Args:
            kind: ``items``, ``users`` or the name of a feature.
            here: [M] external ids in the data, each once.

        Raises:
            UserError: items or values of a feature are not the same ones; for users that is no matter.
        """
        if kind == "users":
            users = pd.Series(here, index=user_hashes(here)).reindex(self.users)
            return [user if isinstance(user, str) else f"[not in these files] {number}" for number, user in enumerate(users)]
        there = list(self.items if kind == "items" else self.features[kind])
        extra, missing = pd.Index(here).difference(there, sort=False), sorted(set(there).difference(here))
        if len(extra) or missing:
            what = "items" if kind == "items" else f"values of {kind} (selected_features)"
            raise UserError(
                f"{self.origin} knows {len(there)} {what}, this run has {len(here)}: {_some(extra, 'unknown to it')}, "
                f"{_some(missing, 'known to it and not here')}. Give it the files and filters that it was trained with (data_path, "
                "user_inter_num_interval, item_inter_num_interval, val_interval), or train again."
            )
        return there

    def check_known(self, numbers: np.ndarray) -> None:
        """Refuse data in which other items have interactions than in training; ``numbers`` are those of the interactions."""
        ids = np.array([*self.ids])
        is_known = np.isin(np.arange(len(ids)), numbers)
        was_known = (ids != PADDING) & (np.arange(len(ids)) < self.n_known)
        gone, new = ids[was_known & ~is_known], ids[is_known & ~was_known]
        if len(gone) or len(new):
            raise UserError(
                f"{self.origin} was trained where other items had interactions: {_some(new, 'had none')}, "
                f"{_some(gone, 'have none here')}. Give it the files and filters that it was trained with, or train again."
            )

    def check_same(self, other: "Numbering", path: Any) -> None:
        """Refuse weights (at ``path``, numbered as ``other``) that number items, features or shared users in another way."""
        shared = min(len(self.users), len(other.users))
        if self.items_sha256 != other.items_sha256 or self.n_known != other.n_known:
            what = "items"
        elif self.features != other.features:
            what = "features (selected_features)"
        elif not np.array_equal(self.users[:shared], other.users[:shared]):
            what = "users"
        else:
            return
        raise UserError(
            f"{path} numbers its {what} otherwise than the data of this run: it knows {len(other.items)} items, this run has "
            f"{len(self.items)}. Where checkpoint and rec_checkpoint are both given, both must be of one run, of the same files "
            "and filters; change one of them, or train again."
        )


def text_tensor(text: str) -> torch.Tensor:
    """A text as a tensor of its bytes, for safetensors."""
    return torch.from_numpy(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).copy())


def told_by(tensor: torch.Tensor) -> str:
    """The text of ``text_tensor``."""
    return tensor.numpy().tobytes().decode("utf-8", "surrogatepass")


def user_hashes(ids: Sequence[str]) -> np.ndarray:
    """[U] int64 hashes of users' ids."""
    return pd.util.hash_array(np.array([str(user) for user in ids], dtype=object), categorize=False).view(np.int64)


def data_digest(config: Any) -> str:
    """Digest of the files that a run's rows, titles and candidates come from: of their names and bytes."""
    files = sorted(Path(config["data_path"]).glob(f"{config['dataset']}.*"))
    files += [Path(config["candidate_file"])] if config["candidate_file"] else []
    told = "".join(f"{path.name} {file_sha256(path)}\n" for path in files if path.is_file())
    return sha256(told.encode()).hexdigest()[:DIGITS]


def read_numbering(path: Path, key: str) -> Numbering | None:
    """That of a checkpoint, folder or file, which ``key`` names; None where it has none: its weights are then refused.

    Raises:
        UserError: it is there, but not as it was written.
    """
    place = kept_in(path)
    if place is None:
        return None
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return None
    return Numbering.from_tensors(tensors, f"{key}: {path}") if tensors else None


def kept_in(path: Path) -> Path | None:
    """The file of a checkpoint, folder or file, that holds its numbering; None where there is none."""
    places = [path / FILE, path / "model.safetensors"] if path.is_dir() else [path]
    return next((place for place in places if place.suffix == ".safetensors" and place.is_file()), None)


def _some(texts: Sequence[str], what: str) -> str:
    return f"{len(texts)} {what}" + (f", such as {str(texts[0])!r}" if len(texts) else "")
