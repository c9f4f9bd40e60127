"""What the files of a dataset say of its columns, where no properties and no caller do."""

import re
from collections.abc import Sequence
from pathlib import Path

_LONGEST_HEADER = 1 << 16  # (bytes)
# What catalogues call a column, in tiers: the first with a match decides. Compared in lower case, letters and digits alone.
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": (
        "userid",
        "user uid reviewerid customerid visitorid memberid accountid playerid",
        "username reviewer customer visitor member account sessionid session",
    ),
    "item_id": (
        "itemid",
        "item iid movieid productid asin parentasin isbn bookid businessid gameid appid artistid trackid songid albumid newsid "
        "articleid videoid recipeid courseid sku gmapid stockcode",
        "movie product book game artist track song album news article video recipe course id",
    ),
    "timestamp": (
        "timestamp",
        "time datetime unixtime unixreviewtime ts createdat createdtime eventtime ratingtime reviewtime dateadded",
        "date when invoicedate reviewdate orderdate submitted",
    ),
    "title": (
        "name itemname",
        "productname moviename bookname gamename appname artistname trackname songname albumname",
    ),
    "rating": ("rating", "stars score overall bookrating reviewscore"),
    "release_year": ("releaseyear", "year yearofpublication publicationyear"),
    "class": ("class", "genres genre categories category"),
}
_TIMELY = re.compile("time|date|year|month|day", re.IGNORECASE)


def read_header(path: Path, separator: str, encoding: str) -> list[str]:
    """The names in an atomic file's first line, without their types; none where there is no such file."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_HEADER).decode(encoding, errors="replace")
    return [name.partition(":")[0] for name in line.lstrip("\ufeff").rstrip("\r\n").split(separator)]


def columns_like(ours: str, columns: Sequence[str]) -> list[str]:
    """The columns that may hold ``ours``, a key of ``NAMES``, by their names: one, or those that cannot be chosen between.

    Titles are what has "title" in its name, before any of ``NAMES``.
    """
    if ours == "title" and (titled := [name for name in columns if "title" in name.lower()]):
        return titled
    folded = [re.sub(r"[\W_]", "", name.lower()) for name in columns]
    for tier in NAMES[ours]:
        if found := [name for name, plain in zip(columns, folded, strict=True) if plain in tier.split()]:
            return found
    return []


def title_column(columns: Sequence[str]) -> str | None:
    """The one column whose name says that it holds titles; None where there is none, or more than one."""
    found = columns_like("title", columns)
    return found[0] if len(found) == 1 else None


def is_timely(column: str) -> bool:
    """Whether a column's name lets one think of a time."""
    return _TIMELY.search(column) is not None
