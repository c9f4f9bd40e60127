"""RecBole's atomic files, checked before and after RecBole reads them: what is wrong is told by file, line and column.

RecBole itself passes by a line that is too short, puts the mean in place of a missing time, and gives pandas' own errors.
"""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureType

from recbole_llara.data.protocol import READY_MADE
from recbole_llara.errors import UserError, nearest

TYPES = tuple(kind.value for kind in FeatureType)
FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item")


@contextmanager
def readable(path: Path, encoding: str) -> Iterator[None]:
    """Tell of a file that cannot be read as text of columns.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: found the byte {error.object[error.start]:#04x} at {error.start}, expected {encoding} (key encoding): save the "
            "file in that encoding, or name its own"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}: found a line that is no row of columns ({error}), expected an atomic file") from error


def read_header(path: Path, separator: str, encoding: str) -> dict[str, str]:
    """The columns of an atomic file and their types.

    Raises:
        UserError: a column has no known type or stands twice, or the file is empty.
    """
    with readable(path, encoding), path.open(encoding=encoding) as file:
        names = file.readline().rstrip("\n").split(separator)
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


def check_lines(path: Path, columns: dict[str, str], separator: str, encoding: str) -> None:
    """Refuse a file without rows, with rows of another length than its header, or with texts where numbers belong.

    Raises:
        UserError: the first such line.
    """
    numbers = [place for place, kind in enumerate(columns.values()) if kind == FeatureType.FLOAT.value]
    names = list(columns)
    is_empty = True
    with readable(path, encoding), path.open(encoding=encoding, newline="") as file:
        lines = csv.reader(file, delimiter=separator)
        next(lines, None)
        for line in lines:
            if not line:
                continue
            is_empty = False
            if len(line) != len(columns):
                raise UserError(
                    f"{path}: found {len(line)} columns in line {lines.line_num}, expected the {len(columns)} of the first line "
                    f"({', '.join(names)})"
                )
            for place in numbers:
                if not _is_number(line[place]):
                    raise UserError(
                        f"{path}: found {line[place]!r} as {names[place]} in line {lines.line_num}, expected a number"
                    )
    if is_empty:
        raise UserError(f"{path}: found no line below the first, expected one for each row")


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return text in ("NA", "N/A", "NULL", "null", "None", "n/a", "<NA>")  # what pandas takes for a hole
    return True


class CheckedFiles(SequentialDataset):
    """A SequentialDataset whose files and columns are checked as they are read."""

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        suffix, load_col = getattr(source, "value", source), self.config["load_col"]
        if load_col is not None and suffix not in load_col and suffix != "inter":
            return None  # titles are read by data/titles.py, and nothing else of the file
        path, separator = Path(filepath), self.config["field_separator"]
        encoding = self.config["encoding"] or "utf-8"
        columns = read_header(path, separator, encoding)
        wanted = (load_col or {}).get(suffix)
        for name in wanted if isinstance(wanted, list | tuple) else ():
            if name not in columns:
                hint = nearest(name, columns)
                raise UserError(f"load_col.{suffix}: found {name!r}, expected columns of {path}: {', '.join(columns)}; {hint}")
        if suffix == "inter":
            self._check_needed(path, columns, wanted)
        check_lines(path, columns, separator, encoding)
        table = super()._load_feat(filepath, source)
        if suffix == "inter":
            self._check_values(path, table)
        return table

    def _needed(self) -> dict[str, tuple[str, str]]:
        """Column -> its type and the key that names it."""
        needed = {self.uid_field: ("token", "USER_ID_FIELD"), self.iid_field: ("token", "ITEM_ID_FIELD")}
        if self.config["split_protocol"] == READY_MADE:
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
        """Refuse rows without user, item or a time that can be ordered."""
        for name, (kind, key) in self._needed().items():
            if kind == "token_seq":
                continue
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
