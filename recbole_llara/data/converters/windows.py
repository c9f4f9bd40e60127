"""Ready-made windows, such as those that LLaRA's authors released: a history and the next item a row, already split.

The files are tables with tabs between their columns: ``seq`` (item numbers parted by blanks, padded on the right; any name
that begins so), ``len_seq`` (how many of them count) and ``next``; titles in ``item_id`` and ``title``. A row names no
user, so each is a user of its own: a negative may be anything outside the row.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from recbole_llara.data.converters import SPLITS
from recbole_llara.data.converters.tables import Malformed, RawFile, Tables
from recbole_llara.utils.errors import UserError

INTERACTION_COLUMNS = ("user_id:token", "item_id_list:token_seq", "item_id:token")
ITEM_COLUMNS = ("item_id:token", "title:token_seq")


def from_options(options: Namespace) -> tuple[str, Tables]:
    """The dataset's name and tables; see ``converters.CONVERTERS``."""
    files = {split: getattr(options, split) for split in SPLITS}
    needed = {**files, "item": options.item, "dataset": options.dataset}
    if missing := [f"--{key}" for key, value in needed.items() if value is None]:
        raise UserError(
            f"windows: found no {', '.join(missing)}, expected --train, --valid, --test, --item FILE and --dataset NAME"
        )
    return options.dataset, convert(files, options.item, options.max_malformed)


def convert(files: Mapping[str, Path], item: Path, max_malformed: float) -> Tables:
    """Windows of three files, by split (one file may stand for two), and the titles of their items.

    Raises:
        UserError: a file or column is missing, or a window names an item without a title.
    """
    number, title = _places(item, ("item_id", "title"))

    def parse_item(line: str) -> tuple[str, str]:
        cells = line.split("\t")
        if len(cells) <= max(number, title) or not cells[number].isdecimal() or not cells[title].strip():
            raise Malformed(f"found {line[:60]!r}, expected item_id and title")
        return cells[number], cells[title]

    titles = dict(RawFile(item, parse_item, header=1, max_malformed=max_malformed).rows())
    rows = {split: _rows(split, path, titles, max_malformed) for split, path in files.items()}
    differences = ("each window is a user of its own: the files name none",)
    return Tables(INTERACTION_COLUMNS, (), ITEM_COLUMNS, list(titles.items()), differences=differences, windows=rows)


def _rows(split: str, path: Path, titles: Mapping[str, str], max_malformed: float) -> Iterator[tuple[str, str, str]]:
    """(user, history, target) of one file."""
    history, length, following = _places(path, ("seq", "len_seq", "next"))

    def parse(line: str) -> tuple[list[str], str]:
        cells = line.split("\t")
        if len(cells) <= max(history, length, following) or not cells[length].isdecimal():
            raise Malformed(f"found {line[:60]!r}, expected a history, its length and the next item")
        items = cells[history].split()[: int(cells[length])]
        if len(items) != int(cells[length]) or not items:
            raise Malformed(f"found {len(items)} items and len_seq {cells[length]}, expected as many, at least one")
        for item in (*items, cells[following]):
            if item not in titles:
                raise Malformed(f"found item {item!r}, expected one with a title")
        return items, cells[following]

    for row, (items, target) in enumerate(RawFile(path, parse, header=1, max_malformed=max_malformed).rows()):
        yield f"{split}-{row}", " ".join(items), target


def _places(path: Path, wanted: tuple[str, ...]) -> list[int]:
    """Where the columns stand that begin with the wanted names."""
    if not path.is_file():
        raise UserError(f"windows: found no file {path}")
    with open(path, encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n").split("\t")
    places = [next((place for place, name in enumerate(header) if name.startswith(begin)), None) for begin in wanted]
    if None in places:
        raise UserError(f"windows: {path} has the columns {', '.join(header)}, expected {', '.join(wanted)}, tabs between them")
    return places
