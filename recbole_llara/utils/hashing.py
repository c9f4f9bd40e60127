"""Digests of values and files; and random numbers by counting instead of by state: each is a hash of what it is for.

A generator with state makes a row's numbers depend on the rows drawn before it. Here the number for (seed, purpose,
epoch, row, counter) is SplitMix64 evaluated at that place, so a row gives the same in any batch, order and process.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 16  # of short digests
GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def json_ready(value: Any) -> Any:
    """Plain Python of ``value``: numpy numbers unwrapped, NaN and infinities None, anything unknown its ``str``."""
    if value is None or type(value) in (str, bool, int):  # not their subclasses: an IntEnum shows its name
        return value
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        entries = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [json_ready(entry) for entry in entries]
    return str(value)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_sha256(facts: Any) -> str:
    """SHA-256 of what JSON can hold; anything else counts by its text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def facts_digest(facts: Any) -> str:
    """The first digits of ``facts_sha256``."""
    return facts_sha256(facts)[:DIGITS]


@cache
def code_digest() -> str:
    """The first digits of a SHA-256 over this package's source files: two runs with the same one ran the same code."""
    package = Path(__file__).resolve().parent.parent
    files = {path.relative_to(package).as_posix(): file_sha256(path) for path in sorted(package.rglob("*.py"))}
    return facts_digest(files)


def mix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64 ``state`` in place by SplitMix64's finaliser (Steele et al., 2014), and return it."""
    state ^= state >> np.uint64(30)
    state *= _MULTIPLIER_1
    state ^= state >> np.uint64(27)
    state *= _MULTIPLIER_2
    state ^= state >> np.uint64(31)
    return state


def row_keys(seed: int, purpose: str, epoch: int, rows: np.ndarray) -> np.ndarray:
    """The starting state [B] uint64 of every row's own stream of numbers.

    Args:
        seed: of the experiment.
        purpose: what is drawn, e.g. "train"; unlike purposes give unrelated streams.
        epoch: 0 for what is drawn once.
        rows: [B] int64, row numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    start = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)  # [1]
    return mix(np.asarray(rows).astype(np.uint64) * GAMMA + start)


def numbers(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """The numbers, uniform over all of uint64, at places ``counters`` of the streams ``keys``; their shapes broadcast.

    Args:
        keys: uint64, from ``row_keys``.
        counters: non-negative integers.
    """
    with np.errstate(over="ignore"):  # wrapping around is the point; numpy warns of it for single numbers
        return mix(keys + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * GAMMA)


def sample_rows(n_rows: int, limit: int, seed: int, purpose: str) -> np.ndarray:
    """[min(limit, n_rows)] int64, a seeded sample of row numbers, ascending and within those of larger limits; 0 = all."""
    rows = np.arange(n_rows, dtype=np.int64)
    if limit == 0 or limit >= n_rows:
        return rows
    order = np.argsort(row_keys(seed, purpose, 0, rows), kind="stable")
    return np.sort(order[:limit]).astype(np.int64)
