"""Scores as probabilities over a row's candidates, and how far they can be believed: the target's likelihood, and ECE."""

import numpy as np
import torch

BINS = 15  # of the top probability, of equal width; Guo et al., 2017


def log_probabilities(scores: torch.Tensor, is_there: torch.Tensor | None = None) -> torch.Tensor:
    """The log-softmax of scores over each row's candidates, in float64.

    Args:
        scores: [R, C] of R rows, higher is better.
        is_there: [R, C] bool, the candidates of rows that have fewer than C; None = all.

    Returns:
        [R, C] in nats; 0 where there is no candidate.
    """
    scores = scores.double()
    if is_there is None:
        return scores.log_softmax(1)
    return scores.masked_fill(~is_there, -torch.inf).log_softmax(1).masked_fill(~is_there, 0.0)


def mean_nll(log_p: torch.Tensor, places: torch.Tensor) -> float:
    """The mean negative log-likelihood of the targets, in nats, by ``log_p`` [R, C] and their places [R] among the candidates."""
    return float(-log_p.gather(1, places[:, None]).mean())


def calibration(scores: torch.Tensor, places: torch.Tensor, correct: np.ndarray) -> dict[str, float]:
    """What ``result.json`` tells of scores as probabilities, under their softmax as they are.

    Args:
        scores: [R, C].
        places: [R] of the targets among the candidates.
        correct: [R] bool, whether a row's answer, which is one of its best candidates, is the target.

    Returns:
        ``nll``, as ``mean_nll``, and ``ece``, the expected calibration error (Guo et al., 2017, eq. 3) over ``BINS`` bins of the
        best candidate's probability: ``sum_b |B_b| / R * |share of correct rows in B_b - mean probability in B_b|``.
    """
    counts, confidence, share = reliability(scores, correct)
    gap = float((counts * np.abs(share - confidence)).sum() / len(correct))
    return {"nll": mean_nll(log_probabilities(scores), places), "ece": gap}


def reliability(scores: torch.Tensor, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a reliability plot (Guo et al., 2017, fig. 1), of the bins b that hold rows.

    Returns:
        [b] the rows of each bin of the best candidate's probability, [b] the mean of that probability, [b] the share of correct rows.
    """
    best = log_probabilities(scores).amax(1).exp().numpy()  # [R]
    of_bin = np.clip(np.ceil(best * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below: (0, 1/15], ...
    counts = np.bincount(of_bin, minlength=BINS)
    sums = (np.bincount(of_bin, weights=values, minlength=BINS) for values in (best, correct))
    held = counts > 0
    return (counts[held], *(of_values[held] / counts[held] for of_values in sums))
