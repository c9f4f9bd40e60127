"""One system out of several: the weighted sum of their log-probabilities over a row's candidates, fitted on validation rows.

Of S systems with log p_s, each the log-softmax of its scores over the row's candidates, the sum is

    log p(c) = log softmax_c(sum_s w_s * log p_s(c) / T),    w = 1 for the first system,

a product of experts with one weight each. ``fit`` finds w and the temperature T: written as b_s = w_s / T it is a multinomial
logit, whose negative log-likelihood of the targets is convex in b. Only the rows that it is given are looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import minimize

from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.calibration import log_probabilities, mean_nll
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.utils.errors import UserError

LARGEST = 1e3  # of b: where the targets of all rows stand first, the likelihood grows with b for ever
LEAST = 1e-6  # of b: a system that has less does not count


@dataclass(frozen=True)
class Fusion:
    """The weights of systems and what they were fitted on."""

    systems: tuple[str, ...]  # S names
    weights: tuple[float, ...]  # S, at least 0; 1 of the first system that counts at all
    temperature: float  # by which the weighted sum is divided
    n: int  # validation rows
    # Mean negative log-likelihoods of the validation rows' targets in nats: of each system as it is, of each by a temperature of
    # its own, and of the sum.
    nll_alone: tuple[float, ...]
    nll_calibrated: tuple[float, ...]
    nll: float

    @property
    def name(self) -> str:
        """``LLaRA + SASRec``; a recommender, which comes first, is named last."""
        return " + ".join([*self.systems[1:], self.systems[0]])

    def scores(self, scores: Sequence[torch.Tensor], is_there: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the sum over each row's candidates.

        Args:
            scores: S of [R, C], by system; of lists of any length C, not that of the fit alone.
            is_there: as for ``log_probabilities``.

        Returns:
            [R, C] float64, 0 where there is no candidate.
        """
        return log_probabilities(sum(self.weighted(scores, is_there)) / self.temperature, is_there)

    def weighted(self, scores: Sequence[torch.Tensor], is_there: torch.Tensor | None = None) -> list[torch.Tensor]:
        """What is summed: ``w_s * log p_s`` [R, C] of each system, in nats; arguments as for ``scores``."""
        if len(scores) != len(self.weights):
            raise ValueError(f"scores of {len(scores)} systems, expected those of {', '.join(self.systems)}")
        return [weight * log_probabilities(values, is_there) for weight, values in zip(self.weights, scores, strict=True)]

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells, from which ``read`` makes the same again."""
        nll = {"alone": self.nll_alone, "calibrated": self.nll_calibrated}
        by_system = {key: dict(zip(self.systems, values, strict=True)) for key, values in nll.items()}
        return {
            "name": self.name,
            "weights": dict(zip(self.systems, self.weights, strict=True)),
            "temperature": self.temperature,
            "fitted_on": "validation",
            "n": self.n,
            "nll": {**by_system, "fused": self.nll},
        }

    @classmethod
    def read(cls, fields: Any) -> Self:
        """The fusion that ``result_fields`` tells, which a stranger may have written.

        Raises:
            UserError: it is none, or its numbers are none that a fit gives.
        """
        try:
            weights = {str(name): float(weight) for name, weight in fields["weights"].items()}
            temperature, nll = float(fields["temperature"]), fields["nll"]
            alone, calibrated = ([float(nll[kind][name]) for name in weights] for kind in ("alone", "calibrated"))
            found = cls(
                *(tuple(weights), tuple(weights.values()), temperature, int(fields["n"])),
                *(tuple(alone), tuple(calibrated), float(nll["fused"])),
            )
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"fusion: result.json tells no weights that can be read ({error!r}), expected those of a fused run"
            ) from error
        if len(weights) < 2 or not all(isfinite(weight) and weight >= 0 for weight in weights.values()):
            raise UserError(f"fusion: result.json tells the weights {weights}, expected two or more numbers of at least 0")
        if not isfinite(temperature) or temperature <= 0:
            raise UserError(f"fusion: result.json tells the temperature {temperature}, expected a number above 0")
        return found


def fit(scores: Mapping[str, torch.Tensor | None], places: torch.Tensor) -> Fusion:
    """Fit weights and temperature to validation rows: ``argmin_b mean_r -log softmax(sum_s b_s log p_s(r))[place_r], b >= 0``.

    The same rows give the same numbers, to the last bit on one machine. Weights and temperature follow from b: T = 1 / b_1, or by
    the first system whose b is above 0; where all are 0, no system counts and T is 1.

    Args:
        scores: name -> [R, C] of the same rows and candidates, or None of a system that ranks nothing; the first is the one that
            the weights are relative to.
        places: [R] of the targets among the candidates.

    Raises:
        UserError: fewer than two systems, no rows, one that ranks nothing, or scores that are NaN or infinite.
    """
    if len(scores) < 2:
        raise UserError(f"fusion: found {len(scores)} systems ({', '.join(scores)}), expected at least two")
    for name, values in scores.items():
        if values is None:
            raise UserError(
                f"fusion: {name} ranks nothing under its decoding, expected decoding score, which has scores to add"
            )
        if values.shape != next(iter(scores.values())).shape or len(values) != len(places):
            raise ValueError(
                f"{name} has scores of shape {tuple(values.shape)} for {len(places)} targets: expected the same rows"
            )
        if not len(values):
            raise UserError(
                "fusion: found no validation rows, expected some to fit the weights on; give valid rows by protocol"
            )
        if not values.isfinite().all():
            row = int((~values.isfinite()).any(1).nonzero()[0])
            raise UserError(
                f"fusion: the scores of {name} hold NaN or infinity, first in validation row {row}, expected finite numbers; "
                "did its training diverge?"
            )
    log_p = [log_probabilities(values) for values in scores.values()]
    parts = torch.stack(log_p).numpy()  # [S, R, C]
    target = places.numpy()
    best = _coefficients(parts, target)
    own = [_coefficients(parts[number : number + 1], target) for number in range(len(parts))]
    first = next((value for value in best if value > 0), 1.0)
    return Fusion(
        systems=tuple(scores),
        weights=tuple(float(value / first) for value in best),
        temperature=float(1 / first),
        n=len(places),
        nll_alone=tuple(mean_nll(values, places) for values in log_p),
        nll_calibrated=tuple(_nll(b, parts[number : number + 1], target)[0] for number, b in enumerate(own)),
        nll=_nll(best, parts, target)[0],
    )


def _coefficients(log_p: np.ndarray, places: np.ndarray) -> np.ndarray:
    """b [S] for log-probabilities [S, R, C]."""
    start = np.full(len(log_p), 1 / len(log_p))
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    bounds = [(0, LARGEST)] * len(log_p)
    found = minimize(_nll, start, (log_p, places), "L-BFGS-B", jac=True, bounds=bounds, options=options).x
    return np.where(found < LEAST, 0.0, found)


def _nll(b: np.ndarray, log_p: np.ndarray, places: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean negative log-likelihood of the targets, and its gradient [S]: ``E_p[log p_s] - log p_s(target)``, a row's mean."""
    rows = np.arange(len(places))
    summed = np.tensordot(b, log_p, 1)  # [R, C]
    summed -= summed.max(1, keepdims=True)
    logs = summed - np.log(np.exp(summed).sum(1, keepdims=True))
    of_targets = log_p[:, rows, places]  # [S, R]
    gradient = (np.einsum("rc,src->sr", np.exp(logs), log_p) - of_targets).mean(1)
    return float(-logs[rows, places].mean()), gradient


def fuse_cases(fusion: Fusion, of_systems: Sequence[EvaluatedCases]) -> EvaluatedCases:
    """The answers of the sum to rows that every system answered, by its systems' answers to the same rows in the same order.

    Raises:
        ValueError: they were asked different questions.
    """
    first = of_systems[0]
    for other in of_systems[1:]:
        if not (torch.equal(first.rows, other.rows) and torch.equal(first.candidates, other.candidates)):
            raise ValueError("systems that are added were asked different rows or candidates")
    scores = fusion.scores([cases.scores for cases in of_systems])  # type: ignore[misc]
    items = rank_candidates(scores, first.candidates, question_keys(first.histories))[:, 0]
    asked = {name: getattr(first, name) for name in ("rows", "users", "histories", "candidates", "targets")}
    return EvaluatedCases(items=items, scores=scores, **asked)
