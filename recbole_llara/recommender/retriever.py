"""Ranks the whole catalogue for histories by a recommender; what it proposes is re-ranked, or stands among candidates."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llara.evaluator.ranking import settle_near_ties
from recbole_llara.recommender.item_index import ItemIndex
from recbole_llara.recommender.products import BLOCK, best_products, factors, is_product, products_of
from recbole_llara.utils.errors import UserError

SCORED_AT_ONCE = 1 << 25  # scores [B, N] that are held at a time
NEW_SHARE = 4  # of so many items that are proposed one is an added one, as long as there are any


class Retriever:
    """Ranks all items for histories by a stock recommender.

    Items from ``n_known`` have no interactions and are never proposed, nor are those that ``never`` [N] is true of.

    Where the recommender's scores are products of two vectors, see ``products``, those of a block of items are in memory at a time;
    else those of all items.

    Items that were added after training are scored by vectors that are predicted from their texts. These are shorter than learned ones, so
    that hardly one would come among the best: a quarter of what is proposed is kept for the best of them.

    Args:
        by_index: whether an index proposes, which misses some items, in place of all scores; see ``ItemIndex``.

    Raises:
        UserError: ``by_index``, but faiss is not installed, or the recommender's scores are no products.
    """

    def __init__(
        self, model: nn.Module, config: Any, n_known: int, never: np.ndarray | None = None, by_index: bool = False
    ) -> None:
        self.model, self.config, self.n_known = model.eval(), config, n_known
        self.never = None if never is None else torch.from_numpy(never)
        self.index = self._indexed() if by_index else None
        self.first_added: int | None = None  # the first item that came after training
        self._barred = self.never  # [N] items that are never proposed, whatever is removed or brought back
        self._removed: set[int] = set()

    def change_items(self, n_items: int, added: int, removed: Collection[int]) -> None:
        """Propose items that the model was given, and some no more.

        Args:
            n_items: (int, items) N before.
            added: (int, items) so many stand behind these by now.
            removed: all items that are not proposed any more.
        """
        if added:
            barred = torch.zeros(n_items, dtype=torch.bool) if self._barred is None else self._barred
            # Items without interactions; and added ones, which are looked at by themselves.
            self._barred = torch.cat([barred | (torch.arange(n_items) >= self.n_known), torch.ones(added, dtype=torch.bool)])
            self.first_added = n_items if self.first_added is None else self.first_added
            self.n_known = n_items + added
        self._removed = set(removed)
        self.never = torch.zeros(n_items, dtype=torch.bool) if self._barred is None else self._barred.clone()
        self.never[sorted(removed)] = True

    def may_be_proposed(self, n_items: int) -> torch.Tensor:
        """[N] bool, which of all items."""
        may_be = torch.arange(n_items) < self.n_known
        if self.never is not None:
            may_be &= ~self.never
        if self.first_added is not None:
            may_be[self.first_added :] = True
        may_be[[0, *sorted(self._removed)]] = False
        return may_be

    @cached_property
    def is_product(self) -> bool:
        """Whether the model's scores are products of two vectors."""
        return is_product(self.model, self._rows(*self._asked([[1], [1, min(2, self.n_known - 1)]], None)), self.n_known)

    def _indexed(self) -> ItemIndex:
        if not self.is_product:
            raise UserError(
                f"retrieval: found index, but {type(self.model).__name__} does not score items by products of vectors; expected exact"
            )
        _, items = self._factors(*self._asked([[1]], None))
        left_out = torch.arange(len(items)) >= self.n_known
        left_out[0] = True
        if self.never is not None:
            left_out[: len(self.never)] |= self.never
        return ItemIndex(items, left_out)

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
        at_once, best = self.at_once, []
        for first in range(0, len(histories), at_once):
            part = slice(first, first + at_once)
            left_out = seen[part]
            rows = np.repeat(np.arange(len(left_out)), [len(items) for items in left_out])
            columns = np.fromiter((item for items in left_out for item in items), np.int64, len(rows))
            best.append(self.best(*self._asked(histories[part], users and users[part]), rows, columns, count))
        return torch.cat(best)

    @property
    def at_once(self) -> int:
        """How many rows ``best`` should be given."""
        return max(1, SCORED_AT_ONCE // (min(self.n_known, BLOCK) if self.is_product else self.n_known))

    @torch.no_grad()
    def best(
        self, history: torch.Tensor, users: torch.Tensor, rows: np.ndarray, columns: np.ndarray, count: int
    ) -> torch.Tensor:
        """The best items [B, count] of one batch, best first, 0 where fewer are left.

        Args:
            history: [B, L], 0-padded on the right.
            users: [B] internal ids.
            rows, columns: [pairs] each, of the scores [B, N] that do not count.
        """
        first, items = self.first_added, self._best_learned(history, users, rows, columns, count)
        if first is None:
            return items
        if self.is_product:
            read, table = self._factors(history, users)
            values, of_added = products_of(read, table, items.to(table.device)).cpu(), (read @ table[first:].T).float().cpu()
        else:
            scores = self._scores(history, users)
            values, of_added = scores.gather(1, items), scores[:, first:].clone()
        is_added = columns >= first
        of_added[torch.from_numpy(rows[is_added]), torch.from_numpy(columns[is_added] - first)] = -torch.inf
        of_added[:, [item - first for item in self._removed if item >= first]] = -torch.inf
        best, places = of_added.topk(min(count, of_added.shape[1]), dim=1)
        values = torch.cat([values.masked_fill(items == 0, -torch.inf), best], 1)
        items, width = torch.cat([items, places + first], 1), items.shape[1]
        preferred, kept = values.clone(), slice(width, width + count // NEW_SHARE)
        preferred[:, kept] = values[:, kept].masked_fill(values[:, kept].isfinite(), torch.inf)
        chosen = preferred.topk(min(count, self.n_known - 1), dim=1).indices
        values, order = values.gather(1, chosen).sort(dim=1, descending=True, stable=True)
        return torch.where(values.isfinite(), items.gather(1, chosen).gather(1, order), 0)

    def _best_learned(
        self, history: torch.Tensor, users: torch.Tensor, rows: np.ndarray, columns: np.ndarray, count: int
    ) -> torch.Tensor:
        """``best`` among the items of training."""
        if self.index is not None:
            seen: list[set[int]] = [set(self._removed) for _ in range(len(history))]
            for row, item in zip(rows.tolist(), columns.tolist(), strict=True):
                seen[row].add(item)
            return self.index.best(self._factors(history, users)[0], seen, min(count, self.n_known - 1))
        if self.is_product:
            return self._best_of_blocks(history, users, rows, columns, count)
        scores = self._scores(history, users)
        scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -torch.inf
        scores[:, 0] = scores[:, self.n_known :] = -torch.inf
        if self.never is not None:
            scores[:, self.never] = -torch.inf
        values, items = scores.topk(min(count, self.n_known - 1), dim=1)
        return torch.where(values.isfinite(), items, 0)

    def _best_of_blocks(
        self, history: torch.Tensor, users: torch.Tensor, rows: np.ndarray, columns: np.ndarray, count: int
    ) -> torch.Tensor:
        """``best`` of products, in memory for a block of items at a time."""
        order = np.argsort(columns, kind="stable")
        rows, columns = rows[order], columns[order]

        def left_out(first: int, products: torch.Tensor) -> None:
            last = first + products.shape[1]
            own = slice(*np.searchsorted(columns, [first, last]))
            places = (torch.from_numpy(values).to(products.device) for values in (rows[own], columns[own] - first))
            products[tuple(places)] = -torch.inf
            products[:, max(0, self.n_known - first) :] = -torch.inf
            if self.never is not None:
                products[:, : len(self.never[first:last])].masked_fill_(self.never[first:last].to(products.device), -torch.inf)
            if first == 0:
                products[:, 0] = -torch.inf

        values, items = best_products(*self._factors(history, users), min(count, self.n_known - 1), left_out)
        return torch.where(values.isfinite(), items, 0).cpu()

    @torch.no_grad()
    def candidate_scores(
        self, histories: Sequence[Sequence[int]], candidates: torch.Tensor, users: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Scores [B, C] of candidates [B, C], in an order that no other row changes; users as for ``propose``."""
        at_once, parts = self.at_once, []
        for first in range(0, len(histories), at_once):
            rows = range(first, min(first + at_once, len(histories)))

            def of(rows: range) -> torch.Tensor:
                part = slice(rows.start, rows.stop)
                asked = self._asked(histories[part], users and users[part])
                if self.n_known > BLOCK and self.is_product:
                    return products_of(*self._factors(*asked), candidates[part].to(self.config["device"])).cpu()
                return self._scores(*asked).gather(1, candidates[part])

            parts.append(settle_near_ties(of(rows), lambda row, rows=rows, of=of: of(rows[row : row + 1])[0]))
        return torch.cat(parts)

    def scores(self, histories: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> torch.Tensor:
        """Scores [B, N] of all items, on the CPU, to users as for ``propose``."""
        return self._scores(*self._asked(histories, users))

    def _asked(self, histories: Sequence[Sequence[int]], users: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Histories [B, L] and users [B] as tensors."""
        return padded(histories, self.config["MAX_ITEM_LIST_LENGTH"]), torch.tensor(users or [0] * len(histories))

    def _rows(self, history: torch.Tensor, users: torch.Tensor) -> Interaction:
        return asked_of(self.config, history, users).to(self.config["device"])

    def _factors(self, history: torch.Tensor, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of histories [B, d] and of the items, on the model's device."""
        return factors(self.model, self._rows(history, users), self.n_known)

    def _scores(self, history: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        scores = self.model.full_sort_predict(self._rows(history, users))
        return scores.view(len(history), -1).float().cpu()


class MostPopular(nn.Module):
    """Proposes what most users took in training, to everybody alike: where a run has no recommender.

    Args:
        counts: [N] how many users took each item.
    """

    def __init__(self, counts: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("scores", torch.from_numpy(counts).float().log1p(), persistent=False)

    def set_items(self, items: torch.Tensor, rows: torch.Tensor) -> Callable[[], None]:
        """Further items, which nobody took; see ``growing.set_items``."""
        before, last = self.scores, int(items.max())
        self.scores = torch.cat([before, before.new_zeros(max(0, last + 1 - len(before)))])
        return lambda: setattr(self, "scores", before)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """log(1 + count) of each item, [B, N]: by a softmax, its share of what was taken."""
        return self.scores.repeat(len(interaction), 1)


def asked_of(config: Any, history: torch.Tensor, users: torch.Tensor) -> Interaction:
    """The rows by which RecBole's sequential models are asked, for histories [B, L], 0-padded on the right, and users [B]."""
    item_field = config["ITEM_ID_FIELD"]
    rows = {
        item_field + config["LIST_SUFFIX"]: history,
        config["ITEM_LIST_LENGTH_FIELD"]: (history > 0).sum(1),
        config["USER_ID_FIELD"]: users,
        item_field: torch.zeros_like(users),
    }
    return Interaction(rows)


def padded(histories: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """The last L items of each history [B, L], 0-padded on the right."""
    history = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, items in enumerate(histories):
        last = torch.tensor(items[-length:], dtype=torch.int64)
        history[row, : len(last)] = last
    return history
