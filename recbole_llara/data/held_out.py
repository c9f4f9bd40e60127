"""Protocol ``cold_items``: items that nobody has learned from, and the rows that ask for them.

A share of the items is the targets of test rows, another one those of validation rows, and no training interaction has any of
them. Candidates of such a row are items of its own share alone: were one of them a learned item, its being learned would tell
that it is not the target. Validation has a share of its own, so that choosing on validation rows meets the task of the test rows
and learns nothing of their items.

Histories of all splits show learned items alone: a held-out item in a history would be one that somebody has seen.

Plain numpy on internal ids, as in ``rows``.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from recbole_llara.data.rows import SPLITS
from recbole_llara.utils.hashing import facts_digest, numbers, row_keys

TRAIN, VALID, TEST = range(len(SPLITS))


def draw_homes(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """[N] of each item the split that may have it as a target, as its place in ``SPLITS``; the padding item's is train.

    Each item is drawn by the hash of (seed, name) alone: further items change the home of none, and items of one name, as
    two editions of a film are, share theirs, so that no title of a held-out item is read in training.

    Args:
        names: of N items, the padding item's first: titles, or ids where there are none.
        share: of the items for test, and as many for validation; below 0.5.
        seed: of the draw.
    """
    hashes = pd.util.hash_array(np.array(names, dtype=object), categorize=False)
    drawn = (numbers(row_keys(seed, "held-out items", 0, hashes), np.zeros(1)) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    homes = np.where(drawn < share, TEST, np.where(drawn < 2 * share, VALID, TRAIN))
    homes[0] = TRAIN
    return homes


def split_by_homes(users: np.ndarray, homes: np.ndarray, is_new: np.ndarray) -> tuple[np.ndarray, ...]:
    """Which of R rows are of train, valid and test: three times [R] bool.

    A user's test row is the last whose target is a test item, the validation row the last before it whose target is a
    validation item, and training rows are those of learned items before both: nobody learns from what came after the question.

    Args:
        users: [R] of rows in order of user and time.
        homes: [R] of their targets, see ``draw_homes``.
        is_new: [R] whether the user never had the target before; others are asked of nobody.

    Example: targets of the homes train, valid, train, test, train, valid of one user give training row 0, validation row 1 and
    test row 3; row 2 is in the history of test alone, rows 4 and 5 came later.
    """
    places = np.arange(len(users))
    n_users = int(users.max(initial=-1)) + 1

    def last(is_asked: np.ndarray, before: np.ndarray) -> np.ndarray:
        """[users] where the last of some rows before a place stands; that place where there is none."""
        found = np.full(n_users, -1)
        taken = is_asked & is_new & (places < before[users])
        np.maximum.at(found, users[taken], places[taken])
        return np.where(found < 0, before, found)

    of_test = last(homes == TEST, np.full(n_users, len(users)))
    of_valid = last(homes == VALID, of_test)
    is_test = (homes == TEST) & (places == of_test[users])
    is_valid = (homes == VALID) & (places == of_valid[users])
    return (homes == TRAIN) & (places < of_valid[users]), is_valid, is_test


class HoldsItemsOut:
    """What a dataset tells of held-out items; it has RecBole's ``field2id_token`` and ``iid_field``."""

    # [N] of each item the split whose targets it may be, under protocol cold_items; None = of any.
    homes: np.ndarray | None = None

    @property
    def is_held_out(self) -> np.ndarray | None:
        """[N] bool, whether an item is held out from all training; None where the protocol holds none out."""
        return None if self.homes is None else self.homes != TRAIN

    @property
    def held_out_digest(self) -> str:
        """Digest of the ids of the items that are held out for test and for validation, under protocol cold_items."""
        ids = np.array(self.field2id_token[self.iid_field])
        return facts_digest([sorted(ids[self.homes == home].tolist()) for home in (VALID, TEST)])
