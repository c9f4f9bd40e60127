"""The two metrics RecBole lacks, registered beside its own: the share of valid answers, and the hits among them.

Both read what RecBole's collector kept of the score rows, where an invalid answer names item 0 (the padding item).
HitRatio@1 itself is RecBole's ``Hit@1``: correct answers / all rows.
"""

import math

from recbole.evaluator.base_metric import AbstractMetric
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metric_types, metrics_dict
from recbole.utils import EvaluatorType


class ValidRatio(AbstractMetric):
    """Share of rows whose answer names exactly one candidate (LLaRA sec. 5.1.3): named / all rows."""

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.items"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """Returns ``{"validratio": share}``, from ``rec.items`` [rows, K], the K best items of each row."""
        named = dataobject.get("rec.items")[:, 0] != 0  # [rows]
        return {"validratio": round(named.double().mean().item(), self.decimal_place)}


class HitAmongValid(AbstractMetric):
    """Correct answers / valid answers; NaN when no answer was valid.

    Not the papers' HitRatio@1, which divides by all rows: a system that answers one row in ten, rightly, has 1 here.
    """

    metric_type = EvaluatorType.RANKING
    metric_need = ["rec.items", "rec.topk"]

    def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
        """Returns ``{"hit_among_valid": share}``, from ``rec.items`` [rows, K] and ``rec.topk`` [rows, K + 1]."""
        named = dataobject.get("rec.items")[:, 0] != 0  # [rows]
        correct = dataobject.get("rec.topk")[:, 0].bool() & named  # [rows]
        if not named.any():
            return {"hit_among_valid": math.nan}
        share = correct.sum().item() / named.sum().item()
        return {"hit_among_valid": round(share, self.decimal_place)}


METRICS: dict[str, type[AbstractMetric]] = {"validratio": ValidRatio, "hit_among_valid": HitAmongValid}


def register_metrics() -> None:
    """Make ``ValidRatio`` and ``Hit_Among_Valid`` known to RecBole's ``metrics`` key; call it before building a Config."""
    for name, metric in METRICS.items():
        metrics_dict[name] = metric
        metric_types[name] = metric.metric_type
        metric_information[name] = metric.metric_need
