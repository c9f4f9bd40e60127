"""What a trained model needs of its data to answer, kept with its weights: the items, and no interaction of any user.

Ids by number, titles and fields as prompts show them, how many users took each item in training, and the columns of features that
the model reads. ``Snapshot.dataset`` stands where RecBole's models expect a dataset, so that a run is loaded without its files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from safetensors import SafetensorError, safe_open

from recbole_llara.config.settings import DataProtocol
from recbole_llara.data.atomic_files import PADDING
from recbole_llara.data.held_out import HoldsItemsOut
from recbole_llara.data.numbering import FILE, PREFIX, Numbering, kept_in, text_tensor, told_by
from recbole_llara.data.text_table import TextIndex, TextTable
from recbole_llara.data.titles import Catalogue, folded, untitled
from recbole_llara.utils.errors import UserError

_FACTS, _COUNTS, _HOMES, _COLUMN = (f"{PREFIX}{name}" for name in ("facts", "counts", "homes", "column/"))
_TITLES, _FIELD, _VALUES = (f"{PREFIX}{name}" for name in ("titles", "field/", "values/"))


@dataclass(frozen=True)
class Column:
    """A feature of the items, as RecBole holds it."""

    values: torch.Tensor  # [N] or [N, length]
    type: FeatureType
    length: int
    tokens: TextTable | None = None  # the external values by number, of a feature that has numbers
    buckets: int | None = None  # of a float that a model reads as an embedding


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is kept; N items and U users, the padding one counted."""

    numbering: Numbering
    n_users: int  # U, which tells the size of a table of users
    training_counts: np.ndarray  # [N] int64, how many users took each item in training
    titles: TextTable | None = None  # N, as prompts and answers have them; None where the run has no title_field
    fields: Mapping[str, TextTable] = field(default_factory=dict)  # of ``Catalogue``
    homes: np.ndarray | None = None  # [N] int64, see ``HoldsItemsOut``
    columns: Mapping[str, Column] = field(default_factory=dict)  # what was loaded of the .item file, by name
    kept_index: TextIndex | None = None  # of the folded titles, where it was kept with them

    @classmethod
    def of(cls, dataset: Any, selected_features: Sequence[str] | None = None) -> "Snapshot":
        """That of the training split of a ``CandidateDataset``, or of another snapshot's dataset."""
        catalogue, columns = dataset.catalogue, {}
        for name in () if dataset.item_feat is None else dataset.item_feat.columns:
            if name != dataset.iid_field:
                tokens = TextTable.of(dataset.field2id_token[name]) if name in dataset.field2id_token else None
                kind, length = dataset.field2type[name], int(dataset.field2seqlen[name])
                buckets = dataset.field2bucketnum.get(name)
                columns[name] = Column(dataset.item_feat[name], kind, length, tokens, None if buckets is None else int(buckets))
        return cls(
            Numbering.of(dataset, selected_features),
            dataset.user_num,
            dataset.training_counts,
            None if catalogue is None else TextTable.of(catalogue.titles),
            {} if catalogue is None else {name: TextTable.of(texts) for name, texts in catalogue.fields.items()},
            dataset.homes,
            columns,
            dataset.snapshot.kept_index if isinstance(dataset, SnapshotDataset) else None,
        )

    @cached_property
    def title_index(self) -> TextIndex | None:
        """By which items are found by their folded titles; None where there are none."""
        if self.titles is None or self.kept_index is not None:
            return self.kept_index
        return TextIndex.of([folded(title) for title in self.titles])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What safetensors keep of it."""
        told = {
            "n_users": self.n_users,
            "fields": list(self.fields),
            "columns": {
                name: [column.type.value, column.length, column.tokens is not None, column.buckets]
                for name, column in self.columns.items()
            },
        }
        texts = {_FIELD + name: table for name, table in self.fields.items()}
        texts |= {_VALUES + name: column.tokens for name, column in self.columns.items() if column.tokens is not None}
        tensors: dict[str, torch.Tensor] = {}
        if self.titles is not None:
            tensors |= self.titles.tensors(_TITLES) | self.title_index.tensors(_TITLES)
        for name, table in texts.items():
            tensors |= table.tensors(name)
        return {
            **self.numbering.tensors(),
            **tensors,
            _FACTS: text_tensor(json.dumps(told, ensure_ascii=False)),
            _COUNTS: torch.from_numpy(self.training_counts.astype(np.int64)),
            **({} if self.homes is None else {_HOMES: torch.from_numpy(self.homes.astype(np.int64))}),
            **{_COLUMN + name: column.values.contiguous().clone() for name, column in self.columns.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], origin: str) -> "Snapshot":
        """What ``tensors`` gave; ``UserError`` where they are not what this package writes."""
        numbering = Numbering.from_tensors(tensors, origin)
        try:
            told = json.loads(told_by(tensors[_FACTS]))
            n_items, n_users = len(numbering.ids), told["n_users"]
            fields = {name: TextTable.from_tensors(tensors, _FIELD + name) for name in told["fields"]}
            titles, title_index = None, None
            if any(name.startswith(_TITLES) for name in tensors):
                titles = TextTable.from_tensors(tensors, _TITLES)
                title_index = TextIndex.from_tensors(tensors, _TITLES, n_items)
            columns = {
                name: Column(
                    tensors[_COLUMN + name],
                    FeatureType(kind),
                    int(length),
                    TextTable.from_tensors(tensors, _VALUES + name) if has_values else None,
                    buckets,
                )
                for name, (kind, length, has_values, buckets) in told["columns"].items()
            }
            texts = [*fields.values(), *([] if titles is None else [titles])]
            homes = tensors.get(_HOMES)
            numbers = [tensors[_COUNTS], *([] if homes is None else [homes])]
            shapes = [of.shape for of in numbers] + [column.values.shape[:1] for column in columns.values()]
            if (
                type(n_users) is not int
                or n_users < 1
                or any(len(of) != n_items for of in texts)
                or any(tuple(shape) != (n_items,) for shape in shapes)
                or any(type(column.buckets) not in (int, type(None)) for column in columns.values())
                or any(of.dtype != torch.int64 for of in numbers)
            ):
                raise TypeError("texts, counts or columns are of another form")
            if titles is not None and len(untitled(titles[1:])):
                raise ValueError("an item has no title")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{origin} tells not what it knows of its items ({error!r}); train it again.") from error
        held_out = None if homes is None else homes.numpy()
        counts = tensors[_COUNTS].numpy()
        return cls(numbering, n_users, counts, titles, fields, held_out, columns, title_index)

    def dataset(self, config: Any) -> "SnapshotDataset":
        """What models of ``config`` are made over."""
        return SnapshotDataset(config, self)


class SnapshotDataset(HoldsItemsOut, SequentialDataset):
    """The items of a snapshot where RecBole's models expect a dataset: sizes, ids and features, but no rows.

    Args:
        config: RecBole's Config with our keys.
        snapshot: what a checkpoint keeps.
    """

    def __init__(self, config: Any, snapshot: Snapshot) -> None:
        # RecBole's own reads files.
        self.config, self.dataset_name, self.logger = config, config["dataset"], getLogger()
        self.protocol, self.snapshot = DataProtocol.from_config(config), snapshot
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.time_field, self.label_field = config["TIME_FIELD"], config["LABEL_FIELD"]
        self.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        history = self.iid_field + config["LIST_SUFFIX"]
        numbering, n_items = snapshot.numbering, len(snapshot.numbering.ids)
        self.n_known, self.user_hashes, self.training_counts = numbering.n_known, numbering.users, snapshot.training_counts
        self.homes = snapshot.homes
        self.catalogue = None
        if snapshot.titles is not None:
            self.catalogue = Catalogue(snapshot.titles, numbering.ids, str(config["domain"] or "item"), snapshot.fields)
        features = {name: column.tokens for name, column in snapshot.columns.items() if column.tokens is not None}
        # A user of a question is none of training; in no memory, however many there were.
        nobody = np.broadcast_to(np.array(PADDING, dtype=object), snapshot.n_users)
        self.field2id_token = {self.uid_field: nobody, self.iid_field: numbering.ids, **features}
        self.field2type = {self.uid_field: FeatureType.TOKEN, self.iid_field: FeatureType.TOKEN, history: FeatureType.TOKEN_SEQ}
        self.field2type |= {name: column.type for name, column in snapshot.columns.items()}
        self.field2source = {self.uid_field: FeatureSource.USER_ID, self.iid_field: FeatureSource.ITEM_ID}
        self.field2source[history] = FeatureSource.INTERACTION
        self.field2source |= dict.fromkeys(snapshot.columns, FeatureSource.ITEM)
        self.field2seqlen = {self.uid_field: 1, self.iid_field: 1, history: self.max_item_list_len}
        self.field2seqlen |= {name: column.length for name, column in snapshot.columns.items()}
        self.field2bucketnum = {name: column.buckets for name, column in snapshot.columns.items() if column.buckets is not None}
        of_items = {name: column.values for name, column in snapshot.columns.items()}
        self.item_feat = Interaction({self.iid_field: torch.arange(n_items), **of_items})
        none, self.user_feat = torch.zeros(0, dtype=torch.int64), None
        self.inter_feat = Interaction(
            {
                self.uid_field: none,
                self.iid_field: none,
                history: torch.zeros(0, self.max_item_list_len, dtype=torch.int64),
                self.item_list_length_field: none,
            }
        )


def read_snapshot(path: Path, key: str) -> Snapshot:
    """That of a checkpoint of ours, folder or file, which ``key`` names.

    Raises:
        UserError: it is not there, or not as it was written.
    """
    place = kept_in(path)
    if place is None:
        raise UserError(f"{key}: found no {FILE} in {path}, expected the checkpoint of a finished run")
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{key}: {place} cannot be read ({error}); train it again.") from error
    return Snapshot.from_tensors(tensors, f"{key}: {path}")
