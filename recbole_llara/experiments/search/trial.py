"""A finished trial, and which of them is the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llara.experiments.search.definition import Search


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Args:
        number: from 0.
        values: of the searched keys.
        score: ``best_valid_score``; None where it failed.
        seconds: it took.
        valid: RecBole's metrics of the validation rows.
        run_dir: the run's folder; None where it failed.
        result_file: the run's; None where it failed.
        error: why it failed.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    seconds: float
    valid: dict[str, float]
    run_dir: str | None = None
    result_file: str | None = None
    error: str | None = None


def best_of(search: Search, trials: Sequence[Trial]) -> Trial | None:
    """The trial of the best score, of equals the first; None where all failed."""
    scored = [trial for trial in trials if trial.score is not None]
    sign = -1 if search.is_bigger_better else 1
    return min(scored, key=lambda trial: (sign * trial.score, trial.number), default=None)
