"""Strategies: the probability of the hard task follows its equation, and draws depend on (seed, step) alone."""

import itertools

import pytest

from recbole_llara.trainer.strategy import CURRICULA, make_strategy

TOTAL = 4000


def _hard_share(strategy, steps):
    return sum(strategy.representation(step, TOTAL).name == "hybrid" for step in steps) / len(steps)


def test_linear_curriculum_is_step_over_total_steps():
    strategy = make_strategy("curriculum", "linear", "hybrid", seed=0)
    assert [strategy.hard_probability(step, TOTAL) for step in (0, 1000, 4000)] == [0.0, 0.25, 1.0]


def test_draws_follow_the_probability():
    strategy = make_strategy("curriculum", "linear", "hybrid", seed=0)
    # 1,000 draws around p = 0.375: five standard deviations are 0.077.
    assert _hard_share(strategy, range(1000, 2000)) == pytest.approx(0.375, abs=0.077)


def test_progress_belongs_to_the_step_and_not_to_an_epoch():
    strategy = make_strategy("curriculum", "linear", "hybrid", seed=0)
    assert _hard_share(strategy, range(3800, 4000)) > 0.85


def test_draws_depend_on_seed_and_step_alone():
    first, second = (make_strategy("curriculum", "linear", "hybrid", seed=5) for _ in range(2))
    names = [first.representation(step, TOTAL).name for step in range(200, 400)]
    assert names == [second.representation(step, TOTAL).name for step in range(399, 199, -1)][::-1]
    other = make_strategy("curriculum", "linear", "hybrid", seed=6)
    assert names != [other.representation(step, TOTAL).name for step in range(200, 400)]


def test_direct_and_two_stage():
    assert _hard_share(make_strategy("direct", "linear", "hybrid", 0), range(0, TOTAL, 50)) == 1.0
    two_stage = make_strategy("two_stage", "linear", "hybrid", 0)
    assert _hard_share(two_stage, range(0, 1600)) == 0.0
    assert _hard_share(two_stage, range(1600, TOTAL)) == 1.0


@pytest.mark.parametrize("curriculum", sorted(CURRICULA))
def test_curricula_rise_from_0_to_1(curriculum):
    values = [CURRICULA[curriculum](step / 20) for step in range(21)]
    assert values[0] == 0.0 and values[-1] == pytest.approx(1.0)
    assert all(low <= high for low, high in itertools.pairwise(values))


def test_a_representation_without_embeddings_is_trained_directly():
    strategy = make_strategy("curriculum", "linear", "textual", 0)
    assert {strategy.representation(step, TOTAL).name for step in range(0, TOTAL, 100)} == {"textual"}
