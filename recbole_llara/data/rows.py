"""Rows of a history and a target: which users a split takes, and which interactions it may know.

Negatives exclude what the user interacted with, and an item that is never drawn as a negative is thereby told apart. So
the draws for a split may exclude only what this split and the ones before it know: those of training rows exclude the
user's training interactions, those of validation rows training and validation, those of test rows all. Otherwise the
training draws would tell the test target: the one candidate that was never a negative.

Plain numpy on internal ids; what the arrays mean in a RecBole dataset is the business of ``dataset``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Rows:
    """Rows of one split; int64, in internal ids."""

    users: np.ndarray  # [B]
    targets: np.ndarray  # [B]
    history: np.ndarray  # [B, L], 0-padded on the right
    places: np.ndarray  # [B] of the targets among the interactions by user and time; of ready-made rows the split's, from 0

    def take(self, part: np.ndarray | slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(values[part] for values in vars(self).values()))


def split_users(users_in_order: np.ndarray, ratio: tuple[float, float, float]) -> tuple[np.ndarray, ...]:
    """Cut users [U] into train, valid and test by shares, which need not add up to 1; 943 users and 8:1:1 give 754, 94 and 95."""
    shares = np.cumsum(ratio)[:-1] / np.sum(ratio)
    # Rounded first: 0.3 / 1.0 of 10 users must be 3, not the floor of 2.9999999999999996.
    bounds = np.floor(np.round(shares * len(users_in_order), 9)).astype(np.int64)
    return tuple(np.split(users_in_order, bounds))


@dataclass(frozen=True)
class TrainingPart:
    """The later rows of each user among the training rows, or the earlier ones.

    A user of n >= 2 rows has ``share * n`` later ones, rounded, but at least one and not all; a user of one row has none.
    """

    share: float
    is_later: bool

    def of(self, rows: Rows) -> np.ndarray:
        """[B] whether a row is one of the part, of all training rows.

        Users [5, 5, 5, 8] at places [3, 1, 2, 9] and a share of 0.2 give later rows [True, False, False, False].
        """
        _, user, counts = np.unique(rows.users, return_inverse=True, return_counts=True)
        later = np.minimum(np.maximum(np.round(self.share * counts), 1), counts - 1)
        order = np.lexsort((rows.places, user))
        rank = np.empty_like(order)  # of each row among its user's, from 0
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return (rank >= (counts - later)[user]) == self.is_later


@dataclass(frozen=True)
class SeenItems:
    """Which user interacted with which item."""

    keys: np.ndarray  # [pairs] int64, user * N + item, ascending and distinct
    n_items: int  # N, the padding item counted

    def contains(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user interacted with each item; shapes broadcast. Fast where `users` come in order."""
        wanted = users * self.n_items + items
        place = np.searchsorted(self.keys, wanted.ravel()).reshape(wanted.shape)
        np.minimum(place, len(self.keys) - 1, out=place)
        return self.keys[place] == wanted

    def counts(self, n_items: int) -> np.ndarray:
        """[n_items] how many users interacted with each item."""
        return np.bincount(self.keys % self.n_items, minlength=n_items)

    def places(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All items of `users` [B], as (position in `users`, place in `keys`), both [pairs]."""
        start = np.searchsorted(self.keys, users * self.n_items)
        length = np.searchsorted(self.keys, (users + 1) * self.n_items) - start
        position = np.repeat(np.arange(len(users)), length)
        within = np.arange(len(position)) - np.repeat(np.cumsum(length) - length, length)
        return position, start[position] + within


class Knowledge:
    """What each split knows of each user, and what came before a row.

    Args:
        users, items, places: [M] all interactions; the places ascend and are of the kind that the rows have.
        splits: rows of train, valid and test, before any is left out: a split knows each user's interactions up to the last
            target in it and in the splits before; "test" knows all.
        homes: [N] of each item the first split that may know it, as its place in ``SPLITS``; None = all know every item.

    Attributes:
        known: split -> the interactions that it knows.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        places: np.ndarray,
        splits: Sequence[Rows],
        homes: np.ndarray | None = None,
    ) -> None:
        n_items = int(items.max(initial=0)) + 1
        keys, first = np.unique(users.astype(np.int64) * n_items + items, return_index=True)
        self._first = places[first]  # [pairs] the place of each pair's first interaction
        last = np.full(int(users.max(initial=0)) + 1, -1)
        self.known: dict[str, SeenItems] = {}
        for number, (name, rows) in enumerate(zip(SPLITS, splits, strict=True)):
            np.maximum.at(last, rows.users, rows.places)
            kept = np.full(len(keys), name == "test") | (self._first <= last[keys // n_items])
            if homes is not None:
                kept &= homes[keys % n_items] <= number
            self.known[name] = SeenItems(keys[kept], n_items)

    @classmethod
    def from_windows(cls, splits: Sequence[Rows]) -> "Knowledge":
        """Of ready-made rows, whose histories and targets are all the interactions that there are."""
        users, items, places = [], [], []
        for rows in splits:
            row, column = np.nonzero(rows.history)
            users += [rows.users[row], rows.users]
            items += [rows.history[row, column], rows.targets]
            places += [rows.places[row], rows.places]
        return cls(np.concatenate(users), np.concatenate(items), np.concatenate(places), splits)

    def past(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The distinct items that each row's user had before its target: pairs of (position in ``rows``, item), ascending."""
        everything = self.known["test"]
        position, place = everything.places(rows.users)
        before = self._first[place] < rows.places[position]
        row, column = np.nonzero(rows.history)  # what ready-made rows of the same split know by themselves
        earlier = position[before] * everything.n_items + everything.keys[place[before]] % everything.n_items
        shown = row * everything.n_items + rows.history[row, column]
        return np.divmod(np.unique(np.concatenate([earlier, shown])), everything.n_items)

    def is_repeat(self, rows: Rows) -> np.ndarray:
        """[B] whether each row's target is an item that its user had before."""
        everything = self.known["test"]
        pair = np.searchsorted(everything.keys, rows.users * everything.n_items + rows.targets)
        return (self._first[pair] < rows.places) | (rows.history == rows.targets[:, None]).any(axis=1)
