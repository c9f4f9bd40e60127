"""Any catalogue: interactions and items as CSV, TSV or Parquet, with the user's own column names."""

import csv
import gzip
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import pandas as pd

from recbole_llara.data.converters.tables import Tables
from recbole_llara.utils.errors import UserError, nearest

CHUNK = 200_000  # rows read at a time
NEEDED = {"inter": ("user_id", "item_id", "timestamp"), "item": ("item_id", "title")}
OPTIONAL = {"inter": ("rating",), "item": ("release_year", "class")}
TYPES = {"rating": "float", "timestamp": "float", "title": "token_seq", "class": "token_seq"}


def parse_columns(text: str | None) -> dict[str, str]:
    """``user_id=uid,title=name`` as a dict.

    Raises:
        UserError: a part is no pair, or names no column of ours.
    """
    known = {name for names in (*NEEDED.values(), *OPTIONAL.values()) for name in names}
    columns = {}
    for part in (text or "").split(","):
        if not part:
            continue
        ours, equals, theirs = part.partition("=")
        if not equals or ours not in known:
            raise UserError(
                f"columns: found {part!r}, expected OURS=YOURS with OURS of {', '.join(sorted(known))}; {nearest(ours, known)}"
            )
        columns[ours] = theirs
    return columns


def from_options(options: Namespace) -> tuple[str, Tables]:
    """The dataset's name and tables; see ``converters.CONVERTERS``."""
    if options.inter is None or options.item is None:
        raise UserError("generic: expected --inter FILE and --item FILE")
    name = options.dataset or Path(options.inter.name.removesuffix(".gz")).stem
    return name, convert(options.inter, options.item, parse_columns(options.columns), options.quoting)


def convert(inter: Path, item: Path, columns: Mapping[str, str], quoting: str | None = None) -> Tables:
    """Interactions and items of two files.

    Args:
        columns: our column -> theirs, where they differ.
        quoting: one of ``QUOTINGS``; None = none for TSV, csv for all others.
    """
    interaction_columns, interactions = _table(inter, "inter", columns, quoting)
    item_columns, items = _table(item, "item", columns, quoting)
    return Tables(interaction_columns, interactions, item_columns, items)


def _table(
    path: Path, kind: str, columns: Mapping[str, str], quoting: str | None
) -> tuple[Sequence[str], Iterator[Sequence[object]]]:
    """RecBole's header and the rows of one file."""
    if not path.is_file():
        raise UserError(f"{kind}: found no file {path}")
    chunks = _chunks(path, quoting)
    first = next(chunks, None)
    if first is None or not len(first):
        raise UserError(f"{kind}: {path} has no rows")
    there = [str(name) for name in first.columns]
    names = [name for name in (*NEEDED[kind], *OPTIONAL[kind]) if columns.get(name, name) in there or name in NEEDED[kind]]
    for name in names:
        if columns.get(name, name) not in there:
            raise UserError(
                f"{kind}: {path} has the columns {', '.join(there)}, expected {columns.get(name, name)!r} for {name}: "
                f"--columns {name}=YOURS"
            )
    source = [columns.get(name, name) for name in names]
    twice = next((name for name in source if there.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{kind}: {path} has the column {twice!r} twice, expected it once")

    def rows() -> Iterator[Sequence[object]]:
        number = 0
        for chunk in _with_first(first, chunks):
            table = chunk[source]
            missing = table.isna().any(axis=1)
            if missing.any():
                row = number + int(missing.to_numpy().nonzero()[0][0]) + 1
                raise UserError(f"{kind}: row {row} of {path} has an empty cell among {', '.join(source)}, expected none")
            number += len(chunk)
            if "timestamp" in names:
                table = table.assign(
                    **{columns.get("timestamp", "timestamp"): _seconds(table[columns.get("timestamp", "timestamp")], path)}
                )
            yield from table.itertuples(index=False, name=None)

    return [f"{name}:{TYPES.get(name, 'token')}" for name in names], rows()


def _with_first(first: pd.DataFrame, rest: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield first
    yield from rest


def _chunks(path: Path, quoting: str | None) -> Iterator[pd.DataFrame]:
    """The file in pieces, every cell as text where the format has no types."""
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise UserError(f"{path} is Parquet, which needs pyarrow: pip install 'pyarrow<22'") from error
        try:
            for batch in ParquetFile(path).iter_batches(CHUNK):
                yield batch.to_pandas()
        except (ArrowException, OSError) as error:
            raise UserError(f"{path} cannot be read as Parquet ({error})") from error
        return
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    is_tsv = suffix in (".tsv", ".txt")
    quoting = quoting or ("none" if is_tsv else "csv")
    try:
        rows = _rows(path, "\t" if is_tsv else ",", quoting)
        header = next(rows, [])
        while chunk := list(islice(rows, CHUNK)):
            table = pd.DataFrame(chunk, columns=header, dtype=object)
            yield table.mask(table == "")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as {'TSV' if is_tsv else 'CSV'} of UTF-8 ({error})") from error


def _rows(path: Path, separator: str, quoting: str) -> Iterator[list[str]]:
    """The rows of a table of text, its header among them, each as long as that.

    Raises:
        UserError: a row is of another length, or a quote that opens a cell is never closed; the message has the line.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    # A CSV reader wants line ends as they are.
    with opened(path, "rt", encoding="utf-8-sig", newline=None if quoting == "none" else "") as file:
        length = 0
        for number, row in _plain(file, separator) if quoting == "none" else _quoted(file, separator, path):
            length = length or len(row)
            if len(row) != length:
                hint = "; where cells stand in quotes, give --quoting csv" if quoting == "none" else ""
                raise UserError(
                    f"{path}: found {len(row)} columns in line {number}, expected the {length} of the first line{hint}"
                )
            yield row


def _plain(file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, 1):
        if text := line.removesuffix("\n"):
            yield number, text.split(separator)


def _quoted(file: TextIO, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {number}: a quote opens a cell there and is not closed as in CSV ({error}); where quotes are text, give "
                f"--quoting none; where cells are parted by another mark than {separator!r}, change that"
            ) from error
        if row is None:
            return
        if row:
            yield number, row


def _seconds(column: pd.Series, path: Path) -> pd.Series:
    """Numbers as they are; dates as seconds since 1970."""
    if pd.api.types.is_datetime64_any_dtype(column):
        moments = column.dt.tz_localize("UTC") if column.dt.tz is None else column
        return (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    numbers = pd.to_numeric(column, errors="coerce")
    if not numbers.isna().any():
        return numbers
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        wrong = column[dates.isna()].iloc[0]
        raise UserError(f"timestamp: found {wrong!r} in {path}, expected a number or a date such as 2024-01-31")
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
