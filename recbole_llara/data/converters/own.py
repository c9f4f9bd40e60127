"""Tables of the user's own: ``generic`` (any catalogue, with the user's column names) and ``windows`` (ready-made rows)."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import pandas as pd

from recbole_llara.data.converters import SPLITS
from recbole_llara.data.tables import Malformed, Rows, Tables, raw_rows, read_rows
from recbole_llara.utils.errors import UserError, nearest

CHUNK = 200_000  # rows read at a time
# The columns of each file and RecBole's types.
COLUMNS = {
    "inter": {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"},
    "item": {"item_id": "token", "title": "token_seq", "release_year": "token", "class": "token_seq"},
}
OPTIONAL = frozenset({"rating", "release_year", "class"})


def generic(options: Namespace) -> Tables:
    """Interactions and items of two files: CSV, TSV or Parquet."""
    if options.inter is None or options.item is None:
        raise UserError("generic: expected --inter FILE and --item FILE")
    columns = _parse_columns(options.columns or "")
    files = {kind: _table(getattr(options, kind), kind, columns, options.quoting) for kind in COLUMNS}
    return Tables(options.dataset or Path(options.inter.name.removesuffix(".gz")).stem, files)


def _parse_columns(text: str) -> dict[str, str]:
    """``user_id=uid,title=name`` as our column -> theirs."""
    known = {*COLUMNS["inter"], *COLUMNS["item"]}
    columns = {}
    for part in filter(None, text.split(",")):
        ours, equals, theirs = part.partition("=")
        if not equals or ours not in known:
            raise UserError(
                f"columns: found {part!r}, expected OURS=YOURS with OURS of {', '.join(sorted(known))}; {nearest(ours, known)}"
            )
        columns[ours] = theirs
    return columns


def _table(path: Path, kind: str, columns: Mapping[str, str], quoting: str | None) -> tuple[Sequence[str], Rows]:
    """RecBole's header and the rows of one file."""
    if not path.is_file():
        raise UserError(f"{kind}: found no file {path}")
    chunks = _chunks(path, quoting)
    first = next(chunks, None)
    if first is None or not len(first):
        raise UserError(f"{kind}: {path} has no rows")
    there = [str(name) for name in first.columns]
    theirs = {name: columns.get(name, name) for name in COLUMNS[kind]}
    theirs = {name: their for name, their in theirs.items() if their in there or name not in OPTIONAL}
    for name, their in theirs.items():
        if their not in there:
            raise UserError(
                f"{kind}: {path} has the columns {', '.join(there)}, expected {their!r} for {name}: --columns {name}=YOURS"
            )
        if there.count(their) > 1:
            raise UserError(f"{kind}: {path} has the column {their!r} twice, expected it once")

    def rows() -> Iterator[Sequence[object]]:
        number = 0
        for chunk in chain([first], chunks):
            table = chunk[list(theirs.values())].set_axis(list(theirs), axis=1)
            missing = table.isna().any(axis=1).to_numpy()
            if missing.any():
                row = number + int(missing.argmax()) + 1
                raise UserError(
                    f"{kind}: row {row} of {path} has an empty cell among {', '.join(theirs.values())}, expected none"
                )
            number += len(chunk)
            if "timestamp" in table:
                table["timestamp"] = _seconds(table["timestamp"], path)
            yield from table.itertuples(index=False, name=None)

    return [f"{name}:{COLUMNS[kind][name]}" for name in theirs], rows()


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
    is_tsv = Path(path.name.removesuffix(".gz")).suffix in (".tsv", ".txt")
    quoting = quoting or ("none" if is_tsv else "csv")
    hint = "; where cells stand in quotes, give --quoting csv" if quoting == "none" else ""
    rows = (cells for _, cells in read_rows(path, "\t" if is_tsv else ",", quoting=quoting, hint=hint))
    header = next(rows, [])
    while chunk := list(islice(rows, CHUNK)):
        table = pd.DataFrame(chunk, columns=header, dtype=object)
        yield table.mask(table == "")


def _seconds(column: pd.Series, path: Path) -> pd.Series:
    """Numbers as they are; dates as seconds since 1970."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
        if not numbers.isna().any():
            return numbers
    dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    if dates.isna().any():
        wrong = column[dates.isna()].iloc[0]
        raise UserError(f"timestamp: found {wrong!r} in {path}, expected a number or a date such as 2024-01-31")
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


def windows(options: Namespace) -> Tables:
    """Ready-made windows, such as those that LLaRA's authors released: a history and the next item a row, already split.

    The files are tables with tabs between their columns: ``seq`` (item numbers parted by blanks, padded on the right; any
    name that begins so), ``len_seq`` (how many of them count) and ``next``; titles in ``item_id`` and ``title``. A row names
    no user, so each is a user of its own: a negative may be anything outside the row.
    """
    missing = [f"--{key}" for key in (*SPLITS, "item", "dataset") if getattr(options, key) is None]
    if missing:
        raise UserError(
            f"windows: found no {', '.join(missing)}, expected --train, --valid, --test, --item FILE and --dataset NAME"
        )
    number, title = _places(options.item, ("item_id", "title"))

    def parse_item(line: str) -> tuple[str, str]:
        cells = line.split("\t")
        if len(cells) <= max(number, title) or not cells[number].isdecimal() or not cells[title].strip():
            raise Malformed(line, "item_id and title")
        return cells[number], cells[title]

    titles = dict(raw_rows(options.item, parse_item, options.max_malformed, header=1))
    header = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    files = {
        f"{split}.inter": (header, _windows(split, getattr(options, split), titles, options.max_malformed)) for split in SPLITS
    }
    files["item"] = (("item_id:token", "title:token_seq"), titles.items())
    return Tables(options.dataset, files, differences=["each window is a user of its own: the files name none"])


def _windows(split: str, path: Path, titles: Mapping[str, str], max_malformed: float) -> Iterator[tuple[str, str, str]]:
    """(user, history, target) of one file."""
    history, length, following = _places(path, ("seq", "len_seq", "next"))

    def parse(line: str) -> tuple[str, str]:
        cells = line.split("\t")
        if len(cells) <= max(history, length, following) or not cells[length].isdecimal():
            raise Malformed(line, "a history, its length and the next item")
        items = cells[history].split()[: int(cells[length])]
        if len(items) != int(cells[length]) or not items:
            raise Malformed(line, f"as many items as len_seq {cells[length]} says, at least one")
        for item in (*items, cells[following]):
            if item not in titles:
                raise Malformed(item, "an item with a title")
        return " ".join(items), cells[following]

    for row, (items, target) in enumerate(raw_rows(path, parse, max_malformed, header=1)):
        yield f"{split}-{row}", items, target


def _places(path: Path, wanted: tuple[str, ...]) -> list[int]:
    """Where the columns stand that begin with the wanted names."""
    _, header = next(read_rows(path, "\t"), (1, []))
    places = [next((place for place, name in enumerate(header) if name.startswith(begin)), None) for begin in wanted]
    if None in places:
        raise UserError(f"windows: {path} has the columns {', '.join(header)}, expected {', '.join(wanted)}, tabs between them")
    return places
