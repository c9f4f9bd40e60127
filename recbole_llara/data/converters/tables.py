"""RecBole's atomic files: read line by line, written whole or not at all, malformed lines counted and shown."""

import codecs
import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from recbole_llara.utils.atomic import write_folder
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.text import BYTE_ORDER_MARK, with_mark

SHOWN = 5  # malformed lines that a message repeats
Row = TypeVar("Row")


class Malformed(ValueError):
    """A line that is not what its file should hold."""


@dataclass
class RawFile:
    """A raw file, read once from its beginning, without a byte order mark there, to its end.

    Args:
        path: plain text or gzip.
        parse: from a line, without its end, to a row; raises ``Malformed``. None = a line to be passed over.
        encoding: of the text.
        header: lines to be passed over at the beginning.
        max_malformed: (float, share) of lines that may be malformed; they are left out.

    Attributes:
        lines: (int) read so far, the header apart.
        malformed: (int) of them.
    """

    path: Path
    parse: Callable[[str], object]
    encoding: str = "utf-8"
    header: int = 0
    max_malformed: float = 0.001
    lines: int = 0
    malformed: int = 0
    examples: list[str] = field(default_factory=list)

    def rows(self) -> Iterator:
        """The parsed rows, with a progress bar over the file's bytes.

        Raises:
            UserError: no such file, a truncated gzip, another encoding, or too many malformed lines.
        """
        if not self.path.is_file():
            there = ", ".join(sorted(path.name for path in self.path.parent.glob("*"))[:10]) or "nothing"
            raise UserError(f"raw: found no {self.path.name} in {self.path.parent} (there: {there})")
        bar = tqdm(
            total=self.path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=self.path.name,
            disable=not sys.stderr.isatty(),
        )
        is_gzip = self.path.suffix == ".gz"
        with open(self.path, "rb") as raw, bar, gzip.GzipFile(fileobj=raw) if is_gzip else nullcontext(raw) as stream:
            lines = enumerate(stream)
            while True:
                try:
                    number, line = next(lines, (0, None))
                except (EOFError, OSError, zlib.error) as error:
                    raise UserError(f"raw: {self.path} breaks off or is no gzip file ({error}): fetch it again") from error
                if line is None:
                    break
                if number % 10_000 == 0:
                    bar.update(raw.tell() - bar.n)
                if number >= self.header:
                    yield from self._row(line, number)
            bar.update(raw.tell() - bar.n)
        self._check()

    def _row(self, line: bytes, number: int) -> Iterator:
        self.lines += 1
        if number == 0 and line.startswith(codecs.BOM_UTF8) and with_mark(self.encoding) == self.encoding:
            raise UserError(
                f"raw: {self.path} begins with the byte order mark of UTF-8, expected {self.encoding}: save it in that"
            )
        try:
            text = line.decode(self.encoding if number else with_mark(self.encoding))
            row = self.parse(text.rstrip("\r\n"))
        except (Malformed, UnicodeDecodeError) as error:
            self.malformed += 1
            if len(self.examples) < SHOWN:
                self.examples.append(f"line {number + 1}: {error}")
            # A file of another kind is found out at once, not after a gigabyte.
            if self.malformed == self.lines == 1000:
                self._check()
            return
        if row is not None:
            yield row

    def _check(self) -> None:
        if self.malformed:
            sys.stderr.write(
                f"{self.path.name}: {self.malformed:,} of {self.lines:,} lines left out: {'; '.join(self.examples)}\n"
            )
        if self.malformed > self.max_malformed * self.lines:
            raise UserError(
                f"raw: {self.malformed:,} of {self.lines:,} lines of {self.path} are malformed, expected at most "
                f"{self.max_malformed:.3%} (--max_malformed): {'; '.join(self.examples)}"
            )


@dataclass(frozen=True)
class Tables:
    """What a converter makes.

    Args:
        interaction_columns, item_columns: RecBole's headers, such as ``user_id:token``.
        interactions, items: rows in the order of the columns.
        published: the papers' statistics, by ``sequences``, ``items`` and ``interactions``.
        differences: why the counts are not the published ones.
        warning: what everybody who uses the dataset should know.
        windows: ready-made rows instead of ``interactions``: split -> (user, history of items parted by blanks, target).
    """

    interaction_columns: Sequence[str]
    interactions: Iterable[Sequence[object]]
    item_columns: Sequence[str]
    items: Iterable[Sequence[object]]
    published: dict[str, int] = field(default_factory=dict)
    differences: Sequence[str] = ()
    warning: str | None = None
    windows: dict[str, Iterable[Sequence[object]]] = field(default_factory=dict)


def write_dataset(tables: Tables, out: Path, name: str, overwrite: bool = False) -> dict[str, int]:
    """Write ``<out>/<name>/<name>.inter`` (of windows one a split) and ``.item``, all of them or none.

    Returns:
        the numbers of ``sequences`` (users), ``items`` (with an interaction, or a target) and ``interactions`` (or rows).

    Raises:
        UserError: the folder is there already.
    """
    folder = out / name
    if folder.exists() and not overwrite:
        raise UserError(f"out: {folder} is there already; choose another folder, or give --overwrite")
    users, items = set(), set()
    count = 0

    def watched(rows: Iterable[Sequence[object]], item: int) -> Iterator[Sequence[object]]:
        nonlocal count
        for row in rows:
            users.add(row[0])
            items.add(row[item])
            count += 1
            yield row

    def fill(temporary: Path) -> None:
        for split, rows in tables.windows.items():
            _write(temporary / f"{name}.{split}.inter", tables.interaction_columns, watched(rows, 2))
        if not tables.windows:
            _write(temporary / f"{name}.inter", tables.interaction_columns, watched(tables.interactions, 1))
        if not count:
            raise UserError("raw: no interaction is left, expected at least one")
        _write(temporary / f"{name}.item", tables.item_columns, tables.items)

    write_folder(folder, fill)
    return {"sequences": len(users), "items": len(items), "interactions": count}


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write cells as they stand, tabs between them: an atomic file knows no quoting.

    Raises:
        UserError: a row holds what such a file cannot.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("\t".join(columns) + "\n")
        for row in rows:
            line = "\t".join(one_line(cell) for cell in row)
            if line.startswith(BYTE_ORDER_MARK):
                raise UserError(f"raw: found a byte order mark (U+FEFF) before the row {line!r}: were two files joined there?")
            try:
                file.write(line + "\n")
            except UnicodeEncodeError:
                raise UserError(f"raw: found half of a surrogate pair, which is no character, in the row {line!r}") from None


def one_line(cell: object) -> str:
    """A cell's text without tabs and line breaks, which part cells and rows."""
    text = str(cell)
    return " ".join(text.split()) if any(mark in text for mark in "\t\r\n") else text
