"""The weighted sum of systems: its fit against brute force and other optimisers, its scores against plain loops."""

import math

import numpy as np
import pytest
import torch

from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.calibration import calibration, log_probabilities, reliability
from recbole_llara.evaluator.fusion import Fusion, fit, fuse_cases
from recbole_llara.utils.errors import UserError


def drawn(rows=400, candidates=8, seed=0, strengths=(1.0, 0.6)):
    """Scores of systems that each see the same targets through noise of their own."""
    generator = np.random.default_rng(seed)
    places = generator.integers(candidates, size=rows)
    hit = np.arange(candidates) == places[:, None]
    scores = {
        f"system {number}": torch.from_numpy(generator.normal(size=(rows, candidates)) * 2 + hit * strength * 3)
        for number, strength in enumerate(strengths)
    }
    return scores, torch.from_numpy(places)


def nll_of(b, scores, places):
    """By a plain loop over rows and candidates."""
    total = 0.0
    for row, place in enumerate(places.tolist()):
        parts = []
        for weight, values in zip(b, scores.values(), strict=True):
            line = values[row].tolist()
            largest = max(line)
            whole = largest + math.log(sum(math.exp(value - largest) for value in line))
            parts.append([weight * (value - whole) for value in line])
        summed = [sum(column) for column in zip(*parts, strict=True)]
        largest = max(summed)
        total += largest + math.log(sum(math.exp(value - largest) for value in summed)) - summed[place]
    return total / len(places)


def test_the_fit_is_the_best_of_a_grid():
    scores, places = drawn(rows=120)
    fusion = fit(scores, places)
    b = [weight / fusion.temperature for weight in fusion.weights]
    assert fusion.nll == pytest.approx(nll_of(b, scores, places), abs=1e-9)
    grid = [(first, second) for first in np.arange(0, 2, 0.1) for second in np.arange(0, 2, 0.1)]
    best = min(grid, key=lambda b: nll_of(b, scores, places))
    assert fusion.nll <= nll_of(best, scores, places)
    assert np.abs(np.array(b) - best).max() < 0.11  # the next point of the grid
    for nudge in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert nll_of(np.add(b, nudge), scores, places) > fusion.nll


def test_it_is_at_least_as_good_as_every_part_and_the_parts_are_told():
    scores, places = drawn(strengths=(1.0, 0.5, 0.2))
    fusion = fit(scores, places)
    assert fusion.systems == ("system 0", "system 1", "system 2") and fusion.weights[0] == 1.0 and fusion.n == 400
    assert fusion.nll < min(fusion.nll_calibrated)
    for number, (name, values) in enumerate(scores.items()):
        assert fusion.nll_alone[number] == pytest.approx(nll_of([1.0], {name: values}, places))
        assert fusion.nll_calibrated[number] <= fusion.nll_alone[number]
    assert fusion == fit(scores, places)


def test_a_system_of_noise_counts_little_and_one_that_is_always_wrong_not_at_all():
    scores, places = drawn(rows=4000, strengths=(1.0, 0.0))
    assert fit(scores, places).weights[1] < 0.05
    hit = torch.arange(8) == places[:, None]
    worse = {"right": scores["system 0"], "wrong": -5.0 * hit}
    assert fit(worse, places).weights == (1.0, 0.0)
    fusion = fit(dict(reversed(worse.items())), places)  # the weights are relative to the first that counts
    assert fusion.weights == (0.0, 1.0) and fusion.temperature == pytest.approx(fit(worse, places).temperature)


def test_targets_that_always_stand_first_give_finite_weights():
    places = torch.arange(6) % 3
    certain = (torch.arange(3) == places[:, None]).double() * 4
    fusion = fit({"a": certain, "b": certain}, places)
    assert all(map(math.isfinite, (*fusion.weights, fusion.temperature))) and fusion.nll < 1e-6
    assert fusion.scores([certain, certain]).argmax(1).equal(places)


def test_no_system_counts():
    places = torch.zeros(5, dtype=torch.int64)
    wrong = torch.tensor([[0.0, 1.0, 2.0]] * 5)
    fusion = fit({"a": wrong, "b": wrong}, places)
    assert fusion.weights == (0.0, 0.0) and fusion.temperature == 1.0 and fusion.nll == pytest.approx(math.log(3))


def test_scores_are_the_log_softmax_of_the_weighted_sum():
    fusion = Fusion(("rec", "llm"), (1.0, 0.5), 2.0, 1, (1.0, 1.0), (1.0, 1.0), 1.0)
    rec, llm = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[-1.0, -2.0, -9.0]])
    by_hand = (torch.log_softmax(rec.double(), 1) + 0.5 * torch.log_softmax(llm.double(), 1)) / 2
    assert torch.allclose(fusion.scores([rec, llm]), by_hand.log_softmax(1))
    padded = fusion.scores([torch.cat([rec, rec], 1), torch.cat([llm, llm], 1)], torch.tensor([[True] * 3 + [False] * 3]))
    assert torch.allclose(padded[:, :3], fusion.scores([rec, llm])) and (padded[:, 3:] == 0).all()


def test_what_is_told_can_be_read_again_and_what_is_wrong_is_refused():
    fusion = fit(*drawn())
    told = fusion.result_fields()
    assert fusion.name == told["name"] == "system 1 + system 0" and Fusion.read(told) == fusion
    for key, value in (("temperature", 0), ("temperature", "nan"), ("weights", {"a": 1.0}), ("weights", None), ("nll", 3)):
        with pytest.raises(UserError, match="fusion: result.json tells"):
            Fusion.read({**told, key: value})
    with pytest.raises(UserError, match="at least 0"):
        Fusion.read({**told, "weights": {"system 0": 1.0, "system 1": -1.0}})
    with pytest.raises(UserError, match="no weights that can be read"):
        Fusion.read(None)


def test_what_cannot_be_fitted_is_refused():
    scores, places = drawn(rows=3)
    with pytest.raises(UserError, match="LLaRA ranks nothing under its decoding, expected decoding score"):
        fit({**scores, "LLaRA": None}, places)
    with pytest.raises(UserError, match="scores of B hold NaN or infinity, first in validation row 1"):
        broken = scores["system 0"].clone()
        broken[1, 2] = torch.nan
        fit({"A": scores["system 0"], "B": broken}, places)
    with pytest.raises(UserError, match="no validation rows"):
        fit({"A": torch.zeros(0, 4), "B": torch.zeros(0, 4)}, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="at least two"):
        fit({"A": scores["system 0"]}, places)


def cases_of(scores, places, **changes):
    rows, count = scores.shape
    candidates = torch.arange(1, count + 1).repeat(rows, 1)
    asked = {"rows": torch.arange(rows), "users": torch.arange(rows), "histories": torch.ones(rows, 2, dtype=torch.int64)}
    asked |= {"candidates": candidates, "targets": places + 1, **changes}
    return EvaluatedCases(items=scores.argmax(1) + 1, scores=scores, **asked)


def test_cases_of_the_sum():
    scores, places = drawn()
    fusion = fit(scores, places)
    cases = [cases_of(values, places) for values in scores.values()]
    fused = fuse_cases(fusion, cases)
    assert fused.items.equal(fusion.scores(list(scores.values())).argmax(1) + 1) and fused.places.equal(places)
    assert fused.correct.mean() > max(one.correct.mean() for one in cases) and fused.valid.all()
    other = cases_of(scores["system 1"], places, candidates=torch.arange(8).repeat(400, 1))
    with pytest.raises(ValueError, match="different rows or candidates"):
        fuse_cases(fusion, [cases[0], other])


def test_calibration_by_hand():
    """Two rows of two candidates: probabilities .75 (right) and .9 (wrong) of the best, in two bins."""
    scores = torch.tensor([[0.75, 0.25], [0.1, 0.9]]).log()
    found = calibration(scores, torch.tensor([0, 0]), np.array([True, False]))
    assert found["nll"] == pytest.approx(-(math.log(0.75) + math.log(0.1)) / 2)
    assert found["ece"] == pytest.approx((0.25 + 0.9) / 2)
    counts, confidence, share = reliability(scores, np.array([True, False]))
    assert counts.tolist() == [1, 1] and confidence == pytest.approx([0.75, 0.9]) and share.tolist() == [1.0, 0.0]


def test_calibration_counts_over_bins():
    """Ten rows of probability .6 of which six are right are calibrated; of which all are right, off by .4."""
    scores = torch.tensor([[0.6, 0.4]]).log().repeat(10, 1)
    right = np.arange(10) < 6
    places = torch.from_numpy((~right).astype(np.int64))
    assert calibration(scores, places, right)["ece"] == pytest.approx(0.0, abs=1e-6)
    assert calibration(scores, torch.zeros(10, dtype=torch.int64), np.ones(10, bool))["ece"] == pytest.approx(0.4)
    assert calibration(torch.tensor([[0.0, 200.0]]), torch.tensor([1]), np.array([True])) == {"nll": 0.0, "ece": 0.0}


def test_log_probabilities_do_not_mind_a_shift_of_a_row():
    scores, _ = drawn(rows=5)
    values = scores["system 0"]
    assert torch.allclose(log_probabilities(values), log_probabilities(values + torch.arange(5)[:, None] * 100))
