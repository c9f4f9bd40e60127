"""Candidate sets: the target and C - 1 items that the split knows no interaction of the user with, in an order that says nothing.

Plain numpy on internal item ids 1..N-1 (0 = padding). Every number is `hashing.numbers` at (seed, purpose, epoch, row,
counter): a row's set is the same in any batch, order or process, and the target neither seeds nor places anything.
Only seen items are stored, as sorted keys; there is no rows x N matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recbole_llara.config.settings import EXCLUDE_RULES
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import numbers, row_keys

# Rounds of redrawing refused slots before a row is drawn exactly from the list of what is left to it.
_REDRAWS = 16
# Cells of the temporary arrays of one chunk: they fit the processor's cache, and memory does not grow with the rows.
_CHUNK_CELLS = 2**18
# Exact draws count from here on, so that they share no number with the rounds of redrawing.
_EXACT_COUNTERS = 2**40
# Likewise which slots hold items of the user's own past, and which of its items.
_OWN_SLOTS = 2**41
_OWN_ITEMS = 2**42
_REFUSED = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class SeenItems:
    """Which user interacted with which item, as sorted keys user * N + item.

    Attributes:
        keys: [pairs] int64, ascending and distinct.
        n_items: N, the padding item counted.
    """

    keys: np.ndarray
    n_items: int

    @classmethod
    def from_interactions(cls, users: np.ndarray, items: np.ndarray, n_items: int) -> "SeenItems":
        """Collect all interactions, [M] users and [M] items (internal ids), before or after any split."""
        return cls(np.unique(users.astype(np.int64) * n_items + items), n_items)

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user interacted with each item; shapes broadcast. Fast where `users` come in order."""
        wanted = users * self.n_items + items
        place = np.searchsorted(self.keys, wanted.ravel()).reshape(wanted.shape)
        np.minimum(place, len(self.keys) - 1, out=place)
        return self.keys[place] == wanted

    def pairs(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of `users` [B], as (position in `users`, item), both [pairs]."""
        position, place = self.places(users)
        return position, self.keys[place] % self.n_items

    def places(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `pairs`, with the items' places in `keys` instead of the items."""
        start = np.searchsorted(self.keys, users * self.n_items)
        length = np.searchsorted(self.keys, (users + 1) * self.n_items) - start
        position = np.repeat(np.arange(len(users)), length)
        within = np.arange(len(position)) - np.repeat(np.cumsum(length) - length, length)
        return position, start[position] + within


@dataclass(frozen=True)
class Rows:
    """Rows of one split, in internal ids.

    Attributes:
        users: [B] int64.
        targets: [B] int64.
        history: [B, L] int64, 0-padded on the right.
        places: [B] int64, where the target stands among the interactions; None for ready-made rows, which have no such place.
    """

    users: np.ndarray
    targets: np.ndarray
    history: np.ndarray
    places: np.ndarray | None


@dataclass(frozen=True)
class OwnPast:
    """Negatives out of the user's own past, as often as targets are.

    Attributes:
        share: of the split's rows whose target is an item that the user had before, in [0, 1].
        items: of rows -> the past of each, as pairs of (position in the rows, item), ascending and distinct.
    """

    share: float
    items: Callable[[Rows], tuple[np.ndarray, np.ndarray]]


class CandidateSampler:
    """Draws candidate sets for rows; holds no state that a draw would change.

    Args:
        seen: what the rows' split knows of all users.
        n_items: N; items 1..N-1 are drawn.
        candidate_num: C, the target included.
        seed: of the draws.
        exclude: "user": negatives are items that `seen` lacks for the user; "window": items outside the row's history.
        own_past: where some negatives come from the user's own past; None = none do.
    """

    def __init__(
        self,
        seen: SeenItems,
        n_items: int,
        candidate_num: int,
        seed: int,
        exclude: str = "user",
        own_past: OwnPast | None = None,
    ) -> None:
        if exclude not in EXCLUDE_RULES:
            raise UserError(f"candidate_exclude is '{exclude}', expected one of {', '.join(EXCLUDE_RULES)}.")
        if candidate_num < 2:
            raise UserError(f"candidate_num is {candidate_num}, expected at least 2: the target and one other item.")
        self.seen = seen
        self.n_items = n_items
        self.candidate_num = candidate_num
        self.seed = seed
        self.exclude = exclude
        self.own_past = own_past

    def draw(
        self,
        rows: np.ndarray,
        users: np.ndarray,
        targets: np.ndarray,
        purpose: str,
        epoch: int = 0,
        history: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """The candidate sets of some rows.

        Negatives are distinct, uniform over the eligible items; the target's column is uniform over C. With C = 4, a
        row whose numbers give negatives 7, 3, 9 and column 1 has the candidates [7, target, 3, 9].

        Args:
            rows: [B] int64, row numbers within `purpose`; equal rows get equal numbers.
            users: [B] int64.
            targets: [B] int64.
            purpose: "train", "valid" or "test".
            epoch: raises new sets for training; 0 for what is drawn once.
            history: [B, L] int64, 0-padded; needed by, and only of use to, the rule "window" and `own_past`.
            places: [B] int64, where the targets stand among the interactions; only of use to `own_past`.

        Returns:
            [B, C] int64.

        Raises:
            UserError: fewer than C - 1 items are eligible for some row.
        """
        rows, users, targets = (np.asarray(values, dtype=np.int64) for values in (rows, users, targets))
        if self.exclude == "window" and history is None:
            raise ValueError("candidate_exclude 'window' needs the history of the rows.")
        if self.own_past is not None and history is None:
            raise ValueError("Negatives of the user's own past need the history of the rows.")
        refused = targets[:, None]
        if self.exclude == "window":
            refused = np.concatenate([np.asarray(history, dtype=np.int64), refused], axis=1)  # [B, L + 1]
        keys = row_keys(self.seed, purpose, epoch, rows)  # [B]

        # Users in order make the look-ups among the seen items walk through memory instead of jumping.
        order = np.argsort(users, kind="stable")
        candidates = np.empty((len(rows), self.candidate_num), dtype=np.int64)
        step = max(1, _CHUNK_CELLS // (self.candidate_num * refused.shape[1]))
        for start in range(0, len(rows), step):
            part = order[start : start + step]
            negatives = self._draw_negatives(keys[part], users[part], refused[part])
            if self.own_past is not None:
                asked = Rows(users[part], targets[part], history[part], None if places is None else places[part])
                self._put_own(keys[part], asked, negatives)
            candidates[part] = self._place(keys[part], negatives, targets[part])
        return candidates

    def check_eligible(self, users: np.ndarray) -> None:
        """Refuse users who have seen so much that too few items are left, before the first set is drawn.

        Args:
            users: [B] int64.

        Raises:
            UserError: fewer than C - 1 items are left to one of them.
        """
        if self.exclude != "user" or not len(users):
            return
        seen = np.bincount(self.seen.keys // self.seen.n_items, minlength=int(users.max()) + 1)  # [U]
        worst = users[seen[users].argmax()]
        self._check_enough(self.n_items - 1 - int(seen[worst]), int(worst))

    def _check_enough(self, eligible: int, user: int) -> None:
        count = self.candidate_num - 1
        if eligible < count:
            raise UserError(
                f"Only {eligible} of {self.n_items - 1} items are left as negatives for user {user} "
                f"(internal id), expected at least {count}: lower candidate_num (now {self.candidate_num}) or set "
                f"candidate_exclude to 'window' (now '{self.exclude}')."
            )

    def _draw_negatives(self, keys: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Distinct eligible items, [b, C - 1]: draw every slot, then redraw the refused ones under new counters."""
        slots = np.arange(self.candidate_num - 1)  # [C - 1]
        items = self._items_at(keys[:, None], slots[None])  # [b, C - 1]
        todo = np.arange(len(keys))
        for attempt in range(1, _REDRAWS + 1):
            bad = self._is_refused(items[todo], users[todo], refused[todo])
            todo, bad = todo[bad.any(axis=1)], bad[bad.any(axis=1)]
            if len(todo) == 0:
                return items
            row, slot = np.nonzero(bad)
            items[todo[row], slot] = self._items_at(keys[todo[row]], slot + attempt * self.candidate_num)
        bad = self._is_refused(items[todo], users[todo], refused[todo])
        todo = todo[bad.any(axis=1)]
        step = max(1, _CHUNK_CELLS // self.n_items)
        for start in range(0, len(todo), step):
            part = todo[start : start + step]
            items[part] = self._draw_exactly(keys[part], users[part], refused[part])
        return items

    def _items_at(self, keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
        """Items 1..N-1; the remainder of a 64-bit number is uniform to N / 2^64."""
        return (numbers(keys, counters) % np.uint64(self.n_items - 1)).astype(np.int64) + 1

    def _is_refused(self, items: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Slots [b, C - 1] that hold a refused item or repeat one of an earlier slot."""
        # Item and slot in one number: sorting these is several times faster than an argsort.
        packed = np.sort(items * self.candidate_num + np.arange(items.shape[1])[None], axis=1)
        ascending, order = np.divmod(packed, self.candidate_num)
        repeats = np.zeros(items.shape, dtype=bool)
        repeats[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
        if self.exclude == "user":
            repeats |= self.seen.contains(users[:, None], ascending)
        bad = np.empty_like(repeats)
        np.put_along_axis(bad, order, repeats, axis=1)
        bad |= (items[:, :, None] == refused[:, None, :]).any(axis=2)
        return bad

    def _draw_exactly(self, keys: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Distinct eligible items where few are left: number all N items, take the C - 1 smallest eligible."""
        count = self.candidate_num - 1
        order = numbers(keys[:, None], np.arange(self.n_items)[None] + _EXACT_COUNTERS)  # [b, N]
        order[:, 0] = _REFUSED
        np.put_along_axis(order, refused, _REFUSED, axis=1)
        if self.exclude == "user":
            order[self.seen.pairs(users)] = _REFUSED
        eligible = (order != _REFUSED).sum(axis=1)
        worst = int(eligible.argmin())
        self._check_enough(int(eligible[worst]), int(users[worst]))
        return np.argsort(order, axis=1, kind="stable")[:, :count]

    def _put_own(self, keys: np.ndarray, rows: Rows, negatives: np.ndarray) -> None:
        """Put items of the users' own past into slots [b, C - 1], each slot with the probability `own_past.share`.

        A user whose past is too short for the slots gives all of it. With C = 4, slots 0 and 2 drawn and a past of items
        5, 6 and 8, a row of negatives 7, 3, 9 becomes 8, 3, 5.
        """
        position, item = self.own_past.items(rows)
        keep = item != rows.targets[position]
        position, item = position[keep], item[keep]
        slots = np.arange(self.candidate_num - 1)
        drawn = numbers(keys[:, None], slots[None] + _OWN_SLOTS) >> np.uint64(11)  # [b, C - 1] of 53 bits, as floats hold them
        is_own = drawn * 2.0**-53 < self.own_past.share
        order = np.lexsort((numbers(keys[position], item + _OWN_ITEMS), position))
        position, item = position[order], item[order]
        start = np.searchsorted(position, np.arange(len(keys)))
        rank = np.arange(len(position)) - start[position]  # of each item within its row
        kept = rank < is_own.sum(axis=1)[position]
        position, item, rank = position[kept], item[kept], rank[kept]
        slot = np.argsort(~is_own, axis=1, kind="stable")  # [b, C - 1] the drawn slots first
        negatives[position, slot[position, rank]] = item

    def _place(self, keys: np.ndarray, negatives: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Put each target into a column of its own number, the negatives around it; [b, C]."""
        slots = np.arange(self.candidate_num - 1)
        # The last counter below the first redraw: no slot uses it.
        column = (numbers(keys, slots[-1:] + 1) % np.uint64(self.candidate_num)).astype(np.int64)  # [b]
        candidates = np.empty((len(keys), self.candidate_num), dtype=np.int64)
        np.put_along_axis(candidates, slots[None] + (slots[None] >= column[:, None]), negatives, axis=1)
        np.put_along_axis(candidates, column[:, None], targets[:, None], axis=1)
        return candidates
