"""Data sets that others publish: MovieLens, LastFM and Steam, out of the folder of their raw files."""

import ast
import csv
import hashlib
import re
from argparse import Namespace
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd

from recbole_llara.data.tables import Malformed, Tables, as_float, raw_folder, raw_rows

USER, ITEM, TIME, TITLE = "user_id:token", "item_id:token", "timestamp:float", "title:token_seq"
YEAR, GENRES = "release_year:token", "class:token_seq"


def _split(separator: str) -> Callable[[str], list[str]]:
    return lambda line: line.split(separator)


def _csv(line: str) -> list[str]:
    return next(csv.reader([line]), [])


# The files of ratings and of films, lines before the data, the encoding, and what cuts lines of both into cells.
MOVIELENS = {
    "ml-100k": ("u.data", "u.item", 0, "latin-1", _split("\t"), _split("|")),
    "ml-1m": ("ratings.dat", "movies.dat", 0, "latin-1", _split("::"), _split("::")),
    "ml-latest": ("ratings.csv", "movies.csv", 1, "utf-8", _csv, _csv),
}
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
TITLE_AND_YEAR = re.compile(r"^(.*?)\s*\((\d{4})\)\s*$")


def movielens(options: Namespace) -> Tables:
    """MovieLens in its three raw formats: 100K (u.data, u.item), 1M (``::``), and the CSV files of ml-latest and 20M on."""
    ratings, films, header, encoding, cut_rating, cut_film = MOVIELENS[options.name]
    is_100k = options.name == "ml-100k"
    raw = raw_folder(options)

    def rating(line: str) -> Sequence[object]:
        try:
            user, item, stars, time = cut_rating(line)
            for number in (stars, time):
                as_float(number)
        except ValueError as error:
            raise Malformed(line, "user, item, rating, timestamp") from error
        return user, item, stars, time

    def film(line: str) -> Sequence[object]:
        cells = cut_film(line)
        if len(cells) != (5 + len(GENRES_100K) if is_100k else 3):
            raise Malformed(line, "24 cells" if is_100k else "movie, title, genres")
        if is_100k:
            genres = [genre for genre, flag in zip(GENRES_100K, cells[5:], strict=True) if flag == "1"]
        else:
            genres = [] if cells[2] == "(no genres listed)" else cells[2].split("|")
        found = TITLE_AND_YEAR.match(cells[1])
        title, year = found.groups() if found else (cells[1], "")
        return cells[0], title.strip(), year, " ".join(genres)

    # The names that RecBole's own copy of ml-100k has, so that one properties/dataset file serves both.
    inter, item = (USER, ITEM, "rating:float", TIME), (ITEM, "movie_title:token_seq", YEAR, GENRES)
    return Tables(
        options.name,
        {
            "inter": (inter, raw_rows(raw / ratings, rating, options.max_malformed, header, encoding)),
            "item": (item, raw_rows(raw / films, film, options.max_malformed, header, encoding)),
        },
        published={"sequences": 943, "items": 1682, "interactions": 100_000} if is_100k else {},
        differences=["the protocol llara keeps ratings of 3 and more: 82,520 interactions"] if is_100k else [],
    )


LEAST_TAGGINGS = 4  # users of an artist, and artists of a user
LASTFM_DIFFERENCE = (
    "the papers state 73,510 interactions; the sequences that LLaRA's authors released hold 56,794, and so do these: the "
    "distinct (user, artist) pairs of the raw file after both filters"
)
BY_NUMBER = (
    "lastfm-llara orders every history by ascending artist number, as the released sequences do, not by time: a rule that only "
    "looks for the next higher number scores .31 of the 20-candidate questions. Use it to compare with published columns only; "
    "lastfm is ordered by date."
)


def lastfm(options: Namespace) -> Tables:
    """hetrec2011-lastfm-2k: who tagged which artist when, as ``lastfm`` (by date) and ``lastfm-llara`` (as the papers have it).

    The released sequences of LLaRA come from ``user_taggedartists.dat``: the distinct (user, artist) pairs whose artist has
    a name, artists of at least 4 users, then users of at least 4 artists. Users are ordered by the earliest date that
    stands in the first row of one of their pairs, within equal dates by their number.
    """
    raw, is_by_number = raw_folder(options), options.name == "lastfm-llara"
    titles = dict(raw_rows(raw / "artists.dat", _artist, options.max_malformed, header=1))
    taggings = raw_rows(raw / "user_taggedartists.dat", _tagging, options.max_malformed, header=1)
    rows = pd.DataFrame((row for row in taggings if row[1] in titles), columns=["user", "artist", "date"])
    pairs = rows.groupby(["user", "artist"], sort=False)["date"].agg(["first", "min"]).reset_index()
    for side in ("artist", "user"):
        pairs = pairs[pairs.groupby(side)[side].transform("size") >= LEAST_TAGGINGS]
    artists = pairs["artist"].unique()
    if is_by_number:  # as released: all of a user at the first date
        pairs = pairs.assign(date=pairs.groupby("user")["first"].transform("min")).sort_values(["user", "artist"])
    else:  # most dates are the first of a month, and ties are ordered by a hash, which knows no artist
        names = pairs["user"].astype(str) + "/" + pairs["artist"].astype(str)
        lots = names.map(lambda name: hashlib.sha256(name.encode()).digest())
        pairs = pairs.assign(date=pairs["min"], lot=lots).sort_values(["user", "date", "lot"])
    seconds = pairs["date"] + pairs.groupby(["user", "date"]).cumcount()  # interactions of one date, a second apart
    return Tables(
        options.name,
        {
            "inter": ((USER, ITEM, TIME), zip(pairs["user"], pairs["artist"], seconds, strict=True)),
            "item": ((ITEM, TITLE), [(artist, titles[artist]) for artist in artists]),
        },
        published={"sequences": 1220, "items": 4606, "interactions": 73_510},
        differences=[LASTFM_DIFFERENCE],
        warnings=[BY_NUMBER] if is_by_number else [],
    )


def _artist(line: str) -> tuple[int, str]:
    cells = line.split("\t")
    if len(cells) < 2 or not cells[0].isdecimal() or not cells[1].strip():
        raise Malformed(line, "id, name")
    return int(cells[0]), cells[1]


def _tagging(line: str) -> tuple[int, int, int]:
    """User, artist and the date in seconds; where there is no such day, the first of the month, or of the year."""
    cells = line.split("\t")
    if len(cells) != 6 or not all(map(str.isdecimal, cells)):
        raise Malformed(line, "user, artist, tag, day, month, year")
    user, artist, _, day, month, year = map(int, cells)
    for day_of_month in ((month, day), (month, 1), (1, 1)):
        try:
            return user, artist, int(datetime(year, *day_of_month, tzinfo=UTC).timestamp())
        except ValueError:
            continue
    raise Malformed(line, "a year")


LEAST_REVIEWS = 20
SHARE = 1 / 3  # of users and of games
STEAM_DIFFERENCE = "the papers drew their third of users and games with a seed they do not tell; another draw has other counts"
EPOCH = date(1970, 1, 1).toordinal()

# A line is {'key': value, ...}. Strings are skipped as strings, so that a review that quotes a key changes nothing.
_STRING = r"u?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_VALUE = rf"(?:{_STRING}|[^,'\"\[\]{{}}]+|\[[^\[\]]*\])"
_FIELDS = [
    re.compile(rf"\{{(?:{_STRING}: {_VALUE}, )*?u?'{key}': ({_STRING}|-?[\d.]+)[,}}]")
    for key in ("username", "product_id", "date")
]


def steam(options: Namespace) -> Tables:
    """Steam reviews (steam_reviews.json.gz, steam_games.json.gz): one Python literal a line.

    As LLaRA and RSLLM: users with 20 reviews and more, then a seeded third of these users and of the games. Of 1.3 GB only
    the kept columns are held, as numbers.
    """
    raw = raw_folder(options)
    games = dict(raw_rows(raw / "steam_games.json.gz", _game, options.max_malformed))
    users: dict[str, int] = {}  # numbered in the order of their first reviews
    items: dict[str, int] = {}
    columns = {"user": array("i"), "item": array("i"), "day": array("i")}
    for user, game, day in raw_rows(raw / "steam_reviews.json.gz", parse_review, options.max_malformed):
        if game in games:
            columns["user"].append(users.setdefault(user, len(users)))
            columns["item"].append(items.setdefault(game, len(items)))
            columns["day"].append(day)
    reviews = pd.DataFrame({name: np.array(column, dtype=np.int32) for name, column in columns.items()})
    # A user may review a game more than once: the first time counts.
    reviews = reviews.sort_values("day", kind="stable").drop_duplicates(["user", "item"]).sort_index()
    generator = np.random.default_rng(options.seed)

    def third(those: np.ndarray) -> np.ndarray:
        return generator.permutation(those)[: round(SHARE * len(those))]

    kept_users = third(np.flatnonzero(np.bincount(reviews["user"], minlength=len(users)) >= LEAST_REVIEWS))
    kept_items = third(np.arange(len(items)))
    kept = reviews[reviews["user"].isin(kept_users) & reviews["item"].isin(kept_items)]
    kept = kept.sort_values(["user", "day"], kind="stable")
    user_names, item_names = list(users), list(items)
    rows = ((user_names[user], item_names[item], day * 86_400) for user, item, day in kept.itertuples(index=False, name=None))
    shown = [item_names[item] for item in np.unique(kept["item"])]
    return Tables(
        options.name,
        {
            "inter": ((USER, ITEM, TIME), rows),
            "item": ((ITEM, TITLE, YEAR, GENRES), [(game, *games[game]) for game in shown]),
        },
        published={"sequences": 11_938, "items": 3_581, "interactions": 274_726},
        differences=[STEAM_DIFFERENCE],
    )


def parse_review(line: str) -> tuple[str, str, int]:
    """The user, the game and the day since 1970 of a review; raises ``Malformed``."""
    found = [pattern.match(line) for pattern in _FIELDS]
    if None in found:
        raise Malformed(line, "username, product_id and date")
    user, game, day = (str(_literal(match.group(1))) for match in found)
    try:  # of a day such as 2017-1-2, too
        return user, game, date.fromisoformat("-".join(part.zfill(2) for part in day.split("-"))).toordinal() - EPOCH
    except ValueError as error:
        raise Malformed(day, "year-month-day as date") from error


def _literal(text: str) -> object:
    if text.startswith("'") and text.endswith("'") and "\\" not in text:  # ast takes many times as long
        return text[1:-1]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise Malformed(text, "a Python literal") from error


def _game(line: str) -> tuple[str, tuple[str, str, str]] | None:
    game = _literal(line)
    if not isinstance(game, dict):
        raise Malformed(line, "a dict")
    title = game.get("app_name") or game.get("title")
    if "id" not in game or not title:
        return None  # nothing can be asked about a game without id or name
    year = str(game.get("release_date", ""))[:4]
    return str(game["id"]), (str(title), year if year.isdecimal() else "", " ".join(game.get("genres") or ()))
