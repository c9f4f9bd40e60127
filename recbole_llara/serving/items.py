"""Items that came, were renamed or went after a run was trained: what is told of them, checked, and the file that keeps it.

The file is an ``.item`` file like the dataset's: tab-separated, a header, a row an item, the columns by the run's own names
(``ITEM_ID_FIELD``, ``title_field``, ``item_fields``), and ``removed`` where wanted; other columns are not read. A row whose id the run
does not know is a new item; one whose id it knows renames that item, an empty cell leaving things as they are; ``removed`` 1 takes it
out of all that is recommended, 0 brings it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_llara.data.tables import PADDING, read_rows
from recbole_llara.data.titles import POPULARITY, clean_title, field_text, is_visible
from recbole_llara.utils.atomic import write_text
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.process_setup import is_text

ID, TITLE, REMOVED = "item_id", "title", "removed"
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


@dataclass(frozen=True)
class ItemChange:
    """What is told of one item; None = as it was, and of a new item: nothing is known."""

    item_id: str
    title: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)  # by the names of item_fields
    removed: bool | None = None

    def over(self, earlier: "ItemChange") -> "ItemChange":
        """Both, this one being the later."""
        title = earlier.title if self.title is None else self.title
        removed = earlier.removed if self.removed is None else self.removed
        return replace(self, title=title, fields={**earlier.fields, **self.fields}, removed=removed)


def told_of(
    row: Mapping[str, Any], names: Sequence[str], rules: Sequence[str], kinds: Mapping[str, str] | None = None
) -> ItemChange:
    """What a mapping tells of an item.

    Args:
        row: ``item_id``, and where told ``title``, ``removed`` and any of ``names``.
        names: the fields that prompts show, of ``item_fields``.
        rules: of ``title_rules``.
        kinds: the RecBole types of a file's columns, by name.

    Raises:
        UserError: something in it is of another form.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"items: found {row!r}, expected an object with {ID} and {TITLE}")
    shown = [name for name in names if name != POPULARITY]
    if unknown := sorted(map(str, row.keys() - {ID, TITLE, REMOVED, *shown})):
        known = [ID, TITLE, REMOVED, *shown]
        raise UserError(
            f"items: found the entry {unknown[0]!r}, expected some of {', '.join(known)}; {nearest(unknown[0], known)}"
        )
    name = row.get(ID)
    if isinstance(name, bool) or not isinstance(name, str | int) or not is_visible(str(name)) or str(name) == PADDING:
        raise UserError(f"items: {ID}: found {name!r}, expected an id as the dataset writes it")
    name = str(name)
    title = None if row.get(TITLE) is None else str(row[TITLE])
    if title is not None:
        title = clean_title(title, rules)
        if not is_visible(title):
            raise UserError(f"items: {TITLE} of item {name!r}: found {row[TITLE]!r}, expected a text with a visible character")
    texts = {one: field_text(str(row[one]), (kinds or {}).get(one, "")) for one in shown if row.get(one) is not None}
    for what, text in {TITLE: title or "", ID: name, **texts}.items():
        if not is_text(text):
            raise UserError(f"items: {what} of item {name!r} has half of a surrogate pair, expected text")
        if "\t" in text or "\n" in text:
            raise UserError(f"items: {what} of item {name!r}: found a tab or a line break, expected one line")
    return ItemChange(name, title, texts, _flag(name, row.get(REMOVED)))


def _flag(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in (*_YES, *_NO, ""):
        raise UserError(f"items: {REMOVED} of item {name!r}: found {value!r}, expected 1 or 0")
    return None if not text else text in _YES


def read_items(path: Path, config: Any) -> list[ItemChange]:
    """What an ``.item`` file tells, by the run's own names of columns; none where it is not there yet.

    Raises:
        UserError: it cannot be read, lacks the column of ids, or tells what ``told_of`` refuses.
    """
    if not path.is_file():
        return []
    names = list(config["item_fields"] or ())
    columns = {config["ITEM_ID_FIELD"]: ID, config["title_field"]: TITLE, REMOVED: REMOVED, **{name: name for name in names}}
    rows = read_rows(path, config["field_separator"] or "\t", config["encoding"] or "utf-8")
    header = next(rows, (1, []))[1]
    found = [cell.split(":")[0] for cell in header]
    if config["ITEM_ID_FIELD"] not in found:
        raise UserError(
            f"items: {path} has the columns {', '.join(found)}, expected '{config['ITEM_ID_FIELD']}', '{config['title_field']}' and more of "
            "the dataset's .item file"
        )
    kinds = {cell.split(":")[0]: cell.partition(":")[2] for cell in header}
    changes = []
    for number, cells in rows:
        told = {columns[name]: cell for name, cell in zip(found, cells, strict=True) if name in columns and cell.strip()}
        try:
            changes.append(told_of(told, names, config["title_rules"] or (), kinds))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return changes


def write_items(path: Path, config: Any, changes: Sequence[ItemChange]) -> None:
    """Write what ``read_items`` reads, whole or not at all."""
    names = [name for name in config["item_fields"] or () if name != POPULARITY]
    header = [
        f"{config['ITEM_ID_FIELD']}:token",
        f"{config['title_field']}:token_seq",
        *(f"{name}:token_seq" for name in names),
    ]
    lines = ["\t".join([*header, f"{REMOVED}:token"])]
    for one in changes:
        flag = "" if one.removed is None else str(int(one.removed))
        lines.append("\t".join([one.item_id, one.title or "", *(one.fields.get(name, "") for name in names), flag]))
    write_text(path, "\n".join(lines) + "\n")


def refuse_twice(changes: Sequence[ItemChange]) -> None:
    """Refuse several changes of one item in one call."""
    seen: set[str] = set()
    for one in changes:
        if one.item_id in seen:
            raise UserError(f"items: found item {one.item_id!r} twice, expected each once")
        seen.add(one.item_id)
