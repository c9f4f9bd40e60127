"""Who may know what: the interactions that the rows of a split rest on, and those that lie before a row's target.

Negatives exclude what the user interacted with, and an item that is never drawn as a negative is thereby told apart. So
the draws for a split may exclude only what this split and the ones before it know: those of training rows exclude the
user's training interactions, those of validation rows training and validation, those of test rows all. Otherwise the
training draws would tell the test target: the one candidate that was never a negative.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from recbole_llara.data.candidates import Rows, SeenItems

SPLITS = ("train", "valid", "test")


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
