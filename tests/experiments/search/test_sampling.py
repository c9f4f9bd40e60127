"""Draws: the order of exhaustive search, no combination twice, the same by the same seed."""

import itertools

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from recbole_llara.experiments.search.sampling import count_of, propose, space_of

SPACE = "hidden_size choice [16, 8]\nhidden_dropout_prob quniform 0.1,0.3,0.1\nlearning_rate choice [0.1, 0.01]\n"


@pytest.fixture(autouse=True)
def _quietly():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def parameters(make_search):
    return make_search(SPACE, "random").parameters


def all_of(parameters, algo, seed=0, limit=99, value=lambda drawn: 0.5, state=TrialState.COMPLETE):
    """What is drawn until nothing is left, every trial with the score that ``value`` gives it."""
    trials = []
    while len(trials) < limit and (drawn := propose(parameters, trials, algo, seed, "maximize")) is not None:
        score = value(drawn) if state == TrialState.COMPLETE else None
        trials.append(create_trial(state=state, value=score, params=drawn, distributions=space_of(parameters)))
        trials[-1].number = len(trials) - 1
    return [trial.params for trial in trials]


def test_exhaustive_goes_through_all_in_the_order_of_the_file(make_search):
    parameters = make_search("hidden_size choice [16, 8]\nlearning_rate choice [0.1, 0.01, 0.001]").parameters
    found = [(int(one["hidden_size"]), float(one["learning_rate"])) for one in all_of(parameters, "exhaustive")]
    assert found == list(itertools.product([16, 8], [0.1, 0.01, 0.001]))


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL])
@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_nothing_is_drawn_twice_and_everything_in_the_end(parameters, algo, state):
    found = all_of(parameters, algo, state=state)
    assert len(found) == count_of(parameters) == 12
    assert len({tuple(one.values()) for one in found}) == 12


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_a_seed_is_a_search(parameters, algo):
    one, again, other = (all_of(parameters, algo, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_bayes_looks_where_scores_are_high(make_search):
    parameters = make_search("learning_rate uniform 0.0001,1.0", "bayes").parameters
    found = [one["learning_rate"] for one in all_of(parameters, "bayes", 3, 40, lambda one: -abs(one["learning_rate"] - 0.8))]
    chance = [one["learning_rate"] for one in all_of(parameters, "random", 3, 40)]
    near = [sum(abs(value - 0.8) < 0.1 for value in values[10:]) for values in (found, chance)]
    assert near[0] > 1.5 * near[1]
