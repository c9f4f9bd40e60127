"""RecBole's atomic files, read line by line and checked: what is wrong is told by file, line and column.

An atomic file is cells joined by ``field_separator``, one row a line, without any quoting: a quote is a character like any
other. RecBole itself gives such a file to a CSV reader, where a quote that opens a cell swallows the lines up to the next
one; it passes by a line that is too short, puts the mean in place of a missing time, and gives pandas' own errors. Here one
reader, `read_lines`, serves the checks, the tables that RecBole works on, and the titles.

A byte order mark (U+FEFF) at the beginning of a file belongs to its encoding and is dropped. At the beginning of a later
line it is refused: two files were joined there, and an id would silently become another one. Elsewhere it is text.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_llara.config.settings import READY_MADE, SPLITS
from recbole_llara.utils.compat import fill_holes
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.text import BYTE_ORDER_MARK, with_mark

TYPES = tuple(kind.value for kind in FeatureType)
FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item")
PADDING = "[PAD]"  # RecBole's name of the padding item, and of the padding user
# Cells without a value, as pandas.read_csv knows them.
_ENGLISH = ("n/a", "N/A", "NA", "<NA>", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "None")
_NUMERIC = ("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
HOLES = frozenset({"", *_ENGLISH, *_NUMERIC})


@contextmanager
def readable(path: Path, encoding: str) -> Iterator[None]:
    """Tell of a file that is not written in its encoding.

    Raises:
        UserError: it is not; the message has the byte and its line.
    """
    try:
        yield
    except UnicodeDecodeError:
        content = path.read_bytes()
        try:
            content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}: found the byte {content[error.start]:#04x} in line {line}, expected {encoding} (key encoding): save the "
                "file in that encoding, or name its own"
            ) from error
        raise


def read_lines(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of an atomic file that are not empty: their numbers, from 1, and their cells as they stand.

    Raises:
        UserError: the file is not in ``encoding``, or a byte order mark stands before a line that is not the first.
    """
    with readable(path, encoding), path.open(encoding=with_mark(encoding)) as file:
        for number, line in enumerate(file, 1):
            if line.startswith(BYTE_ORDER_MARK):
                raise UserError(
                    f"{path}: found a byte order mark (U+FEFF) before line {number}, expected it at the beginning of the file or "
                    "nowhere: were two files joined there?"
                )
            text = line.removesuffix("\n")
            if text:
                yield number, text.split(separator)


def read_rows(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """``read_lines``, each line as long as the first.

    Raises:
        UserError: a line has more or fewer columns than the first.
    """
    names: list[str] = []
    for number, cells in read_lines(path, separator, encoding):
        names = names or cells
        if len(cells) != len(names):
            columns = ", ".join(name.partition(":")[0] for name in names)
            raise UserError(
                f"{path}: found {len(cells)} columns in line {number}, expected the {len(names)} of the first line ({columns})"
            )
        yield number, cells


def read_header(path: Path, separator: str, encoding: str) -> dict[str, str]:
    """The columns of an atomic file and their types.

    Raises:
        UserError: a column has no known type or stands twice, or the file is empty.
    """
    _, names = next(read_lines(path, separator, encoding), (1, [""]))
    columns: dict[str, str] = {}
    for name in names:
        field, _, kind = name.partition(":")
        if kind not in TYPES:
            raise UserError(
                f"{path}: found the column {name!r} in the first line, expected NAME:TYPE such as user_id:token, the types being "
                f"{', '.join(TYPES)}, parted by field_separator ({separator!r})"
            )
        if field in columns:
            raise UserError(f"{path}: found the column {field!r} twice, expected it once")
        columns[field] = kind
    return columns


def read_cells(
    path: Path, columns: Mapping[str, str], kept: Mapping[str, str], separator: str, encoding: str
) -> dict[str, list[str]]:
    """Some columns of an atomic file, each a list of its cells.

    Args:
        path: the file.
        columns: of ``read_header``; those of numbers are checked, kept or not.
        kept: of them, what is wanted.
        separator, encoding: of the file.

    Raises:
        UserError: no rows, a row of another length than the header, or a text where a number belongs.
    """
    parts = list(enumerate(columns.items()))
    numbers = [(place, name) for place, (name, kind) in parts if kind == FeatureType.FLOAT.value]
    wanted = [(place, []) for place, (name, _) in parts if name in kept]
    rows = read_rows(path, separator, encoding)
    next(rows, None)
    is_empty = True
    for number, cells in rows:
        is_empty = False
        for place, name in numbers:
            if not _is_number(cells[place]):
                raise UserError(f"{path}: found {cells[place]!r} as {name} in line {number}, expected a number")
        for place, values in wanted:
            values.append(cells[place])
    if is_empty:
        raise UserError(f"{path}: found no line below the first, expected one for each row")
    return dict(zip((name for name in columns if name in kept), (values for _, values in wanted), strict=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in HOLES
    return "_" not in text  # 2024_01_31 is a number in Python's source alone


class CheckedFiles(SequentialDataset):
    """A SequentialDataset whose files and columns are checked as they are read."""

    def _fill_nan(self) -> None:
        fill_holes(self)

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        """RecBole's method, over ``read_cells`` in place of pandas' CSV reader."""
        suffix, load_col = getattr(source, "value", source), self.config["load_col"]
        if load_col is not None and suffix not in load_col and suffix != FeatureSource.INTERACTION.value:
            return None  # titles are read by data/titles.py, and nothing else of the file
        path, separator = Path(filepath), self.config["field_separator"]
        encoding = self.config["encoding"] or "utf-8"
        columns = read_header(path, separator, encoding)
        wanted = (load_col or {}).get(suffix)
        for name in wanted if isinstance(wanted, list | tuple) else ():
            if name not in columns:
                hint = nearest(name, columns)
                raise UserError(f"load_col.{suffix}: found {name!r}, expected columns of {path}: {', '.join(columns)}; {hint}")
        if suffix == FeatureSource.INTERACTION.value:
            self._check_needed(path, columns, wanted)
        loaded, unloaded = self._get_load_and_unload_col(source)
        kept = {
            name: kind for name, kind in columns.items() if (loaded is None or name in loaded) and name not in (unloaded or ())
        }
        cells = read_cells(path, columns, kept, separator, encoding)
        if not kept:
            return None
        table = pd.DataFrame({name: self._values(path, name, kind, cells.pop(name)) for name, kind in kept.items()})
        self._note_columns(source, kept, table)
        if suffix == FeatureSource.INTERACTION.value:
            self._check_values(path, table)
        return table

    def _values(self, path: Path, name: str, kind: str, cells: list[str]) -> Any:
        """A column as RecBole keeps it: numbers, texts with NaN for a hole, or an array for each row."""
        if kind == FeatureType.FLOAT.value:
            return np.array([math.nan if cell in HOLES else float(cell) for cell in cells])
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
            if is_float and not all(map(_is_number, parts)):
                raise UserError(f"{path}: found {cell!r} as {name} in row {place + 1}, expected numbers")
            column[place] = np.array(list(map(float, parts)) if is_float else parts)[:limit]
        return column

    def _note_columns(self, source: Any, kept: Mapping[str, str], table: pd.DataFrame) -> None:
        """Tell RecBole the type, the file and the greatest length of each column."""
        for name, kind in kept.items():
            if source != "link":  # of a knowledge graph: its columns belong to other files
                self.field2source[name] = source
                self.field2type[name] = FeatureType(kind)
                if "float" in kind:
                    self.field2bucketnum[name] = 2
            self.field2seqlen[name] = max(map(len, table[name])) if kind.endswith("seq") else 1

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
            holds = count > 0
            sides = {"beginning": (place < count[rows])[is_it], "end": (place >= (lengths - count)[rows])[is_it]}
            side = next((name for name, is_there in sides.items() if is_there.all()), None)
            if side is not None and (holds & (count < lengths)).sum() > 1 and len(set(lengths[holds])) == 1:
                raise UserError(
                    f"{self.dataset_name}.*.inter: found {item!r} {is_it.sum()} times in {holds.sum()} of {len(lengths)} histories, only at "
                    f"their {side}, never as the next item, and these histories all {lengths[holds][0]} long: padding, expected items "
                    f"alone; delete it from {histories.name}, histories may be of any length"
                )

    def _needed(self) -> dict[str, tuple[str, str]]:
        """Column -> its type and the key that names it."""
        needed = {self.uid_field: ("token", "USER_ID_FIELD"), self.iid_field: ("token", "ITEM_ID_FIELD")}
        if SPLITS.get(self.config["protocol"]) == READY_MADE:
            needed[self.iid_field + self.config["LIST_SUFFIX"]] = ("token_seq", "ITEM_ID_FIELD and LIST_SUFFIX")
        else:
            needed[self.time_field] = ("float", "TIME_FIELD")
        return needed

    def _check_needed(self, path: Path, columns: dict[str, str], wanted: Any) -> None:
        unloaded = set((self.config["unload_col"] or {}).get("inter") or ())
        for name, (kind, key) in self._needed().items():
            if name not in columns:
                raise UserError(
                    f"{path}: found the columns {', '.join(columns)}, expected {name} ({key}): change the file or {key}"
                )
            if columns[name] != kind:
                raise UserError(f"{path}: found {name}:{columns[name]} ({key}), expected {name}:{kind} in the first line")
            if wanted not in (None, "*") and name not in wanted:
                raise UserError(
                    f"load_col.inter: found {list(wanted)!r}, expected {name} ({key}) too: add it to load_col.inter"
                )
            if name in unloaded:
                raise UserError(f"unload_col.inter: found {name!r}, expected {name} ({key}) to be loaded")

    def _check_values(self, path: Path, table: pd.DataFrame) -> None:
        """Refuse rows without user, item or a time that can be ordered, and those that name RecBole's padding."""
        for name, (kind, key) in self._needed().items():
            if kind == "token_seq":
                continue
            if (table[name] == PADDING).any():
                raise UserError(f"{path}: found {PADDING!r} as {name} ({key}), which RecBole keeps for its padding: rename it")
            is_missing = table[name].isna()
            if kind == "float":
                is_missing |= table[name].abs() == math.inf
            if is_missing.any():
                raise UserError(
                    f"{path}: found {int(is_missing.sum())} rows without {'a finite ' if kind == 'float' else ''}{name} ({key}), the "
                    f"first: line {int(is_missing.to_numpy().argmax()) + 2}; expected one in every row (pandas reads NA, null and "
                    "None as nothing)"
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
