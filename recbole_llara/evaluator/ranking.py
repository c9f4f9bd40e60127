"""From scores of the candidates to the score rows [B, N] that RecBole's collector reads, and the two metrics that RecBole lacks.

Exact ties (popularity makes many, an untrained model only ties) are ordered by a hash of (history, item): it knows
neither the target nor the positions, so a model without an opinion scores chance whichever order the candidates
come in. Near ties are decided by the row's scores alone. Both give a question one order, alone and in any batch.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from recbole.evaluator.base_metric import AbstractMetric
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_llara.utils.errors import Diverged
from recbole_llara.utils.hashing import GAMMA, mix

_GAMMA = int(GAMMA) - (1 << 64)  # as the signed number torch holds

# Scores are near where they differ by less than this share of the row's largest. What stands beside a row in its batch was
# seen to move float32 scores by up to 1.2e-6 of it.
NEAR = 1e-5


def question_keys(history: torch.Tensor) -> torch.Tensor:
    """[B] a hash of each history [B, L], 0 = padding, by which ``rank_candidates`` orders equal scores; no padding changes it."""
    places = torch.arange(1, history.shape[1] + 1, device=history.device)
    return _mixed(history * _GAMMA + places).masked_fill(history == 0, 0).sum(1)  # wraps around


def shown_order(items: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    """[B, C] the same items, 0 being none, in the order in which a prompt lists what a recommender proposed.

    It is drawn by a hash of (history, item), as training draws it for each row: neither the recommender's order nor that of the
    items' numbers, which training never showed, is told.
    """
    # Hashed twice, so that it is not the order of equal scores.
    keys = _mixed(_mixed(questions.unsqueeze(1) * _GAMMA + items))
    order = keys.masked_fill(items == 0, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    return items.gather(1, order)


def settle_near_ties(scores: torch.Tensor, score_alone: Callable[[int], torch.Tensor], ties_too: bool = False) -> torch.Tensor:
    """Score again, alone, the rows whose order could turn on the rows beside them.

    Matrix products round by the shape of the batch. Where scores are not near, that cannot turn their order; where they
    are, those of the row alone decide, which are the same wherever the question is asked.

    Args:
        scores: [B, C] float32 of a batch; other rows stay as they are.
        score_alone: [C] scores of a row by its number in the batch, none beside it.
        ties_too: whether rows of equal scores are near too; else they are taken as truly equal.
    """
    gaps = scores.sort(1).values.diff(dim=1)  # [B, C - 1]
    is_near = gaps < NEAR * scores.abs().amax(1, keepdim=True)
    if not ties_too:
        is_near &= gaps > 0
    settled = scores.clone()
    for row in is_near.any(1).nonzero()[:, 0].tolist():
        settled[row] = score_alone(row)
    return settled


def rank_candidates(
    scores: torch.Tensor, candidates: torch.Tensor, questions: torch.Tensor, named: torch.Tensor | None = None
) -> torch.Tensor:
    """Order each row's candidates from best to worst.

    Args:
        scores: [B, C], finite.
        candidates: [B, C] int64 item ids.
        questions: [B] int64, as from ``question_keys``.
        named: [B] int64, an answer already chosen, which precedes its equals; None = no answer chosen yet.

    Returns:
        [B, C] int64 item ids, best first: scores [.1, .9, .9] of items [4, 5, 6] give [5, 6, 4] or [6, 5, 4].

    Raises:
        Diverged: a score is NaN or infinite.
        ValueError: ``named`` is not a best candidate of its row.
    """
    finite = torch.isfinite(scores)
    if not finite.all():
        row = int((~finite).any(dim=1).nonzero()[0])
        raise Diverged(
            f"the scores of items {candidates[row].tolist()} hold NaN or infinity: {scores[row].tolist()}; "
            "did training diverge? a lower learning_rate may help"
        )
    keys = _mixed(questions.unsqueeze(1) * _GAMMA + candidates)  # [B, C]
    if named is not None:
        keys = keys.masked_fill(candidates == named.unsqueeze(1), torch.iinfo(torch.int64).min)
    by_key = keys.argsort(dim=1)
    by_score = scores.gather(1, by_key).argsort(dim=1, descending=True, stable=True)
    ranking = candidates.gather(1, by_key).gather(1, by_score)  # [B, C]
    if named is not None and not torch.equal(ranking[:, 0], named):
        row = int((ranking[:, 0] != named).nonzero()[0])
        raise ValueError(
            f"item {int(named[row])} is named but item {int(ranking[row, 0])} has a higher score: "
            "an answer that comes with scores names a best one"
        )
    return ranking


def _mixed(keys: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser of int64 keys of any shape, on their device."""
    bits = keys.cpu().numpy().astype(np.uint64)  # a copy, mixed in place
    return torch.from_numpy(mix(bits).view(np.int64)).to(keys.device)


def score_rows(ranking: torch.Tensor, n_items: int) -> torch.Tensor:
    """Spread rankings over all items.

    Args:
        ranking: [B, R] int64 item ids, best first; one column, 0 where invalid, for answers that rank nothing.
        n_items: N, with the padding item.

    Returns:
        [B, N] float32: R for the best item, down to 1 for the worst, minus infinity for every other item. Ranks rather
        than scores: no ties are left for ``topk`` to break in its own way.
    """
    width = ranking.size(1)
    rows = torch.full((len(ranking), n_items), -torch.inf, device=ranking.device)
    values = torch.arange(width, 0, -1, dtype=rows.dtype, device=ranking.device)
    return rows.scatter_(1, ranking, values.expand_as(ranking))


class ValidRatio(AbstractMetric):
    """Share of rows whose answer names exactly one candidate (LLaRA sec. 5.1.3): named / all rows.

    Read from ``rec.items`` [rows, K], the K best items of each row, where an invalid answer names item 0.
    """

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.items"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """Returns ``{"validratio": share}``."""
        named = dataobject.get("rec.items")[:, 0] != 0  # [rows]
        return {"validratio": round(named.double().mean().item(), self.decimal_place)}


class HitAmongValid(AbstractMetric):
    """Correct answers / valid answers; NaN when no answer was valid.

    Not the papers' HitRatio@1, which divides by all rows and is RecBole's ``Hit@1``: a system that answers one row in ten,
    rightly, has 1 here. Read from ``rec.items`` and ``rec.topk`` [rows, K + 1].
    """

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.items", "rec.topk"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """Returns ``{"hit_among_valid": share}``."""
        named = dataobject.get("rec.items")[:, 0] != 0  # [rows]
        correct = dataobject.get("rec.topk")[:, 0].bool() & named  # [rows]
        share = correct.sum().item() / named.sum().item() if named.any() else math.nan
        return {"hit_among_valid": round(share, self.decimal_place)}


def register_metrics() -> None:
    """Make ``ValidRatio`` and ``Hit_Among_Valid`` known to RecBole's ``metrics`` key; call it before building a Config."""
    for name, metric in (("validratio", ValidRatio), ("hit_among_valid", HitAmongValid)):
        metrics_dict[name], metric_types[name] = metric, metric.metric_type
        metric_information[name] = metric.metric_need
