"""Ids as numbers, and what is known of items by these numbers, as a user's own files are read: cleaned, with what was changed told."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from recbole_llara.data.tables import HOLES, PADDING
from recbole_llara.data.titles import is_csv_quoted, is_visible, unescape_html
from recbole_llara.utils.errors import UserError

_ROUNDED = re.compile(r"\d(?:[.,]\d+)?E\+\d+")  # 9.78E+12, a long number as a spreadsheet leaves it


class Ids:
    """Distinct ids and their numbers, from 0 in the order of their appearance; white space at an id's ends is no part of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}  # of cells as they stand
        self._by_text: dict[str, int] = {}
        self._before: dict[int, str] = {}  # what a text was before its tabs and line breaks became spaces
        self._stripped = 0

    def numbers(self, cells: Sequence[str]) -> np.ndarray:
        """The numbers of a column's cells, int32; -1 where there is no id."""
        known = self._numbers
        return np.array([known[cell] if cell in known else self._add(cell) for cell in cells], dtype=np.int32)

    def _add(self, cell: str) -> int:
        text = cell.strip()
        number = -1
        if text not in HOLES:
            if text == PADDING or "\0" in text:
                raise UserError(f"{self.name}: found {text!r}, which RecBole cannot keep as an id: rename it")
            line = " ".join(text.split()) if any(mark in text for mark in "\t\r\n") else text
            number = self._by_text.setdefault(line, len(self.texts))
            if number == len(self.texts):
                self.texts.append(line)
                if line != text:
                    self._before[number] = text
            elif (other := self._before.get(number, line)) != text:
                raise UserError(
                    f"{self.name}: found {other!r} and {text!r}, which an atomic file cannot tell apart (tabs and line breaks become "
                    "spaces there): rename one"
                )
            self._stripped += text != cell
        self._numbers[cell] = number
        return number

    def notes(self) -> list[str]:
        """What was changed."""
        notes = [f"{self.name}: white space at the ends of {self._stripped:,} was taken away"] if self._stripped else []
        if self._before:
            first = next(iter(self._before.values()))
            notes.append(f"{self.name}: tabs and line breaks in {len(self._before):,} became spaces, the first: {first!r}")
        return notes

    def warnings(self) -> list[str]:
        """What looks damaged."""
        rounded = [text for text in self.texts if _ROUNDED.fullmatch(text)]
        if not rounded:
            return []
        return [
            f"{self.name}: {len(rounded):,} look like {rounded[0]}, as a spreadsheet rounds long numbers: several ids may have become "
            "one. Save the file again with this column as text"
        ]


class Texts:
    """Titles and what else is known of items, by their numbers; of several rows of one item the first that says anything."""

    def __init__(self, cleans: bool) -> None:
        self.titles: dict[int, str] = {}
        self._cleans = cleans
        self._others: dict[str, dict[int, str]] = {}
        self._unescaped: list[tuple[str, str]] = []
        self._several: dict[int, str] = {}
        self._unnamed = 0

    def add(self, numbers: np.ndarray, columns: Mapping[str, Sequence[str]]) -> None:
        """Rows of items."""
        items = numbers.tolist()
        self._unnamed += items.count(-1)
        seen: dict[tuple[int, str], None] = dict.fromkeys(zip(items, columns.get("title", ()), strict=False))
        for item, cell in seen:
            if item < 0:
                continue
            if cell and self._cleans and (clean := unescape_html(cell)) != cell:
                self._unescaped.append((cell, clean))
                cell = clean
            if is_visible(cell) and self.titles.setdefault(item, cell) != cell:
                self._several.setdefault(item, cell)
        for name, cells in columns.items():
            if name != "title":
                known = self._others.setdefault(name, {})
                for item, cell in zip(items, cells, strict=True):
                    if item >= 0 and cell:
                        known.setdefault(item, unescape_html(cell) if self._cleans else cell)

    def cells(self, number: int, names: Sequence[str]) -> Iterator[str]:
        """What is known of an item, in the order of the names."""
        return (self.titles[number] if name == "title" else self._others.get(name, {}).get(number, "") for name in names)

    def notes(self) -> list[str]:
        """What was changed or left out."""
        notes = []
        if self._unescaped:
            before, after = self._unescaped[0]
            notes.append(
                f"titles: HTML in {len(self._unescaped):,} became text, the first: {before!r} is {after!r} (--html=keep leaves it)"
            )
        if self._unnamed:
            notes.append(f"left out: {self._unnamed:,} rows of items without an item_id")
        if self._several:
            item, other = next(iter(self._several.items()))
            notes.append(
                f"titles: {len(self._several):,} items have several; the first is kept, such as {self.titles[item]!r} before {other!r}"
            )
        return notes

    def warnings(self) -> list[str]:
        """What looks damaged."""
        told = []
        twice = [title for title in self.titles.values() if _is_twice_encoded(title)]
        if twice:
            right = twice[0].encode("cp1252").decode()
            told.append(
                f"titles: {len(twice):,} look encoded twice, such as {twice[0]!r} for {right!r}: they are damaged in the file; fetch it again"
            )
        if lost := [title for title in self.titles.values() if "\ufffd" in title]:
            told.append(
                f"titles: {len(lost):,} hold U+FFFD, a character lost before, such as {lost[0]!r}: fetch the file again"
            )
        if quoted := [title for title in self.titles.values() if is_csv_quoted(title)]:
            told.append(
                f"titles: {len(quoted):,} stand in quotes as CSV writers leave them, such as {quoted[0]!r}: give --quoting csv"
            )
        if holes := [title for title in self.titles.values() if title in HOLES]:
            told.append(f"titles: {len(holes):,} read {holes[0]!r}; if that means none, empty these cells")
        if 2 * len(self._several) > len(self.titles):
            told.append(
                "titles: most items have several: is that column the title of a review? --columns title=YOURS, or --item FILE"
            )
        return told


def _is_twice_encoded(title: str) -> bool:
    """Whether a title is UTF-8 that was taken for cp1252 and encoded again."""
    try:
        return not title.isascii() and title.encode("cp1252").decode() != title
    except UnicodeError:
        return False
