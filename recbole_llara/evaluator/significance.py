"""How much of a difference is noise: an interval for one share, tests for two systems, and a correction for many tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, ttest_1samp

SPREADLESS = 1e-12  # .6 - .5 and .7 - .6 differ by their rounding: a spread up to this share of the values is none


@dataclass(frozen=True)
class Interval:
    """A share and its 95 % confidence interval; all three in [0, 1]."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two systems on the same rows, which are counted by who answered correctly."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float  # two-sided probability of so lopsided a division of the discordant rows if both were equally good


@dataclass(frozen=True)
class MeanDifference:
    """A mean of paired differences, its 95 % interval and its p value (two-sided paired t-test)."""

    mean: float
    low: float
    high: float
    p_value: float


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval of the share of successes among n rows (Wilson, 1927)."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} rows: expected 0 <= successes <= n and n >= 1")
    bounds = binomtest(successes, n).proportion_ci(method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> PairedTest:
    """Exact McNemar test of which of the same rows [rows] two systems answered correctly.

    The discordant rows are tosses of a fair coin if the systems are equally good.
    """
    a, b = _paired(correct_a, correct_b, bool)
    both, only_a, only_b, neither = (int(rows.sum()) for rows in (a & b, a & ~b, b & ~a, ~a & ~b))
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedTest(both, only_a, only_b, neither, p_value)


def paired_t(a: np.ndarray, b: np.ndarray) -> MeanDifference | None:
    """Paired t-test of the same measure [pairs] of two systems, a pair a seed.

    Returns:
        None where the pairs say nothing about the spread: there is one of them, or all differ by the same. The test divides by the
        spread, so equal differences would be certain of whatever they happen to be.
    """
    a, b = _paired(a, b, float)
    difference = a - b
    rounding = SPREADLESS * max(1.0, float(np.abs([a, b]).max()))
    if np.ptp(difference) <= rounding:  # as it is for one pair
        return None
    test = ttest_1samp(difference, 0.0)
    interval = test.confidence_interval()
    return MeanDifference(float(difference.mean()), float(interval.low), float(interval.high), float(test.pvalue))


def _paired(a: np.ndarray, b: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=kind), np.asarray(b, dtype=kind)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"shapes {a.shape} and {b.shape}: a paired test needs the same rows or seeds of both, at least one")
    return a, b


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: comparing these with alpha keeps the chance of any false difference under alpha.

    ``p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))`` for p_(1) <= ... <= p_(m) of one family of tests (Holm, 1979).
    Example: .01, .04, .03 become .03, .06, .06.
    """
    p, m = np.asarray(p_values, dtype=float), len(p_values)
    order, adjusted = p.argsort(kind="stable"), np.empty(m)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(m, 0, -1) * p[order]))
    return adjusted.tolist()
