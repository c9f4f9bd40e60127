"""A table as somebody saved it: what its separator, quotes, encoding and columns are, and its rows in batches of texts.

Text (CSV and its kin), JSON (objects one after another, or in an array) and Parquet. What is not said by an option is found in the
file, and told in ``notes`` where it may be wrong.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from recbole_llara.config.columns import NAMES, columns_like
from recbole_llara.data.tables import opener, read_rows, readable
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import with_mark

BATCH = 20_000  # rows read at a time
_SEPARATORS = (",", ";", "\t", "|", "::")
_SPOKEN = {"tab": "\t", "\\t": "\t"}  # separators that a command line cannot hold
_SAMPLE = 1 << 16  # (characters) by which a separator is found
_BLOCK = 1 << 20  # (bytes or characters) read at a time
_LONGEST_OBJECT = 1 << 26  # (characters) of JSON
_KEYS_OF = 1000  # objects whose keys are the columns
# An accented letter of Western Europe mostly stands between letters of ASCII; in other alphabets few do.
_MOST_BESIDE = 0.25
_ACCENTED = re.compile(rb"[\w\x80-\xff]*[\x80-\xff][\w\x80-\xff]*")  # words of such letters
_ATOMIC_TYPE = re.compile(r":(token|float)(_seq)?$")


@dataclass(frozen=True)
class RawTable:
    """A file that can be read.

    Args:
        path: of the file.
        form: text, json or parquet.
        columns: their names; "" for a column without one.
        separator, quoting, encoding: of text; quoting as in ``tables.read_rows``.
        has_header: of text, whether the first line names the columns.
        notes: what was found rather than given, and may be wrong.
    """

    path: Path
    form: str
    columns: Sequence[str]
    encoding: str = "utf-8"
    separator: str = ""
    quoting: str = "none"
    has_header: bool = True
    notes: Sequence[str] = field(default_factory=list)

    def batches(self, wanted: Sequence[str]) -> Iterator[list[Sequence[str]]]:
        """The wanted columns of some rows after another, each a sequence of texts, "" where a cell is empty.

        Raises:
            UserError: the file breaks off, or a line is not what its format asks for.
        """
        if not wanted:
            return
        read = {"text": self._text_rows, "json": self._json_rows, "parquet": self._parquet_rows}[self.form]
        rows = read(wanted)
        with tqdm(unit=" rows", unit_scale=True, desc=self.path.name, disable=not sys.stderr.isatty()) as bar:
            while batch := list(islice(rows, BATCH)):
                bar.update(len(batch))
                yield list(zip(*batch, strict=True))

    def _text_rows(self, wanted: Sequence[str]) -> Iterator[list[str]]:
        places = [self.columns.index(name) for name in wanted]
        hint = {
            "none": "; where cells stand in quotes, give --quoting csv",
            "csv": f"; a cell that holds {self.separator!r} has to stand in quotes; where quotes are text, give --quoting none, where a "
            "backslash stands before them, --quoting escaped",
        }.get(self.quoting, "")
        rows = read_rows(self.path, self.separator, self.encoding, self.quoting, hint)
        for _, cells in islice(rows, int(self.has_header), None):
            yield [cells[place] for place in places]

    def _json_rows(self, wanted: Sequence[str]) -> Iterator[list[str]]:
        for found in json_objects(self.path, self.encoding):
            cells = _flat(found)
            yield [cells.get(name, "") for name in wanted]

    def _parquet_rows(self, wanted: Sequence[str]) -> Iterator[tuple[str, ...]]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            for batch in ParquetFile(self.path).iter_batches(BATCH, columns=list(wanted)):
                table = batch.to_pandas()
                yield from zip(*(_as_texts(table[name]) for name in wanted), strict=True)
        except (ArrowException, OSError) as error:
            raise UserError(f"{self.path} cannot be read as Parquet ({error})") from error


def open_table(
    path: Path, key: str, separator: str | None, encoding: str | None, quoting: str | None, header: str | None
) -> RawTable:
    """Find out how a file is to be read.

    Args:
        path: the file.
        key: the option that names it.
        separator, encoding, quoting: what is given; None = find it.
        header: the names of its columns, separated by commas, where the file has none.

    Raises:
        UserError: there is no such file, or it cannot be told how to read it.
    """
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("*"))[:10]) or "nothing"
        raise UserError(f"{key}: found no file {path} (there: {there})")
    with open(path, "rb") as file:
        begin = file.read(8)
    if begin.startswith(b"PAR1"):
        return RawTable(path, "parquet", _parquet_columns(path))
    if begin.startswith(b"\xd0\xcf\x11\xe0"):
        raise UserError(f"{key}: {path} is a workbook of Excel, expected text: save it as CSV UTF-8")
    if begin.startswith(b"\x28\xb5\x2f\xfd"):
        raise UserError(f"{key}: {path} is compressed by Zstandard, expected plain text, gzip, bzip2, xz or zip: unpack it")
    notes: list[str] = []
    if encoding is None:
        encoding, notes = find_encoding(path)
    else:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise UserError(f"encoding: found {encoding!r}, expected one that Python knows, such as utf-8 or cp1252") from None
    with readable(path, encoding), opener(path)(path, "rt", encoding=with_mark(encoding), newline="") as file:
        sample = file.read(_SAMPLE)
    if not sample.strip():
        raise UserError(f"{key}: {path} has no rows")
    if sample.lstrip()[0] in "{[" and header is None and separator is None:
        columns = dict.fromkeys(chain.from_iterable(map(_flat, islice(json_objects(path, encoding), _KEYS_OF))))
        return RawTable(path, "json", list(columns), encoding, notes=notes)
    separator = _SPOKEN.get(separator, separator) if separator else _find_separator(path, sample, quoting)
    quoting = quoting or _find_quoting(sample, separator)
    first = [_ATOMIC_TYPE.sub("", name.strip()) for name in next(_sample_rows(sample, separator, quoting))]
    names = first
    if header is not None:
        names = [name.strip() for name in header.split(",")]
        if len(names) > len(first):
            raise UserError(f"{key}_header: found {len(names)} names, expected at most the {len(first)} columns of {path}")
        names += [f"column_{number}" for number in range(len(names) + 1, len(first) + 1)]
    return RawTable(path, "text", names, encoding, separator, quoting, header is None, notes)


def find_encoding(path: Path) -> tuple[str, list[str]]:
    """The encoding that all of a file's bytes allow: UTF-8, or UTF-16 by its byte order mark, or cp1252, which is told.

    Windows-1252 holds what latin-1 has of letters. It is taken only where nearly all bytes above 127 stand alone, as the accented
    letters of Western Europe do: bytes of other alphabets stand side by side.

    Raises:
        UserError: it cannot be told.
    """
    wide = beside = place = 0
    words: dict[bytes, None] = {}
    broken = undefined = None
    decoder = codecs.getincrementaldecoder("utf-8")()
    with readable(path, "utf-8"), opener(path)(path, "rb") as file:
        block = file.read(_BLOCK)
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16", []
        if b"\0" in block:
            raise UserError(f"{path}: found the byte 0 and no byte order mark, expected text: give --encoding, maybe utf-16-le")
        while block:
            if broken is None:
                try:
                    decoder.decode(block, final=False)
                except UnicodeDecodeError as error:
                    broken = place + error.start - len(decoder.getstate()[0])
            if not block.isascii():
                wide += len(block) - len(block.translate(None, bytes(range(128, 256))))
                beside += sum(map(len, re.findall(rb"[\x80-\xff]{2,}", block)))
                undefined = undefined or re.search(rb"[\x81\x8d\x8f\x90\x9d]", block)
                if len(words) < 3:
                    words |= dict.fromkeys(_ACCENTED.findall(block)[:3])
            place += len(block)
            block = file.read(_BLOCK)
        if broken is None and decoder.getstate()[0]:
            broken = place
    if broken is None:
        return "utf-8", []
    if undefined or beside > _MOST_BESIDE * wide:
        raise UserError(
            f"{path}: found bytes that are no UTF-8 (near byte {broken + 1:,}) and are hardly Western European; expected --encoding "
            "with the file's own, such as cp1251, gbk, shift_jis or utf-16-le"
        )
    shown = ", ".join(word.decode("cp1252") for word in list(words)[:3])
    return "cp1252", [
        f"{path.name} is no UTF-8 and was read as cp1252 (latin-1, Windows in Western Europe), by which it holds: {shown}; if that "
        "reads wrong, give --encoding"
    ]


def _sample_rows(sample: str, separator: str, quoting: str) -> Iterator[list[str]]:
    if quoting == "none" or len(separator) > 1:
        return (line.rstrip("\n").split(separator) for line in io.StringIO(sample, newline=None) if line.strip())
    lines, escape = io.StringIO(sample, newline=""), "\\" if quoting == "escaped" else None
    return (row for row in csv.reader(lines, delimiter=separator, escapechar=escape) if row)


def _find_quoting(sample: str, separator: str) -> str:
    """As ``tables.read_rows`` takes it: CSV, but for tab, | and :: none, unless the first cells all stand in quotes."""
    if len(separator) > 1:
        return "none"
    first = next(_sample_rows(sample, separator, "none"), [])
    has_quotes = all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first)
    if separator in "\t|" and not has_quotes:
        return "none"
    # A backslash before a quote that does not end a cell.
    return "escaped" if re.search(rf'\\"(?!\s*(?:"|{re.escape(separator)}|$))', sample, re.MULTILINE) else "csv"


def _find_separator(path: Path, sample: str, quoting: str | None) -> str:
    """The mark that parts all lines into as many cells, at best into columns that are known by their names."""
    scores = {}
    for mark in _SEPARATORS:
        rows = list(_sample_rows(sample, mark, quoting or _find_quoting(sample, mark)))
        rows = rows[:-1] if len(sample) == _SAMPLE else rows  # the last may be cut
        if not rows or (width := len(rows[0])) < 2:
            continue
        names = [_ATOMIC_TYPE.sub("", name.strip()) for name in rows[0]]
        known = sum(bool(columns_like(ours, names)) for ours in NAMES)
        scores[mark] = (sum(len(row) == width for row in rows) / len(rows), known, width)
    best = [mark for mark, score in scores.items() if score == max(scores.values())]
    if len(best) != 1:
        found = f"{' and '.join(map(repr, best))} in" if best else "none of them in"
        raise UserError(
            f"{path}: columns may be separated by , ; tab | or ::, but found {found} the first line {next(io.StringIO(sample))[:80]!r}; "
            "give --separator"
        )
    return best[0]


_BETWEEN = re.compile(r"[\s,\[\]]*")


def json_objects(path: Path, encoding: str = "utf-8") -> Iterator[dict]:
    """The objects of a file, one after another or in one array; numbers as texts, so that no digit of an id is lost.

    Raises:
        UserError: something else stands there, or the file breaks off.
    """
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=lambda _: None)
    rest, number = "", 0
    with readable(path, encoding), opener(path)(path, "rt", encoding=with_mark(encoding)) as file:
        while True:
            block = file.read(_BLOCK)
            rest, place = rest + block, 0
            while (place := _BETWEEN.match(rest, place).end()) < len(rest):
                try:
                    found, place = decoder.raw_decode(rest, place)
                except json.JSONDecodeError as error:
                    if block and len(rest) - place < _LONGEST_OBJECT and rest[place] == "{":
                        break  # the object may go on in the next block
                    begin = rest[place : place + 60]
                    is_literal = re.match(r"\{\s*u?'", begin)
                    why = (
                        "a literal of Python, as older dumps hold"
                        if is_literal
                        else f"{error.msg} at its character {error.pos - place + 1}"
                    )
                    raise UserError(
                        f"{path}: object {number + 1} is no JSON ({why}): {begin!r}; expected an object a line, or an array of objects"
                        + ("; a converter of your own reads it (docs/pages/extend/converter.md)" if is_literal else "")
                    ) from None
                number += 1
                if not isinstance(found, dict):
                    raise UserError(
                        f"{path}: found {str(found)[:60]!r} as object {number}, expected {{...}} with the columns as keys"
                    )
                yield found
            rest = rest[place:]
            if not block:
                return


def _flat(found: dict, prefix: str = "") -> dict[str, str]:
    """An object's values as texts, those of objects within it by names such as ``_id.$oid``."""
    cells = {}
    for name, value in found.items():
        if isinstance(value, dict):
            cells |= _flat(value, f"{prefix}{name}.")
        else:
            cells[prefix + name] = _as_text(value)
    return cells


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(filter(None, map(_as_text, value)))
    return str(value)


def _parquet_columns(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path} is Parquet, which needs pyarrow: pip install 'pyarrow<22'") from error
    try:
        return ParquetFile(path).schema_arrow.names
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error})") from error


def _as_texts(column: pd.Series) -> Sequence[str]:
    """A column's cells as texts: a date in ISO's form, and no ".0" behind the whole numbers of a column with holes."""
    missing = column.isna()
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if pd.api.types.is_datetime64_any_dtype(column):
        texts = column.dt.strftime("%Y-%m-%dT%H:%M:%S.%f")
    elif pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        texts = column.astype("Int64").astype(str)
    else:
        texts = column.map(_as_text)
    return texts.astype(object).where(~missing, "").tolist()
