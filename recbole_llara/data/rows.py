"""Rows of a history and a target: how sequences are cut into them, which split takes which, and who may know what.

Negatives exclude what the user interacted with, and an item that is never drawn as a negative is thereby told apart. So
the draws for a split may exclude only what this split and the ones before it know: those of training rows exclude the
user's training interactions, those of validation rows training and validation, those of test rows all. Otherwise the
training draws would tell the test target: the one candidate that was never a negative.

Plain numpy on internal ids; what the arrays mean in a RecBole dataset is the business of ``dataset``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "valid", "test")


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
class Windows:
    """Every position of every user but the first, with the interactions before it.

    Attributes:
        target: [R] int64, where the target stands among the interactions.
        history: [R, L] int64, where the history's items stand, oldest first; meaningless beyond `length`.
        length: [R] int64, 1..L.
    """

    target: np.ndarray
    history: np.ndarray
    length: np.ndarray


def sliding_windows(users: np.ndarray, max_length: int) -> Windows:
    """Cut sequences into (history, target) rows: the rows of RecBole's `data_augmentation`, without its loop.

    Users [5, 5, 5, 8, 8] and L = 2 give targets at 1, 2, 4, of histories [0], [0, 1], [3].

    Args:
        users: [M], interactions grouped by user, oldest first within each.
        max_length: L.

    Returns:
        R = M - (number of users) windows, in the order of the interactions.
    """
    place = np.arange(len(users))
    is_first = np.ones(len(users), dtype=bool)
    is_first[1:] = users[1:] != users[:-1]
    position = place - np.maximum.accumulate(np.where(is_first, place, 0))
    target = place[~is_first]
    length = np.minimum(position[~is_first], max_length)
    column = np.minimum(np.arange(max_length)[None], length[:, None] - 1)  # stays within the user's own interactions
    return Windows(target, (target - length)[:, None] + column, length)


def split_users(users_in_order: np.ndarray, ratio: tuple[float, float, float]) -> tuple[np.ndarray, ...]:
    """Cut users [U] into train, valid and test by shares, which need not add up to 1; 943 users and 8:1:1 give 754, 94 and 95."""
    shares = np.cumsum(ratio)[:-1] / np.sum(ratio)
    # Rounded first: 0.3 / 1.0 of 10 users must be 3, not the floor of 2.9999999999999996.
    bounds = np.floor(np.round(shares * len(users_in_order), 9)).astype(np.int64)
    return tuple(np.split(users_in_order, bounds))


def rows_by_user_split(
    users: np.ndarray,
    length: np.ndarray,
    parts: tuple[np.ndarray, ...],
    min_train_history: int,
    min_eval_history: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The papers' protocol: every row of the training users, the last row of each valid and test user.

    Rows with a history below the least length of their split are dropped.

    Args:
        users: [R], rows grouped by user, oldest first within each.
        length: [R], of the rows' histories.
        parts: the users of train, valid and test.

    Returns:
        Row numbers of train, valid and test.
    """
    is_last = np.ones(len(users), dtype=bool)
    is_last[:-1] = users[1:] != users[:-1]
    train = np.isin(users, parts[0]) & (length >= min_train_history)
    is_eval = is_last & (length >= min_eval_history)
    return tuple(np.flatnonzero(mask) for mask in (train, *(np.isin(users, part) & is_eval for part in parts[1:])))


@dataclass(frozen=True)
class SeenItems:
    """Which user interacted with which item: ``keys`` [pairs] int64, user * N + item, ascending and distinct; N counts the padding."""

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


class Knowledge:
    """What each split knows of each user, and what came before a row.

    Attributes:
        known: split -> the interactions that its rows, and those of the splits before it, rest on; "test" has all.
    """

    def __init__(self, known: Mapping[str, SeenItems], first: np.ndarray | None) -> None:
        self.known = known
        self._first = first  # [pairs of known["test"]] the place of each pair's first interaction

    @classmethod
    def from_interactions(cls, users: np.ndarray, items: np.ndarray, splits: Sequence[Rows], n_items: int) -> "Knowledge":
        """Of rows that were cut out of sequences: a split knows each user's interactions up to its last target.

        Args:
            users, items: [M] all interactions, by user and then by time; a row's place counts in this order.
            splits: of train, valid and test, before any row is left out.
            n_items: N of the draws.
        """
        place = np.arange(len(users))
        last = np.full(int(users.max(initial=0)) + 1, -1)
        known = {}
        for name, rows in zip(SPLITS, splits, strict=True):
            np.maximum.at(last, rows.users, rows.places)
            kept = place <= last[users] if name != "test" else slice(None)
            known[name] = SeenItems.from_interactions(users[kept], items[kept], n_items)
        _, first = np.unique(users.astype(np.int64) * n_items + items, return_index=True)
        return cls(known, first)

    @classmethod
    def from_windows(cls, splits: Sequence[Rows], n_items: int) -> "Knowledge":
        """Of ready-made rows: a split knows the histories and targets of its rows and of those of the splits before it."""
        users, items, known = [], [], {}
        for name, rows in zip(SPLITS, splits, strict=True):
            row, column = np.nonzero(rows.history)
            users += [rows.users[row], rows.users]
            items += [rows.history[row, column], rows.targets]
            known[name] = SeenItems.from_interactions(np.concatenate(users), np.concatenate(items), n_items)
        return cls(known, None)

    def past(self, split: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The distinct items that each row's user had before its target.

        Of ready-made rows these are the history's, and what the splits before know of the user.

        Returns:
            Pairs of (position in ``rows``, item), both [pairs], ascending.
        """
        everything = self.known["test"]
        if self._first is not None:
            position, place = everything.places(rows.users)
            before = self._first[place] < rows.places[position]
            return position[before], everything.keys[place[before]] % everything.n_items
        row, column = np.nonzero(rows.history)
        pairs = [row * everything.n_items + rows.history[row, column]]
        if split != "train":
            position, item = self.known[SPLITS[SPLITS.index(split) - 1]].pairs(rows.users)
            pairs.append(position * everything.n_items + item)
        return np.divmod(np.unique(np.concatenate(pairs)), everything.n_items)

    def is_repeat(self, split: str, rows: Rows) -> np.ndarray:
        """Whether each row's target is an item that its user had before; [B] bool."""
        everything = self.known["test"]
        if self._first is not None:
            return self._first[np.searchsorted(everything.keys, rows.users * everything.n_items + rows.targets)] < rows.places
        found = (rows.history == rows.targets[:, None]).any(axis=1)
        if split != "train":
            found |= self.known[SPLITS[SPLITS.index(split) - 1]].contains(rows.users, rows.targets)
        return found


def repeat_message(split: str, repeats: int, rows: int) -> str:
    """What a user should know of repeated targets."""
    return (
        f"{split}: in {repeats} of {rows} rows ({repeats / rows:.1%}) the user had the target before, and no other candidate ever: "
        "a rule that picks the candidate in the history is right there, so HitRatio@1 says little. repeated_targets: drop leaves "
        "these rows out; match draws negatives from the user's own past too, as often as targets are."
    )
