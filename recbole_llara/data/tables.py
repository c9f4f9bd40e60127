"""Tables of text: read strictly, read from raw files with malformed lines counted, and written as RecBole's atomic files.

An atomic file is cells joined by a separator, one row a line, without any quoting: a quote is a character like any other.

A byte order mark (U+FEFF) at the beginning of a file belongs to its encoding and is dropped. At the beginning of a later
line it is refused: two files were joined there, and an id would silently become another one. Elsewhere it is text.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import math
import re
import sys
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TextIO

from tqdm import tqdm

from recbole_llara.utils.atomic import write_folder
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import BYTE_ORDER_MARK, with_mark

_TIME = "timestamp:float"
EXAMPLES = 3  # rows of a dataset that a report shows
SHOWN = 5  # malformed lines that a message repeats
PADDING = "[PAD]"  # RecBole's name of the padding item, and of the padding user
# Cells without a value, as pandas.read_csv knows them.
_ENGLISH = ("n/a", "N/A", "NA", "<NA>", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "None")
_NUMERIC = ("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
HOLES = frozenset({"", *_ENGLISH, *_NUMERIC})


class Malformed(ValueError):
    """A line that is not what its file should hold."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found[:60]!r}, expected {expected}")


def as_float(cell: str) -> float:
    """A cell's number; raises ``ValueError``. 2024_01_31 is a number in Python's source alone."""
    if "_" in cell:
        raise ValueError(f"found {cell!r}, expected a number")
    return float(cell)


@contextmanager
def readable(path: Path, encoding: str) -> Iterator[None]:
    """Tell of a file that breaks off or is not written in its encoding.

    Raises:
        UserError: it is so; for an encoding the message has the byte and its line.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} breaks off or is damaged ({error}): fetch it again") from error
    except UnicodeDecodeError:
        with opener(path)(path, "rb") as file:
            content = file.read()
        try:
            content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}: found the byte {content[error.start]:#04x} in line {line}, expected {encoding} (key encoding): save the "
                "file in that encoding, or name its own"
            ) from error
        raise


def opener(path: Path) -> Callable[..., IO]:
    """What opens a file: ``open``, or the like for what its first bytes say it is compressed by, whatever it is called."""
    with open(path, "rb") as file:
        begin = file.read(10)
    return next((opens for magic, opens in _COMPRESSED.items() if re.match(magic, begin)), open)


def _open_zip(path: Path, mode: str, encoding: str | None = None, newline: str | None = None) -> IO:
    """The one file of an archive."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if "[Content_Types].xml" in names:
            raise UserError(f"{path} is a workbook of Excel, expected text: save it as CSV UTF-8")
        if len(names) != 1:
            raise UserError(f"{path} holds {len(names)} files ({', '.join(names[:SHOWN])}), expected one: unpack it")
        member = archive.open(names[0])  # stays open
    return io.TextIOWrapper(member, encoding, newline=newline) if mode == "rt" else member


_COMPRESSED: dict[bytes, Callable[..., IO]] = {
    rb"\x1f\x8b": gzip.open,
    rb"BZh[1-9]1AY&SY": bz2.open,
    rb"\xfd7zXZ\x00": lzma.open,
    rb"PK\x03\x04": _open_zip,
}


def read_rows(
    path: Path, separator: str, encoding: str = "utf-8", quoting: str = "none", hint: str = ""
) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table that are not empty: their numbers, from 1, and their cells, the header among them.

    Args:
        path: plain text, or compressed by gzip, bzip2, xz or zip.
        quoting: none = cells as they stand; csv = they may stand in quotes, in which a quote is doubled; escaped = in which a
            backslash stands before it.
        hint: what to try where a line has another number of cells than the first.

    Raises:
        UserError: no such file, another encoding, a byte order mark before a later line, a line with more or fewer cells than
            the first, or a quote that is never closed.
    """
    if not path.is_file():
        raise UserError(f"found no file {path}")
    is_csv = quoting != "none"
    names: list[str] = []
    # A CSV reader wants line ends as they are.
    newline = "" if is_csv else None
    with readable(path, encoding), opener(path)(path, "rt", encoding=with_mark(encoding), newline=newline) as file:
        for number, cells in _quoted(file, separator, path, quoting == "escaped") if is_csv else _plain(file, separator):
            if cells[0].startswith(BYTE_ORDER_MARK):
                raise UserError(
                    f"{path}: found a byte order mark (U+FEFF) before line {number}, expected it at the beginning of the file or "
                    "nowhere: were two files joined there?"
                )
            names = names or cells
            if len(cells) != len(names):
                raise UserError(
                    f"{path}: found {len(cells)} columns in line {number}, expected the {len(names)} of the first line "
                    f"({', '.join(name.partition(':')[0] for name in names)}){hint}"
                )
            yield number, cells


def _plain(file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, 1):
        if text := line.removesuffix("\n"):
            yield number, text.split(separator)


def _quoted(file: TextIO, separator: str, path: Path, is_escaped: bool) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator, strict=True, escapechar="\\" if is_escaped else None)
    number = 1
    try:
        for row in reader:
            if row:
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {number}: a quote opens a cell there and is not closed as in CSV ({error}); where quotes are text, give "
            f"--quoting none; where a backslash stands before a quote that is text, --quoting escaped; where cells are separated by "
            f"another mark than {separator!r}, --separator"
        ) from error


def raw_folder(options: Namespace) -> Path:
    """The folder of the raw files; raises ``UserError`` where none is given."""
    if options.raw is None:
        raise UserError(f"{options.name}: expected --raw DIR, the folder of the raw files")
    return options.raw


def raw_rows(
    path: Path, parse: Callable[[str], object], max_malformed: float, header: int = 0, encoding: str = "utf-8"
) -> Iterator:
    """The rows of a raw file, with a progress bar over its bytes.

    Args:
        path: plain text or gzip.
        parse: from a line, without its end, to a row, or None for a line to be passed over; raises ``Malformed``.
        max_malformed: (share) of lines that may be malformed; they are left out.
        header: lines to be passed over at the beginning.

    Raises:
        UserError: no such file, a truncated gzip, another encoding, or too many malformed lines.
    """
    if not path.is_file():
        there = ", ".join(sorted(path.name for path in path.parent.glob("*"))[:10]) or "nothing"
        raise UserError(f"raw: found no {path.name} in {path.parent} (there: {there})")
    marked = with_mark(encoding)
    count = malformed = 0
    examples: list[str] = []
    is_quiet = not sys.stderr.isatty()
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=is_quiet)
    with bar, open(path, "rb") as raw, readable(path, encoding):
        for number, line in enumerate(gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw):
            if number % 10_000 == 0:
                bar.update(raw.tell() - bar.n)
            if number < header:
                continue
            if number == 0 and line.startswith(codecs.BOM_UTF8) and marked == encoding:
                raise UserError(f"raw: {path} begins with the byte order mark of UTF-8, expected {encoding}: save it in that")
            count += 1
            try:
                row = parse(line.decode(encoding if number else marked).rstrip("\r\n"))
            except (Malformed, UnicodeDecodeError) as error:
                malformed += 1
                if len(examples) < SHOWN:
                    examples.append(f"line {number + 1}: {error}")
                # A file of another kind is found out at once, not after a gigabyte.
                if malformed == count == 1000 and max_malformed < 1:
                    break
                continue
            if row is not None:
                yield row
        bar.update(raw.tell() - bar.n)
    if malformed:
        sys.stderr.write(f"{path.name}: {malformed:,} of {count:,} lines left out: {'; '.join(examples)}\n")
    if malformed > max_malformed * count:
        raise UserError(
            f"raw: {malformed:,} of {count:,} lines of {path} are malformed, expected at most {max_malformed:.3%} "
            f"(--max_malformed): {'; '.join(examples)}"
        )


Rows = Iterable[Sequence[object]]


@dataclass(frozen=True)
class Tables:
    """What a converter makes.

    Args:
        name: of the dataset.
        files: ending of an atomic file -> RecBole's header, such as ``user_id:token``, and rows in its order: ``inter``, whose
            first columns are user and item, and ``item``. Ready-made rows (user, history, target) are ``train.inter``,
            ``valid.inter`` and ``test.inter``.
        published: the papers' statistics, by ``sequences``, ``items`` and ``interactions``.
        differences: why the counts are not the published ones.
        notes: what was found in the raw files, changed and left out.
        warnings: what everybody who uses the dataset should know.
    """

    name: str
    files: Mapping[str, tuple[Sequence[str], Rows]]
    published: Mapping[str, int] = field(default_factory=dict)
    differences: Sequence[str] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass
class Written:
    """What a dataset holds.

    Attributes:
        per_user: interactions, or ready-made rows, of each user.
        items: that have an interaction, or are a target.
        times: the first and the last; None where there are none.
        examples: the first rows of interactions, as they are written, with their item's title.
    """

    per_user: Counter[str] = field(default_factory=Counter)
    items: set[str] = field(default_factory=set)
    times: tuple[float, float] | None = None
    examples: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """By what the papers call them."""
        return {"sequences": len(self.per_user), "items": len(self.items), "interactions": self.per_user.total()}


def dataset_folder(out: Path, name: str, overwrite: bool) -> Path:
    """Where a dataset is written.

    Raises:
        UserError: something is there already, or the name is none of a folder.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(
            f"dataset: found {name!r}, expected the name of a folder, without the folders above it, which --out is for"
        )
    folder = out / name
    if folder.exists() and not overwrite:
        raise UserError(f"out: {folder} is there already; choose another folder, or give --overwrite")
    if any(place.exists() and not place.is_dir() for place in (out, folder)):
        raise UserError(f"out: found a file at {folder} or {out}, expected a folder or nothing")
    return folder


def write_dataset(tables: Tables, out: Path, overwrite: bool = False) -> Written:
    """Write ``<out>/<name>/<name>.inter`` (of windows one a split) and ``.item``, all of them or none.

    Raises:
        UserError: the folder is there already, no interaction is left, or a cell holds what an atomic file cannot.
    """
    folder = dataset_folder(out, tables.name, overwrite)
    written, titles = Written(), {}

    def counted(columns: Sequence[str], rows: Rows, item: int) -> Rows:
        time = columns.index(_TIME) if _TIME in columns else None
        first, last, per_user, items = math.inf, -math.inf, written.per_user, written.items
        for row in rows:
            per_user[row[0]] += 1
            items.add(row[item])
            if time is not None:
                now = float(row[time])
                first, last = now if now < first else first, now if now > last else last
            if len(written.examples) < EXAMPLES:
                written.examples.append((*map(str, row), row[item]))
            yield row
        written.times = (first, last) if first <= last else None

    def with_titles(columns: Sequence[str], rows: Rows) -> Rows:
        shown = {example[-1] for example in written.examples}
        title = next((place for place, name in enumerate(columns) if name.endswith("title:token_seq")), None)
        for row in rows:
            if row[0] in shown and title is not None:
                titles.setdefault(row[0], str(row[title]))
            yield row

    def fill(temporary: Path) -> None:
        for ending, (columns, rows) in sorted(tables.files.items(), key=lambda file: file[0] == "item"):
            if ending.endswith("inter"):
                rows = counted(columns, rows, 1 if ending == "inter" else 2)
            else:
                rows = with_titles(columns, rows)
            _write(temporary / f"{tables.name}.{ending}", columns, rows)
        if not written.per_user:
            raise UserError("raw: no interaction is left, expected at least one")

    write_folder(folder, fill)
    written.examples = [(*example[:-1], titles.get(example[-1], "")) for example in written.examples]
    return written


def _write(path: Path, columns: Sequence[str], rows: Rows) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("\t".join(columns) + "\n")
        for row in rows:
            line = "\t".join(map(str, row))
            if line.count("\t") >= len(row) or "\n" in line or "\r" in line:
                line = "\t".join(_one_line(str(cell)) for cell in row)
            if line.startswith(BYTE_ORDER_MARK):
                raise UserError(f"raw: found a byte order mark (U+FEFF) before the row {line!r}: were two files joined there?")
            try:
                file.write(line + "\n")
            except UnicodeEncodeError:
                raise UserError(f"raw: found half of a surrogate pair, which is no character, in the row {line!r}") from None


def _one_line(text: str) -> str:
    """A cell without tabs and line breaks, which part cells and rows."""
    return " ".join(text.split()) if any(mark in text for mark in "\t\r\n") else text
