"""Random numbers by counting instead of by state: each is a hash of what it is for.

A generator with state makes a row's numbers depend on the rows drawn before it. Here the number for (seed, purpose,
epoch, row, counter) is SplitMix64 evaluated at that place, so a row gives the same in any batch, order and process.
"""

import hashlib

import numpy as np
import torch

# SplitMix64's odd numbers as the signed ones that torch holds.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mixed(state: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele et al., 2014) of 64 bits each, held as int64 of any shape."""
    state = (state ^ _shifted(state, 30)) * _MULTIPLIER_1  # wraps around
    state = (state ^ _shifted(state, 27)) * _MULTIPLIER_2
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, zeros moving in: torch's own shift of int64 repeats the sign."""
    return (state >> count) & ((1 << (64 - count)) - 1)


def _mix(state: np.ndarray) -> np.ndarray:
    """``mixed`` of uint64."""
    return mixed(torch.from_numpy(np.asarray(state).view(np.int64))).numpy().view(np.uint64)


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
    return _mix(np.asarray(rows).astype(np.uint64) * _GAMMA + start)


def numbers(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """The numbers at places `counters` of the streams `keys`, uniform over all of uint64.

    Args:
        keys: uint64, from `row_keys`, of a shape that broadcasts with `counters`.
        counters: non-negative integers.

    Returns:
        uint64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):  # wrapping around is the point; numpy warns of it for single numbers
        return _mix(keys + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * _GAMMA)


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
