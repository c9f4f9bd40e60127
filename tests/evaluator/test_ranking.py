import math

import pytest
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information, metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_llara.evaluator.ranking import (
    HitAmongValid,
    ValidRatio,
    question_keys,
    rank_candidates,
    register_metrics,
    score_rows,
    settle_near_ties,
)
from recbole_llara.utils.errors import Diverged


def random_candidates(rows: int, width: int, n_items: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n_items - 1, generator=generator)[:width] + 1 for _ in range(rows)])


def test_candidates_come_in_the_order_of_their_scores():
    candidates = torch.tensor([[7, 3, 9], [2, 8, 5]])
    scores = torch.tensor([[0.1, 0.3, 0.2], [-5.0, -1.0, -9.0]])
    assert rank_candidates(scores, candidates, torch.tensor([0, 1])).tolist() == [[3, 9, 7], [8, 2, 5]]


def test_order_does_not_depend_on_positions_or_batch():
    candidates, rows = random_candidates(40, 20, 100), torch.arange(40)
    scores = torch.randint(0, 3, (40, 20), generator=torch.Generator().manual_seed(1)).float()
    ranking = rank_candidates(scores, candidates, rows)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(rank_candidates(scores[:, shuffle], candidates[:, shuffle], rows), ranking)
    assert torch.equal(rank_candidates(scores[7:8], candidates[7:8], rows[7:8]), ranking[7:8])


def test_constant_scores_answer_by_chance_even_if_the_target_always_stands_first():
    candidates, rows = random_candidates(20_000, 20, 500), torch.arange(20_000)
    ranking = rank_candidates(torch.zeros(20_000, 20), candidates, rows)
    hits = (ranking[:, 0] == candidates[:, 0]).double().mean().item()
    assert hits == pytest.approx(1 / 20, abs=4 * (0.05 * 0.95 / 20_000) ** 0.5)


def test_ties_are_ordered_by_splitmix64():
    """By Python's own integers: the published finaliser of (question + item), for the history and for each candidate."""
    mask, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def finalised(state):
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
        return state - 2**64 * (state >= 2**63)

    histories = torch.tensor([[3, 4, 0], [9, 8, 7], [1, 0, 0]])
    candidates = random_candidates(3, 20, 100)
    ranking = rank_candidates(torch.zeros(3, 20), candidates, question_keys(histories))
    for history, items, ranked in zip(histories.tolist(), candidates.tolist(), ranking.tolist(), strict=True):
        key = sum(finalised((item * gamma + place) & mask) for place, item in enumerate(history, 1) if item)
        assert ranked == sorted(items, key=lambda item, key=key: finalised((key * gamma + item) & mask))


def test_a_named_answer_precedes_its_equals_and_must_be_a_best_one():
    candidates, scores = torch.tensor([[4, 5, 6]]), torch.tensor([[1.0, 1.0, 0.0]])
    for item in (4, 5):
        assert rank_candidates(scores, candidates, torch.tensor([0]), torch.tensor([item]))[0, 0] == item
    with pytest.raises(ValueError, match="item 6 is named"):
        rank_candidates(scores, candidates, torch.tensor([0]), torch.tensor([6]))


def test_a_question_is_its_history_whatever_the_padding():
    histories = torch.tensor([[3, 4, 0, 0], [4, 3, 0, 0], [3, 4, 5, 0], [3, 0, 0, 0]])
    keys = question_keys(histories)
    assert len(set(keys.tolist())) == 4
    assert torch.equal(question_keys(histories[:, :3]), keys)
    assert torch.equal(question_keys(histories[2:3]), keys[2:3])


def test_rows_of_near_scores_are_scored_alone_and_others_are_not():
    scores = torch.tensor([[-3.0, -9.0, -3.00001], [-3.0, -9.0, -3.1], [-3.0, -3.0, -9.0], [torch.nan, -3.0, -3.0]])
    asked = []

    def alone(row: int) -> torch.Tensor:
        asked.append(row)
        return torch.tensor([-1.0, -2.0, -3.0])

    assert settle_near_ties(scores, alone)[:2].tolist() == [[-1.0, -2.0, -3.0], scores[1].tolist()]
    assert asked == [0]
    assert scores[0, 0] == -3.0  # the batch's own stay as they were
    asked.clear()
    assert settle_near_ties(scores, alone, ties_too=True)[2].tolist() == [-1.0, -2.0, -3.0]
    assert asked[:2] == [0, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_an_error(bad):
    with pytest.raises(Diverged, match=r"items \[1, 2\] hold NaN or infinity"):
        rank_candidates(torch.tensor([[0.0, bad]]), torch.tensor([[1, 2]]), torch.tensor([0]))


def test_score_rows_hold_ranks_at_candidates_and_minus_infinity_elsewhere():
    rows = score_rows(torch.tensor([[3, 1]]), n_items=5)
    assert rows.tolist() == [[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]


def test_an_invalid_answer_puts_the_padding_item_on_top():
    rows = score_rows(torch.tensor([[0], [2]]), n_items=4)
    assert rows.argmax(dim=1).tolist() == [0, 2]


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
