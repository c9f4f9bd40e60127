"""hetrec2011-lastfm-2k: who tagged which artist when, as ``lastfm`` (by date) and ``lastfm-llara`` (as the papers have it).

The released sequences of LLaRA come from ``user_taggedartists.dat``: the distinct (user, artist) pairs whose artist has a
name, artists of at least 4 users, then users of at least 4 artists. Users are ordered by the earliest date that stands in
the first row of one of their pairs, within equal dates by their number.
"""

import hashlib
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from recbole_llara.data.converters import raw_folder
from recbole_llara.data.converters.tables import Malformed, RawFile, Tables

LEAST = 4  # users of an artist, and artists of a user
INTERACTION_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
ITEM_COLUMNS = ("item_id:token", "title:token_seq")
PUBLISHED = {"sequences": 1220, "items": 4606, "interactions": 73_510}
DIFFERENCE = (
    "the papers state 73,510 interactions; the sequences that LLaRA's authors released hold 56,794, and so do these: the "
    "distinct (user, artist) pairs of the raw file after both filters"
)
WARNING = (
    "lastfm-llara orders every history by ascending artist number, as the released sequences do, not by time: a rule that only "
    "looks for the next higher number scores .31 of the 20-candidate questions. Use it to compare with published columns only; "
    "lastfm is ordered by date."
)

Pair = tuple[int, int]
Date = tuple[int, int, int]


def from_options(options: Namespace) -> tuple[str, Tables]:
    """The dataset's name and tables; see ``converters.CONVERTERS``."""
    return options.name, convert(*raw_folder(options))


def convert(name: str, raw: Path, max_malformed: float) -> Tables:
    """Pairs and artists of the raw folder; ``name`` is lastfm or lastfm-llara."""
    titles = dict(RawFile(raw / "artists.dat", _artist, header=1, max_malformed=max_malformed).rows())
    tagged = RawFile(raw / "user_taggedartists.dat", _tagging, header=1, max_malformed=max_malformed)
    first_row: dict[Pair, Date] = {}
    earliest: dict[Pair, Date] = {}
    for pair, date in tagged.rows():
        if pair[1] in titles:
            first_row.setdefault(pair, date)
            earliest[pair] = min(date, earliest.get(pair, date))
    kept = _frequent(_frequent(list(first_row), 1), 0)
    items = dict.fromkeys(artist for _, artist in kept)
    rows = _by_number(kept, first_row) if name == "lastfm-llara" else _by_date(kept, earliest)
    return Tables(
        INTERACTION_COLUMNS,
        rows,
        ITEM_COLUMNS,
        [(artist, titles[artist]) for artist in items],
        published=PUBLISHED,
        differences=(DIFFERENCE,),
        warning=WARNING if name == "lastfm-llara" else None,
    )


def _artist(line: str) -> tuple[int, str]:
    cells = line.split("\t")
    if len(cells) < 2 or not cells[0].isdecimal() or not cells[1].strip():
        raise Malformed(f"found {line[:60]!r}, expected id, name")
    return int(cells[0]), cells[1]


def _tagging(line: str) -> tuple[Pair, Date]:
    cells = line.split("\t")
    if len(cells) != 6 or not all(cell.isdecimal() for cell in cells):
        raise Malformed(f"found {line[:60]!r}, expected user, artist, tag, day, month, year")
    user, artist, _, day, month, year = map(int, cells)
    return (user, artist), (year, month, day)


def _frequent(pairs: list[Pair], side: int) -> list[Pair]:
    """The pairs whose user (side 0) or artist (side 1) has at least ``LEAST`` of them."""
    count = Counter(pair[side] for pair in pairs)
    return [pair for pair in pairs if count[pair[side]] >= LEAST]


def _seconds(date: Date) -> float:
    year, month, day = date
    try:
        return datetime(year, month, day, tzinfo=UTC).timestamp()
    except ValueError:
        return (
            datetime(year, month, 1, tzinfo=UTC).timestamp()
            if 1 <= month <= 12
            else datetime(year, 1, 1, tzinfo=UTC).timestamp()
        )


def _by_number(pairs: list[Pair], first_row: dict[Pair, Date]) -> list[Sequence[object]]:
    """As released: users by their first date, and within a user artists by number, a second apart."""
    start: dict[int, Date] = {}
    for pair in pairs:
        start[pair[0]] = min(first_row[pair], start.get(pair[0], first_row[pair]))
    place: Counter[int] = Counter()
    rows = []
    for user, artist in sorted(pairs):
        rows.append((user, artist, f"{_seconds(start[user]) + place[user]:.0f}"))
        place[user] += 1
    return rows


def _by_date(pairs: list[Pair], earliest: dict[Pair, Date]) -> list[Sequence[object]]:
    """By the earliest date; most dates are the first of a month, and ties are ordered by a hash, which knows no artist."""

    def lot(pair: Pair) -> bytes:
        return hashlib.sha256(f"{pair[0]}/{pair[1]}".encode()).digest()

    rows, place = [], Counter()
    for user, artist in sorted(pairs, key=lambda pair: (pair[0], earliest[pair], lot(pair))):
        date = earliest[user, artist]
        rows.append((user, artist, f"{_seconds(date) + place[user, date]:.0f}"))
        place[user, date] += 1
    return rows
