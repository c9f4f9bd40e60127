"""Rows out of sequences: which interactions form each history, and which rows go to which split.

Plain numpy on arrays of users; what the arrays mean in a RecBole dataset is `dataset`'s business.
"""

from dataclasses import dataclass

import numpy as np


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
    """Cut users into train, valid and test by shares; 943 users and 8:1:1 give 754, 94 and 95.

    Args:
        users_in_order: [U], by the time of their first interaction.
        ratio: shares; they need not add up to 1.

    Returns:
        Three arrays of users.
    """
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

    Args:
        users: [R], rows grouped by user, oldest first within each.
        length: [R], of the rows' histories.
        parts: the users of train, valid and test.
        min_train_history: training rows with shorter histories are dropped.
        min_eval_history: valid and test rows with shorter histories are dropped.

    Returns:
        Row numbers of train, valid and test.
    """
    is_last = np.ones(len(users), dtype=bool)
    is_last[:-1] = users[1:] != users[:-1]
    train = np.isin(users, parts[0]) & (length >= min_train_history)
    is_eval = is_last & (length >= min_eval_history)
    return tuple(np.flatnonzero(mask) for mask in (train, *(np.isin(users, part) & is_eval for part in parts[1:])))
