"""Ready-made windows, ``recbole-llara convert windows``: rows of a history and the next item that somebody has split already."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from recbole_llara.data.converters import SPLITS
from recbole_llara.data.tables import Malformed, Tables, raw_rows, read_rows
from recbole_llara.utils.errors import UserError


def windows(options: Namespace) -> Tables:
    """Ready-made windows, such as those that LLaRA's authors released: a history and the next item a row, already split.

    The files are tables with tabs between their columns: ``seq`` (item numbers separated by blanks, padded on the right; any
    name that begins so), ``len_seq`` (how many of them count) and ``next``; titles in ``item_id`` and ``title``. A row names
    no user, so each is a user of its own: a negative may be anything outside the row.
    """
    missing = [f"--{key}" for key in (*SPLITS, "item", "dataset") if getattr(options, key) is None]
    if missing:
        raise UserError(
            f"windows: found no {', '.join(missing)}, expected --train, --valid, --test, --item FILE and --dataset NAME"
        )
    number, title = _places(options.item, ("item_id", "title"))

    def parse_item(line: str) -> tuple[str, str]:
        cells = line.split("\t")
        if len(cells) <= max(number, title) or not cells[number].isdecimal() or not cells[title].strip():
            raise Malformed(line, "item_id and title")
        return cells[number], cells[title]

    titles = dict(raw_rows(options.item, parse_item, options.max_malformed, header=1))
    header = ("user_id:token", "item_id_list:token_seq", "item_id:token")
    files = {
        f"{split}.inter": (header, _windows(split, getattr(options, split), titles, options.max_malformed)) for split in SPLITS
    }
    files["item"] = (("item_id:token", "title:token_seq"), titles.items())
    return Tables(options.dataset, files, differences=["each window is a user of its own: the files name none"])


def _windows(split: str, path: Path, titles: Mapping[str, str], max_malformed: float) -> Iterator[tuple[str, str, str]]:
    """(user, history, target) of one file."""
    history, length, following = _places(path, ("seq", "len_seq", "next"))

    def parse(line: str) -> tuple[str, str]:
        cells = line.split("\t")
        if len(cells) <= max(history, length, following) or not cells[length].isdecimal():
            raise Malformed(line, "a history, its length and the next item")
        items = cells[history].split()[: int(cells[length])]
        if len(items) != int(cells[length]) or not items:
            raise Malformed(line, f"as many items as len_seq {cells[length]} says, at least one")
        for item in (*items, cells[following]):
            if item not in titles:
                raise Malformed(item, "an item with a title")
        return " ".join(items), cells[following]

    for row, (items, target) in enumerate(raw_rows(path, parse, max_malformed, header=1)):
        yield f"{split}-{row}", items, target


def _places(path: Path, wanted: tuple[str, ...]) -> list[int]:
    """Where the columns stand that begin with the wanted names."""
    _, header = next(read_rows(path, "\t"), (1, []))
    places = [next((place for place, name in enumerate(header) if name.startswith(begin)), None) for begin in wanted]
    if None in places:
        raise UserError(f"windows: {path} has the columns {', '.join(header)}, expected {', '.join(wanted)}, tabs between them")
    return places
