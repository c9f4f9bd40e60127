import math

import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_llara.evaluator.metric import HitAmongValid, ValidRatio, register_metrics

CONFIG = {"metric_decimal_place": 4, "topk": [1, 2]}


def answers(items: list[list[int]], hits: list[list[int]]) -> DataStruct:
    """What the collector keeps: the two best items, and whether each is the target (then the number of targets)."""
    struct = DataStruct()
    struct.set("rec.items", torch.tensor(items))
    struct.set("rec.topk", torch.tensor([[*row, 1] for row in hits]))
    return struct


def test_valid_ratio_counts_rows_that_name_an_item():
    struct = answers([[4, 5], [0, 3], [7, 0], [0, 1]], [[1, 0], [0, 0], [0, 0], [0, 0]])
    assert ValidRatio(CONFIG).calculate_metric(struct) == {"validratio": 0.5}


def test_hit_among_valid_divides_by_valid_answers_and_hit_by_all_rows():
    struct = answers([[4, 5], [0, 3], [7, 0], [0, 1]], [[1, 0], [0, 1], [0, 0], [0, 0]])
    assert HitAmongValid(CONFIG).calculate_metric(struct) == {"hit_among_valid": 0.5}
    assert metrics_dict["hit"](CONFIG).calculate_metric(struct)["hit@1"] == 0.25


def test_hit_among_valid_without_valid_answers_is_not_a_number():
    struct = answers([[0, 3]], [[0, 0]])
    assert math.isnan(HitAmongValid(CONFIG).calculate_metric(struct)["hit_among_valid"])
    assert ValidRatio(CONFIG).calculate_metric(struct) == {"validratio": 0.0}


def test_registering_twice_changes_nothing():
    register_metrics()
    known = dict(metrics_dict)
    register_metrics()
    assert metrics_dict == known
    assert metrics_dict["validratio"] is ValidRatio
    assert metric_types["validratio"] is EvaluatorType.RANKING
    assert metric_information["hit_among_valid"] == ["rec.items", "rec.topk"]
