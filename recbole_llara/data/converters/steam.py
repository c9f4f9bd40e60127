"""Steam reviews (steam_reviews.json.gz, steam_games.json.gz): one Python literal a line, users of at least 20 reviews.

As LLaRA and RSLLM: users with 20 reviews and more, then a seeded third of these users and of the games. Of 1.3 GB only the
kept columns are held, as numbers.
"""

import ast
import re
from argparse import Namespace
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from recbole_llara.data.converters import raw_folder
from recbole_llara.data.converters.tables import Malformed, RawFile, Tables

LEAST_REVIEWS = 20
SHARE = 1 / 3  # of users and of games
INTERACTION_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
ITEM_COLUMNS = ("item_id:token", "title:token_seq", "release_year:token", "class:token_seq")
PUBLISHED = {"sequences": 11_938, "items": 3_581, "interactions": 274_726}
DIFFERENCE = "the papers drew their third of users and games with a seed they do not tell; another draw has other counts"

# A line is {'key': value, ...}. Strings are skipped as strings, so that a review that quotes a key changes nothing.
_STRING = r"u?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_VALUE = rf"(?:{_STRING}|[^,'\"\[\]{{}}]+|\[[^\[\]]*\])"


def _field(key: str) -> re.Pattern[str]:
    return re.compile(rf"\{{(?:{_STRING}: {_VALUE}, )*?u?'{key}': ({_STRING}|-?[\d.]+)[,}}]")


USER, GAME, DATE = _field("username"), _field("product_id"), _field("date")


def from_options(options: Namespace) -> tuple[str, Tables]:
    """The dataset's name and tables; see ``converters.CONVERTERS``."""
    return options.name, convert(*raw_folder(options), seed=options.seed)


def convert(name: str, raw: Path, max_malformed: float, seed: int = 2020, share: float = SHARE) -> Tables:
    """Reviews and games of the raw folder, of a share of users and of games drawn by the seed."""
    games = dict(RawFile(raw / "steam_games.json.gz", _game, max_malformed=max_malformed).rows())
    users, items, days = _Numbers(), _Numbers(), array("i")
    user_of, item_of = array("i"), array("i")
    for user, game, day in RawFile(raw / "steam_reviews.json.gz", _review, max_malformed=max_malformed).rows():
        if game in games:
            user_of.append(users[user])
            item_of.append(items[game])
            days.append(day)
    user_column, item_column, day_column = (np.array(column, dtype=np.int32) for column in (user_of, item_of, days))
    # A user may review a game more than once: the first time counts.
    order = np.lexsort((np.arange(len(day_column)), day_column))
    pairs = user_column[order].astype(np.int64) * max(1, len(items)) + item_column[order]
    order = np.sort(order[np.unique(pairs, return_index=True)[1]])
    user_column, item_column, day_column = user_column[order], item_column[order], day_column[order]
    generator = np.random.default_rng(seed)
    reviews = np.bincount(user_column, minlength=len(users))
    often = np.flatnonzero(reviews >= LEAST_REVIEWS)
    kept_users = _third(often, share, len(users), generator)
    kept_items = _third(np.arange(len(items)), share, len(items), generator)
    kept = kept_users[user_column] & kept_items[item_column]

    def rows() -> Iterator[Sequence[object]]:
        chosen = np.flatnonzero(kept)
        for place in chosen[np.lexsort((day_column[chosen], user_column[chosen]))]:
            yield users.names[user_column[place]], items.names[item_column[place]], int(day_column[place]) * 86_400

    shown = set(np.unique(item_column[kept]).tolist())
    return Tables(
        INTERACTION_COLUMNS,
        rows(),
        ITEM_COLUMNS,
        [(items.names[item], *games[items.names[item]]) for item in sorted(shown)],
        published=PUBLISHED,
        differences=(DIFFERENCE,),
    )


class _Numbers:
    """Numbers for names in the order of their first appearance."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number

    def __len__(self) -> int:
        return len(self.names)


def _third(those: np.ndarray, share: float, total: int, generator: np.random.Generator) -> np.ndarray:
    """[total] bool, a random share of those."""
    chosen = np.zeros(total, dtype=bool)
    chosen[generator.permutation(those)[: round(share * len(those))]] = True
    return chosen


def _literal(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.match(line)
    if found is None:
        raise Malformed(f"found {line[:60]!r}, expected username, product_id and date")
    text = found.group(1)
    if text[0] == "'" and "\\" not in text:
        return text[1:-1]
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError) as error:
        raise Malformed(f"{text[:60]} is no literal") from error


def _review(line: str) -> tuple[str, str, int]:
    date = _literal(DATE, line)
    try:
        day = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC) if len(date) != 10 else _iso(date)
    except ValueError as error:
        raise Malformed(f"date {date!r}, expected year-month-day") from error
    return _literal(USER, line), _literal(GAME, line), int(day.timestamp()) // 86_400


def _iso(date: str) -> datetime:
    return datetime.fromisoformat(date).replace(tzinfo=UTC)


def _game(line: str) -> tuple[str, tuple[str, str, str]] | None:
    try:
        game = ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise Malformed(f"found {line[:60]!r}, expected a Python literal") from error
    if not isinstance(game, dict):
        raise Malformed(f"found {line[:60]!r}, expected a dict")
    title = game.get("app_name") or game.get("title")
    if "id" not in game or not title:
        return None  # some games have no id or no name; nothing can be asked about them
    year = str(game.get("release_date", ""))[:4]
    return str(game["id"]), (str(title), year if year.isdecimal() else "", " ".join(game.get("genres") or ()))
