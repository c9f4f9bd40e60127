"""The catalogue of a loaded run: what people call its items, and which unseen ones a stock recommender proposes."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llara.evaluator.ranking import settle_near_ties
from recbole_llara.utils.errors import UserError, nearest

ID_PREFIX = "id:"  # before an id that is also another item's title
SCORED_AT_ONCE = 1 << 25  # scores [B, N] that are held at a time


class ItemNames:
    """Items by title and by external id.

    Args:
        ids: N external ids by internal ones; ``ids[0]`` belongs to the padding item.
        titles: N titles by internal ids.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str]) -> None:
        self.ids, self.titles = [str(name) for name in ids], list(titles)
        self._by_id = {name: item for item, name in enumerate(self.ids) if item}
        self._by_title: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles[1:], 1):
            self._by_title.setdefault(_folded(title), []).append(item)

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
    return unicodedata.normalize("NFKC", title).casefold().strip()


class Retriever:
    """Ranks all items for histories by a stock recommender; items from ``n_known`` have no interactions and are never proposed."""

    def __init__(self, model: nn.Module, config: Any, n_known: int) -> None:
        self.model, self.config, self.n_known = model.eval(), config, n_known

    @torch.no_grad()
    def propose(
        self,
        histories: Sequence[Sequence[int]],
        count: int,
        users: Sequence[int] | None = None,
        seen: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """The best items for each history, best first: [B, count], 0 where a user has seen all others.

        Args:
            histories: B lists of items in order of time; the last L of each are read.
            count: (int, items) at most n_known - 1.
            users: B internal ids, for recommenders that know users (Caser); None = users they have never seen.
            seen: B lists of items that are not proposed; None = those of the histories.
        """
        seen = histories if seen is None else seen
        at_once, best = max(1, SCORED_AT_ONCE // self.n_known), []
        for first in range(0, len(histories), at_once):
            part = slice(first, first + at_once)
            scores, left_out = self.scores(histories[part], users and users[part]), seen[part]
            rows = np.repeat(np.arange(len(left_out)), [len(items) for items in left_out])
            columns = np.fromiter((item for items in left_out for item in items), np.int64, len(rows))
            scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -torch.inf
            scores[:, 0] = scores[:, self.n_known :] = -torch.inf
            values, items = scores.topk(min(count, self.n_known - 1), dim=1)
            best.append(torch.where(values.isfinite(), items, 0))
        return torch.cat(best)

    @torch.no_grad()
    def candidate_scores(
        self, histories: Sequence[Sequence[int]], candidates: torch.Tensor, users: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Scores [B, C] of candidates [B, C], in an order that no other row changes; users as for ``propose``."""
        at_once, parts = max(1, SCORED_AT_ONCE // self.n_known), []
        for first in range(0, len(histories), at_once):
            rows = range(first, min(first + at_once, len(histories)))

            def of(rows: range) -> torch.Tensor:
                part = slice(rows.start, rows.stop)
                return self.scores(histories[part], users and users[part]).gather(1, candidates[part])

            parts.append(settle_near_ties(of(rows), lambda row, rows=rows, of=of: of(rows[row : row + 1])[0]))
        return torch.cat(parts)

    @torch.no_grad()
    def scores(self, histories: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> torch.Tensor:
        """Scores [B, N] of all items, on the CPU, to users as for ``propose``."""
        config, item_field = self.config, self.config["ITEM_ID_FIELD"]
        history = padded(histories, config["MAX_ITEM_LIST_LENGTH"])
        rows = {
            item_field + config["LIST_SUFFIX"]: history,
            config["ITEM_LIST_LENGTH_FIELD"]: (history > 0).sum(1),
            config["USER_ID_FIELD"]: torch.tensor(users or [0] * len(histories)),
            item_field: torch.zeros(len(histories), dtype=torch.int64),
        }
        scores = self.model.full_sort_predict(Interaction(rows).to(config["device"]))
        return scores.view(len(histories), -1).float().cpu()


def padded(histories: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """The last L items of each history [B, L], 0-padded on the right."""
    history = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, items in enumerate(histories):
        last = torch.tensor(items[-length:], dtype=torch.int64)
        history[row, : len(last)] = last
    return history
