"""RecBole's atomic files, checked as they are read: what is wrong is told by file, line and column.

RecBole itself gives such a file to a CSV reader, where a quote that opens a cell swallows the lines up to the next one; it
passes by a line that is too short, puts the mean in place of a missing time, and gives pandas' own errors. Here one reader,
`tables.read_rows`, serves the checks, the tables that RecBole works on, and the titles.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_llara.config.settings import READY_MADE, SPLITS
from recbole_llara.data.tables import HOLES, PADDING, as_float, read_rows
from recbole_llara.utils.compat import Table, fill_holes
from recbole_llara.utils.errors import UserError, nearest

TYPES = tuple(kind.value for kind in FeatureType)
FLOAT = FeatureType.FLOAT.value
FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item")


class CheckedFiles(SequentialDataset):
    """A SequentialDataset whose files and columns are checked as they are read."""

    def _fill_nan(self) -> None:
        fill_holes(self)

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        return super()._dataframe_to_interaction(Table(data))

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        """RecBole's method, over ``read_rows`` in place of pandas' CSV reader."""
        suffix, load_col = getattr(source, "value", source), self.config["load_col"]
        is_inter = suffix == FeatureSource.INTERACTION.value
        if load_col is not None and suffix not in load_col and not is_inter:
            return None  # titles are read by data/titles.py, and nothing else of the file
        path = Path(filepath)
        rows = read_rows(path, self.config["field_separator"], self.config["encoding"] or "utf-8")
        columns = self._columns(path, next(rows, (1, [""]))[1])
        loaded, unloaded = self._get_load_and_unload_col(source)
        for name in sorted(loaded or ()):
            if name not in columns:
                hint = nearest(name, columns)
                raise UserError(f"load_col.{suffix}: found {name!r}, expected columns of {path}: {', '.join(columns)}; {hint}")
        kept = [name for name in columns if (loaded is None or name in loaded) and name not in (unloaded or ())]
        if is_inter:
            self._check_needed(path, columns, kept)
        cells = _read_cells(path, columns, kept, rows)
        if not kept:
            return None
        table = Table({name: self._values(path, name, columns[name], cells.pop(name)) for name in kept})
        for name in kept:
            kind = columns[name]
            if source != "link":  # of a knowledge graph: its columns belong to other files
                self.field2source[name] = source
                self.field2type[name] = FeatureType(kind)
                if "float" in kind:
                    self.field2bucketnum[name] = 2
            self.field2seqlen[name] = max(map(len, table[name])) if kind.endswith("seq") else 1
        if is_inter:
            self._check_values(path, table)
        return table

    def _columns(self, path: Path, names: Sequence[str]) -> dict[str, str]:
        """The columns of a header and their types."""
        columns: dict[str, str] = {}
        for name in names:
            field, _, kind = name.partition(":")
            if kind not in TYPES:
                raise UserError(
                    f"{path}: found the column {name!r} in the first line, expected NAME:TYPE such as user_id:token, the types "
                    f"being {', '.join(TYPES)}, separated by field_separator ({self.config['field_separator']!r})"
                )
            if field in columns:
                raise UserError(f"{path}: found the column {field!r} twice, expected it once")
            columns[field] = kind
        return columns

    def _values(self, path: Path, name: str, kind: str, cells: list) -> np.ndarray:
        """A column as RecBole keeps it: numbers, texts with NaN for a hole, or an array for each row."""
        if kind == FLOAT:
            return np.array(cells)
        row = next((place for place, cell in enumerate(cells, 1) if "\0" in cell), None)
        if row is not None:  # numpy's texts, in which RecBole keeps ids, end before it
            raise UserError(
                f"{path}: found the character NUL in {name} of row {row}, expected text: is the file in another encoding (key encoding)?"
            )
        if kind == FeatureType.TOKEN.value:
            return np.array([math.nan if cell in HOLES else cell for cell in cells], dtype=object)
        is_float = kind == FeatureType.FLOAT_SEQ.value
        separator, limit = self.config["seq_separator"], (self.config["seq_len"] or {}).get(name)
        column = np.empty(len(cells), dtype=object)
        for place, cell in enumerate(cells):
            parts = [part for part in ("" if cell in HOLES else cell).split(separator) if part]
            try:
                column[place] = np.array([_as_float(part) for part in parts] if is_float else parts)[:limit]
            except ValueError:
                raise UserError(f"{path}: found {cell!r} as {name} in row {place + 1}, expected numbers") from None
        return column

    def _benchmark_presets(self) -> None:
        self.item_id_list_field = self.iid_field + self.config["LIST_SUFFIX"]  # RecBole reads it under this name alone
        super()._benchmark_presets()

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        if SPLITS.get(self.config["protocol"]) == READY_MADE:
            self._check_padding()

    def _check_padding(self) -> None:
        """Refuse histories that a text such as 0 fills up to one length: it would be trained and shown as an item.

        It is taken for padding where it never is a next item, stands at one end of its histories alone, beside items in two
        of them at least, twice and more in some, and all of these are of one length.
        """
        histories = self.inter_feat[self.iid_field + self.config["LIST_SUFFIX"]]
        lengths = histories.map(len).to_numpy()
        rows, items = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([[], *histories])
        again = items[1:][(items[1:] == items[:-1]) & (rows[1:] == rows[:-1])]
        place = np.arange(len(items)) - (lengths.cumsum() - lengths)[rows]
        for item in sorted(set(again) - set(self.inter_feat[self.iid_field])):
            is_it = items == item
            count = np.bincount(rows[is_it], minlength=len(lengths))
            of_length = set(lengths[count > 0])
            at_beginning = (place < count[rows])[is_it].all()
            at_end = (place >= (lengths - count)[rows])[is_it].all()
            beside_items = ((count > 0) & (count < lengths)).sum()
            if (at_beginning or at_end) and beside_items > 1 and len(of_length) == 1:
                side = "beginning" if at_beginning else "end"
                raise UserError(
                    f"{self.dataset_name}.*.inter: found {str(item)!r} {is_it.sum()} times in {(count > 0).sum()} of {len(lengths)} "
                    f"histories, only at their {side}, never as the next item, and these histories all {of_length.pop()} long: "
                    f"padding, expected items alone; delete it from {histories.name}, histories may be of any length"
                )

    def _needed(self) -> dict[str, tuple[str, str]]:
        """Column -> its type and the key that names it."""
        needed = {self.uid_field: ("token", "USER_ID_FIELD"), self.iid_field: ("token", "ITEM_ID_FIELD")}
        if SPLITS.get(self.config["protocol"]) == READY_MADE:
            needed[self.iid_field + self.config["LIST_SUFFIX"]] = ("token_seq", "ITEM_ID_FIELD and LIST_SUFFIX")
        else:
            needed[self.time_field] = ("float", "TIME_FIELD")
        return needed

    def _check_needed(self, path: Path, columns: Mapping[str, str], kept: Collection[str]) -> None:
        for name, (kind, key) in self._needed().items():
            if name not in columns:
                raise UserError(
                    f"{path}: found the columns {', '.join(columns)}, expected {name} ({key}): change the file or {key}"
                )
            if columns[name] != kind:
                raise UserError(f"{path}: found {name}:{columns[name]} ({key}), expected {name}:{kind} in the first line")
            if name not in kept:
                raise UserError(
                    f"{path}: found {kept} loaded, expected {name} ({key}) too: change load_col.inter or unload_col.inter"
                )

    def _check_values(self, path: Path, table: pd.DataFrame) -> None:
        """Refuse rows without user, item or a time that can be ordered, and those that name RecBole's padding."""
        for name, (kind, key) in self._needed().items():
            if kind == "token_seq":
                continue
            if (table[name] == PADDING).any():
                raise UserError(f"{path}: found {PADDING!r} as {name} ({key}), which RecBole keeps for its padding: rename it")
            is_missing = table[name].isin([math.nan, math.inf, -math.inf]).to_numpy()
            if is_missing.any():
                raise UserError(
                    f"{path}: found {is_missing.sum()} rows without {'a finite ' if kind == FLOAT else ''}{name} ({key}), the first: "
                    f"line {is_missing.argmax() + 2}; expected one in every row (pandas reads NA, null and None as nothing)"
                )

    def _data_filtering(self) -> None:
        for field in self.config["val_interval"] or {}:
            if field not in self.field2type:
                raise UserError(
                    f"val_interval: found {field!r}, expected loaded columns of {self.dataset_name}.inter: "
                    f"{', '.join(self.inter_feat)}; change val_interval or load_col"
                )
        before = len(self.inter_feat)
        try:
            super()._data_filtering()
        except ValueError as error:
            filters = ", ".join(f"{key} {self.config[key]!r}" for key in FILTERS)
            raise UserError(
                f"dataset {self.dataset_name}: its filters leave no interaction of {before}, expected some: {filters} ({error})"
            ) from error


def _read_cells(
    path: Path, columns: Mapping[str, str], kept: Collection[str], rows: Iterator[tuple[int, list[str]]]
) -> dict[str, list]:
    """The kept columns, cell by cell, numbers as floats; those of numbers are checked, kept or not."""
    table: dict[str, list] = {name: [] for name in columns}
    places = [
        (place, name, kind == FLOAT) for place, (name, kind) in enumerate(columns.items()) if name in kept or kind == FLOAT
    ]
    number = None
    for number, cells in rows:
        for place, name, is_float in places:
            try:
                value = _as_float(cells[place]) if is_float else cells[place]
            except ValueError:
                raise UserError(f"{path}: found {cells[place]!r} as {name} in line {number}, expected a number") from None
            if name in kept:
                table[name].append(value)
    if number is None:
        raise UserError(f"{path}: found no line below the first, expected one for each row")
    return table


def _as_float(cell: str) -> float:
    """A cell's number, NaN for a hole."""
    return math.nan if cell in HOLES else as_float(cell)
