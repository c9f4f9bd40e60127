"""MovieLens in its three raw formats: 100K (u.data, u.item), 1M (``::``), and the CSV files of ml-latest and 20M on."""

import csv
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_llara.data.converters import raw_folder
from recbole_llara.data.converters.tables import Malformed, RawFile, Tables

# The names that RecBole's own copy of ml-100k has, so that one properties/dataset file serves both.
INTERACTION_COLUMNS = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEM_COLUMNS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
YEAR = re.compile(r"^(.*?)\s*\((\d{4})\)\s*$")
GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
PUBLISHED = {"sequences": 943, "items": 1682, "interactions": 100_000}


@dataclass(frozen=True)
class Format:
    """One raw format.

    Args:
        ratings, movies: the files' names.
        header: lines before the data.
        encoding: of both.
        fields: from a line to its cells.
        movie: from a film's cells to (id, title with year, genres).
    """

    ratings: str
    movies: str
    header: int
    encoding: str
    fields: Callable[[str], list[str]]
    movie: Callable[[list[str]], tuple[str, str, list[str]]]


def _csv_fields(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _movie_100k(cells: list[str]) -> tuple[str, str, list[str]]:
    if len(cells) != 5 + len(GENRES_100K):
        raise Malformed(f"{len(cells)} cells, expected {5 + len(GENRES_100K)}")
    return cells[0], cells[1], [genre for genre, flag in zip(GENRES_100K, cells[5:], strict=True) if flag == "1"]


def _movie(cells: list[str]) -> tuple[str, str, list[str]]:
    if len(cells) != 3:
        raise Malformed(f"{len(cells)} cells, expected movie, title, genres")
    return cells[0], cells[1], [] if cells[2] == "(no genres listed)" else cells[2].split("|")


FORMATS = {
    "ml-100k": Format("u.data", "u.item", 0, "latin-1", lambda line: line.split("\t"), lambda cells: _movie_100k(cells)),
    "ml-1m": Format("ratings.dat", "movies.dat", 0, "latin-1", lambda line: line.split("::"), _movie),
    "ml-latest": Format("ratings.csv", "movies.csv", 1, "utf-8", _csv_fields, _movie),
}


def from_options(options: Namespace) -> tuple[str, Tables]:
    """The dataset's name and tables; see ``converters.CONVERTERS``."""
    return options.name, convert(*raw_folder(options))


def convert(name: str, raw: Path, max_malformed: float) -> Tables:
    """Ratings and films of a raw MovieLens folder; ``name`` is a key of ``FORMATS``."""
    kind = FORMATS[name]

    def rating(line: str) -> Sequence[object]:
        cells = kind.fields(line)
        if len(cells) != 4 or not all(_is_number(cell) for cell in cells[2:]):
            raise Malformed(f"found {line[:60]!r}, expected user, item, rating, timestamp")
        return cells

    def film(line: str) -> Sequence[object]:
        item, title, genres = kind.movie(line.split("|") if name == "ml-100k" else kind.fields(line))
        found = YEAR.match(title)
        bare, year = found.groups() if found else (title, "")
        return item, bare.strip(), year, " ".join(genres)

    options = {"encoding": kind.encoding, "header": kind.header, "max_malformed": max_malformed}
    return Tables(
        INTERACTION_COLUMNS,
        RawFile(raw / kind.ratings, rating, **options).rows(),
        ITEM_COLUMNS,
        RawFile(raw / kind.movies, film, **options).rows(),
        published=PUBLISHED if name == "ml-100k" else {},
        differences=(("the protocol llara keeps ratings of 3 and more: 82,520 interactions",) if name == "ml-100k" else ()),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
