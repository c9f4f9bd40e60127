"""What people call the items of a loaded run: by title and by id."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import nsmallest

import numpy as np

from recbole_llara.data.text_table import TextIndex, TextTable
from recbole_llara.data.titles import folded
from recbole_llara.prompt.item_pieces import ShownTexts
from recbole_llara.utils.errors import UserError, nearest

ID_PREFIX = "id:"  # before an id that is also another item's title
COMPARED = 50_000  # names with which a mistaken one is compared; of a larger catalogue those that share a word with it


class ItemNames:
    """Items by title and by external id.

    Args:
        ids: N external ids by internal ones; ``ids[0]`` belongs to the padding item.
        titles: N titles by internal ids.
        by_id, by_title: the indexes of the ids and of the folded titles; None = they are made when somebody asks.
    """

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str],
        by_id: TextIndex | None = None,
        by_title: TextIndex | None = None,
    ) -> None:
        self._ids, self._titles = TextTable.of(ids), TextTable.of(titles)
        self.ids, self.titles = ShownTexts(self._ids, {}), ShownTexts(self._titles, {})
        self._kept_by_id, self._kept_by_title = by_id, by_title
        self._added: dict[str, int] = {}  # by id

    def put(self, ids: Mapping[int, str], titles: Mapping[int, str]) -> None:
        """Call items otherwise from now on.

        Args:
            ids: of items that are numbered on from the last one.
            titles: of these, and of items that are renamed.
        """
        self._added |= {name: item for item, name in ids.items()}
        self.ids = ShownTexts(self._ids, {**self.ids.changed, **ids})
        self.titles = ShownTexts(self._titles, {**self.titles.changed, **titles})

    @cached_property
    def _by_id(self) -> TextIndex:
        return TextIndex.of(self._ids) if self._kept_by_id is None else self._kept_by_id

    @cached_property
    def _by_title(self) -> TextIndex:
        return TextIndex.of([folded(title) for title in self._titles]) if self._kept_by_title is None else self._kept_by_title

    @cached_property
    def _folded(self) -> tuple[bytes, TextTable]:
        """The bytes of the folded titles, and the titles over them: made when somebody searches."""
        data, offsets = self._titles.data.tobytes(), self._titles.offsets
        if data.isascii():  # in a tenth of the time; white space at the ends was taken away before
            content = data.lower()
        else:
            table = TextTable.of([folded(title) for title in self._titles])
            content, offsets = table.data.tobytes(), table.offsets
        return content, TextTable(np.frombuffer(content, np.uint8), offsets)

    def titled(self, title: str) -> list[int]:
        """The items of a title in any case, ascending."""
        wanted, changed = folded(title), self.titles.changed
        kept = [item for item in self._by_title.places(wanted) if item and item not in changed]
        return sorted(item for item in (*kept, *changed) if folded(self.titles[item]) == wanted)

    def of_id(self, wanted: str) -> int | None:
        """The item of an id; None where there is none."""
        if wanted in self._added:
            return self._added[wanted]
        return next((item for item in self._by_id.places(wanted) if item and self._ids[item] == wanted), None)

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
        titled = [] if is_id else self.titled(text)
        for found in ([item for item in titled if self.titles[item] == text], titled):
            if len(found) == 1:
                return found[0]
        if titled:
            ids = " or ".join(ID_PREFIX + self.ids[item] for item in titled[:5])
            raise UserError(f"item: {len(titled)} items are called {text!r}, expected one: give {ids}")
        wanted = text.removeprefix(ID_PREFIX)
        if (item := self.of_id(wanted)) is None:
            hint = self._near(wanted[:200], is_id)
            raise UserError(f"item: no item is called {text[:200]!r}; {hint}")
        return item

    def _near(self, name: str, is_id: bool) -> str:
        """What a mistaken name may have meant."""
        known = self.ids[1:] if is_id else self.titles[1:]
        if len(known) <= COMPARED:
            return nearest(name, known)
        word = max(folded(name).split(), key=len, default="")
        some = [] if is_id else [self.titles[item] for item in self.search(word, COMPARED // 100)]
        return nearest(name, some) if some else f"{len(known):,} items are known, and none is near"

    def search(self, text: str, count: int) -> list[int]:
        """At most ``count`` items whose titles hold a text, in any case; those that begin with it first, then the shorter titles."""
        wanted = folded(text)
        found, changed = [], self.titles.changed
        titles = [(self._folded[1][item], item) for item in self._holding(wanted) if item not in changed] if wanted else []
        renamed = ((folded(title), item) for item, title in changed.items())
        for title, item in (*titles, *((title, item) for title, item in renamed if wanted and wanted in title)):
            found.append((not title.startswith(wanted), len(title), title, item))
        return [item for *_, item in nsmallest(count, found)]

    def _holding(self, wanted: str) -> Iterator[int]:
        """The items whose folded titles hold a text, which is not empty."""
        (data, table), asked = self._folded, wanted.encode("utf-8", "replace")
        place, bounds = data.find(asked), table.offsets
        while place >= 0:
            item = int(np.searchsorted(bounds, place, side="right")) - 1
            if is_whole := place + len(asked) <= bounds[item + 1]:
                yield item
            # A match that begins in one title and ends in another is none.
            place = data.find(asked, int(bounds[item + 1]) if is_whole else place + 1)

    def told(self, item: int) -> dict[str, str | None]:
        """An item's id and title, both None of item 0."""
        return {"item_id": self.ids[item], "title": self.titles[item]} if item else {"item_id": None, "title": None}
