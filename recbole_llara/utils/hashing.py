"""Random numbers by counting instead of by state: each is a hash of what it is for.

A generator with state makes a row's numbers depend on the rows drawn before it. Here the number for (seed, purpose,
epoch, row, counter) is SplitMix64 evaluated at that place, so a row gives the same in any batch, order and process.
"""

import hashlib

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def mix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64 `state` in place by SplitMix64's finaliser (Steele et al., 2014), and return it."""
    state ^= state >> np.uint64(30)
    state *= _MULTIPLIER_1
    state ^= state >> np.uint64(27)
    state *= _MULTIPLIER_2
    state ^= state >> np.uint64(31)
    return state


def row_keys(seed: int, purpose: str, epoch: int, rows: np.ndarray) -> np.ndarray:
    """The starting state of every row's own stream of numbers.

    Args:
        seed: of the experiment.
        purpose: what is drawn, e.g. "train"; unlike purposes give unrelated streams.
        epoch: 0 for what is drawn once.
        rows: [B] int64, row numbers.

    Returns:
        [B] uint64.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    start = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)  # [1]
    return mix(np.asarray(rows).astype(np.uint64) * GAMMA + start)


def numbers(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """The numbers at places `counters` of the streams `keys`, uniform over all of uint64.

    Args:
        keys: uint64, from `row_keys`, of a shape that broadcasts with `counters`.
        counters: non-negative integers.

    Returns:
        uint64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):  # wrapping around is the point; numpy warns of it for single numbers
        return mix(keys + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * GAMMA)


def sample_rows(n_rows: int, limit: int, seed: int, purpose: str) -> np.ndarray:
    """A seeded sample of row numbers, ascending; the sample of a smaller limit lies within that of a larger one.

    Args:
        n_rows: rows there are.
        limit: rows wanted; 0 = all.
        seed: of the experiment.
        purpose: what the sample is for.

    Returns:
        [min(limit, n_rows)] int64.
    """
    rows = np.arange(n_rows, dtype=np.int64)
    if limit == 0 or limit >= n_rows:
        return rows
    order = np.argsort(row_keys(seed, purpose, 0, rows), kind="stable")
    return np.sort(order[:limit]).astype(np.int64)
