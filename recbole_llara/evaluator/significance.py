"""How much of a difference is noise: an interval for one share, tests for two systems, and a correction for many tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, ttest_1samp

SPREADLESS = 1e-12  # .6 - .5 and .7 - .6 differ by their rounding: a spread up to this share of the values is none


@dataclass(frozen=True)
class Interval:
    """A share and its confidence interval; all three in [0, 1]."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two systems on the same rows.

    Attributes:
        both, only_a, only_b, neither: rows by who answered correctly.
        p_value: two-sided probability of so lopsided a division of the discordant rows if both were equally good.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float

    @property
    def n(self) -> int:
        """Number of rows compared."""
        return self.both + self.only_a + self.only_b + self.neither


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of the share of successes among n rows (Wilson, 1927), at a coverage in (0, 1)."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} rows: expected 0 <= successes <= n and n >= 1")
    bounds = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(share=successes / n, low=float(bounds.low), high=float(bounds.high))


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> PairedTest:
    """Exact McNemar test: the discordant rows are tosses of a fair coin if the systems are equally good.

    Args:
        correct_a, correct_b: [rows] bool, which of the same rows each system answered correctly.
    """
    a, b = _paired(correct_a, correct_b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedTest(int((a & b).sum()), only_a, only_b, int((~a & ~b).sum()), p_value)


@dataclass(frozen=True)
class MeanDifference:
    """A mean of paired differences, its 95 % interval and its p value (two-sided paired t-test)."""

    mean: float
    low: float
    high: float
    p_value: float


def paired_t(a: np.ndarray, b: np.ndarray) -> MeanDifference | None:
    """Paired t-test of two systems, a pair a seed.

    Args:
        a, b: [pairs] the same measure of both.

    Returns:
        None where the pairs say nothing about the spread: there is one of them, or all differ by the same. The test divides by the
        spread, so equal differences would be certain of whatever they happen to be.
    """
    a, b = _paired(a, b, float)
    difference = a - b
    mean = float(difference.mean())
    rounding = SPREADLESS * max(1.0, float(np.abs(np.concatenate([a, b])).max()))
    if np.ptp(difference) <= rounding:  # as it is for one pair
        return None
    test = ttest_1samp(difference, 0.0)
    interval = test.confidence_interval()
    return MeanDifference(mean, float(interval.low), float(interval.high), float(test.pvalue))


def _paired(a: np.ndarray, b: np.ndarray, kind: type) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=kind), np.asarray(b, dtype=kind)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"shapes {a.shape} and {b.shape}: a paired test needs the same rows or seeds of both, at least one")
    return a, b


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: comparing these with alpha keeps the chance of any false difference under alpha.

    ``p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))`` for p_(1) <= ... <= p_(m) (Holm, 1979).

    Example: .01, .04, .03 become .03, .06, .06.

    Args:
        p_values: of one family of tests, in any order.
    """
    m = len(p_values)
    adjusted, highest = [0.0] * m, 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
