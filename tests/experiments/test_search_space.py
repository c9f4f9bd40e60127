"""Parameter files: RecBole's lines mean what they mean there, nothing is evaluated, faults name their line. Draws: in order
where exhaustive, no combination twice, the same by the same seed."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from recbole_llara.experiments.search_definition import count_of, known_files, propose, read_parameters, space_of
from recbole_llara.utils.errors import UserError

SPACE = "hidden_size choice [16, 8]\nhidden_dropout_prob quniform 0.1,0.3,0.1\nlearning_rate choice [0.1, 0.01]\n"


@pytest.fixture(autouse=True)
def _quietly():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def read(text):
    Path("some.hyper").write_text(text, encoding="utf-8")
    return read_parameters("some.hyper")


def drawn(parameter, count=200):
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    space = {parameter.key: parameter.distribution}
    return [parameter.value_of(study.ask(space).params[parameter.key]) for _ in range(count)]


def test_recboles_own_example_file():
    learning_rate, width, rows, layers = read(
        "learning_rate loguniform -8,0\nembedding_size choice [64,96 , 128]\ntrain_batch_size choice [512,1024,2048]\n"
        "mlp_hidden_size choice ['[64, 64, 64]','[128,128]']\n"
    )
    assert width.probes == (64, 96, 128) and rows.key == "train_batch_size"
    assert layers.probes == ([64, 64, 64], [128, 128])  # RecBole's Config reads these texts as lists
    values = drawn(learning_rate)
    assert math.exp(-8) <= min(values) < math.exp(-6) and math.exp(-2) < max(values) <= 1  # natural logarithms
    assert -4.6 < sum(map(math.log, values)) / len(values) < -3.4  # uniform in the logarithm


def test_a_choice_holds_any_value_of_a_configuration():
    (parameter,) = read("key choice ['CE', BPR, 1, 1.0, 1e-3, True, None, [1, [2]], 'a b']")
    assert parameter.probes == ("CE", "BPR", 1, 1.0, 1e-3, True, None, [1, [2]], "a b")
    assert [type(value) for value in parameter.probes[2:6]] == [int, float, float, bool]
    assert {str(value) for value in drawn(parameter)} == {str(value) for value in parameter.probes}


def test_uniform():
    (parameter,) = read("dropout uniform 0.1,0.5")
    values = drawn(parameter)
    assert 0.1 <= min(values) < 0.15 and 0.45 < max(values) <= 0.5 and parameter.options is None
    assert parameter.probes == (0.1, 0.5)


def test_quniform_of_whole_numbers_gives_whole_numbers():
    (parameter,) = read("n quniform 1,10,3")
    assert parameter.options == (1, 4, 7, 10) and {type(value) for value in drawn(parameter)} == {int}
    assert read("n quniform 1,9,3")[0].options == (1, 4, 7)  # 10 lies beyond the bound


def test_quniform_of_fractions_gives_the_numbers_as_one_writes_them():
    (parameter,) = read("p quniform 0.1,0.75,0.1")
    assert parameter.options == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert set(drawn(parameter)) == set(parameter.options)


def test_comments_and_empty_lines_are_nothing():
    assert [parameter.key for parameter in read("# all\n\na choice [1]  # one\n  # b\nc uniform 0,1 # two\n")] == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("learning_rate", "expected a key, a kind and its values"),
        ("learning_rate uniform", "expected a key, a kind and its values"),
        ("learning_rate loguniforms 1,2", "did you mean 'loguniform'"),
        ("a choice 5", "expected a list"),
        ("a choice []", "expected a list"),
        ("a choice [1,", "expected a list"),
        ("a choice __import__('os').abort()", "expected a list"),
        ("a choice [1, 2, 1]", "found 1 twice"),
        ("a choice [.nan]", "expected numbers, texts"),
        ("a choice [{1: 2}]", "expected numbers, texts"),
        ("a uniform 1", "expected numbers LOW,HIGH"),
        ("a uniform 1,2,3", "expected numbers LOW,HIGH"),
        ("a uniform low,high", "expected numbers LOW,HIGH"),
        ("a uniform 0,.inf", "expected numbers LOW,HIGH"),
        ("a uniform True,2", "expected numbers LOW,HIGH"),
        ("a uniform 2,1", "the lower bound first"),
        ("a loguniform -8,1000", "natural logarithms"),
        ("a quniform 1,10", "LOW,HIGH,Q"),
        ("a quniform 1,10,0", "a step above 0"),
        ("a quniform 1,10,20", "within the bounds"),
    ],
)
def test_a_fault_names_its_line(line, told):
    with pytest.raises(UserError, match=r"some\.hyper, line 2: .*") as caught:
        read(f"# first\n{line}\n")
    assert told in str(caught.value)


def test_a_key_twice_no_parameter_and_no_file():
    with pytest.raises(UserError, match="line 2: a stands twice"):
        read("a choice [1]\na choice [2]")
    with pytest.raises(UserError, match="found no parameters"):
        read("# nothing\n")
    with pytest.raises(UserError, match=r"found no file 'SASRek'.*did you mean 'SASRec'"):
        read_parameters("SASRek")
    Path("latin.hyper").write_bytes(b"a choice ['\xe9']")
    with pytest.raises(UserError, match="cannot be read"):
        read_parameters("latin.hyper")


@pytest.mark.parametrize("name", known_files())
def test_the_files_that_ship_can_be_searched(name, make_search):
    text = (Path(__file__).resolve().parents[2] / "properties" / "search" / f"{name}.hyper").read_text(encoding="utf-8")
    algo = "exhaustive" if name == "SASRec" else "bayes"
    search = make_search(text, algo, model=name)
    assert search.parameters == read_parameters(name)
    assert search.max_evals == {"SASRec": 20, "LLaRA": 10}[name]


def test_a_byte_order_mark_is_no_part_of_the_first_parameter():
    assert read("\ufeffseed choice [1, 2]\n") == read("seed choice [1, 2]\n")


@pytest.fixture
def search(make_search):
    return make_search(SPACE, "random")


def all_of(search, algo, seed=0, limit=99, value=lambda drawn: 0.5, state=TrialState.COMPLETE):
    """What is drawn until nothing is left, every trial with the score that ``value`` gives it."""
    search, trials = replace(search, algo=algo, seed=seed), []
    while len(trials) < limit and (drawn := propose(search, trials)) is not None:
        score = value(drawn) if state == TrialState.COMPLETE else None
        trials.append(create_trial(state=state, value=score, params=drawn, distributions=space_of(search.parameters)))
        trials[-1].number = len(trials) - 1
    return [trial.params for trial in trials]


def test_exhaustive_goes_through_all_in_the_order_of_the_file(make_search):
    search = make_search("hidden_size choice [16, 8]\nlearning_rate choice [0.1, 0.01, 0.001]")
    found = [(int(one["hidden_size"]), float(one["learning_rate"])) for one in all_of(search, "exhaustive")]
    assert found == list(itertools.product([16, 8], [0.1, 0.01, 0.001]))


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL])
@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_nothing_is_drawn_twice_and_everything_in_the_end(search, algo, state):
    found = all_of(search, algo, state=state)
    assert len(found) == count_of(search.parameters) == 12
    assert len({tuple(one.values()) for one in found}) == 12


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_a_seed_is_a_search(search, algo):
    one, again, other = (all_of(search, algo, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_bayes_looks_where_scores_are_high(make_search):
    search = make_search("learning_rate uniform 0.0001,1.0", "bayes")
    found = [one["learning_rate"] for one in all_of(search, "bayes", 3, 40, lambda one: -abs(one["learning_rate"] - 0.8))]
    chance = [one["learning_rate"] for one in all_of(search, "random", 3, 40)]
    near = [sum(abs(value - 0.8) < 0.1 for value in values[10:]) for values in (found, chance)]
    assert near[0] > 1.5 * near[1]
