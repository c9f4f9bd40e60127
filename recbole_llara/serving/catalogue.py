"""What people call the items of a loaded run: by title and by id."""

import unicodedata
from collections.abc import Sequence
from functools import cached_property

from recbole_llara.utils.errors import UserError, nearest

ID_PREFIX = "id:"  # before an id that is also another item's title


class ItemNames:
    """Items by title and by external id.

    Args:
        ids: N external ids by internal ones; ``ids[0]`` belongs to the padding item.
        titles: N titles by internal ids.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str]) -> None:
        self.ids, self.titles = [str(name) for name in ids], list(titles)
        self._by_id = {name: item for item, name in enumerate(self.ids) if item}

    @cached_property
    def _by_title(self) -> dict[str, list[int]]:
        """Items by folded title: made when somebody asks by a title."""
        found: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles[1:], 1):
            found.setdefault(_folded(title), []).append(item)
        return found

    def find(self, name: str | int) -> int:
        """The internal id of an item.

        Args:
            name: a title, in any case; else an id; a number or ``id:NAME`` is an id in any case.

        Raises:
            UserError: no item is called that, and the message names near titles; or several are, and it names their ids.
        """
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise UserError(f"item: found {name!r}, expected a title or an id")
        text = str(name)
        is_id = isinstance(name, int) or text.startswith(ID_PREFIX)
        titled = [] if is_id else self._by_title.get(_folded(text), [])
        for found in ([item for item in titled if self.titles[item] == text], titled):
            if len(found) == 1:
                return found[0]
        if titled:
            ids = " or ".join(ID_PREFIX + self.ids[item] for item in titled[:5])
            raise UserError(f"item: {len(titled)} items are called {text!r}, expected one: give {ids}")
        wanted = text.removeprefix(ID_PREFIX)
        if wanted not in self._by_id:
            hint = nearest(wanted[:200], self.ids[1:] if is_id else self.titles[1:])
            raise UserError(f"item: no item is called {text[:200]!r}; {hint}")
        return self._by_id[wanted]

    def search(self, text: str, count: int) -> list[int]:
        """At most ``count`` items whose titles hold a text, in any case; those that begin with it first, then the shorter titles."""
        wanted = _folded(text)
        found = [
            (not title.startswith(wanted), len(title), title, item)
            for title, items in self._by_title.items()
            for item in items
            if wanted and wanted in title
        ]
        return [item for *_, item in sorted(found)[:count]]

    def told(self, item: int) -> dict[str, str | None]:
        """An item's id and title, both None of item 0."""
        return {"item_id": self.ids[item], "title": self.titles[item]} if item else {"item_id": None, "title": None}


def _folded(title: str) -> str:
    normal = title if title.isascii() else unicodedata.normalize("NFKC", title)
    return normal.casefold().strip()
