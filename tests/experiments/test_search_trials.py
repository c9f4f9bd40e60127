"""Searches as they run: nothing twice, kills and stops survived, processes share, only validation rows choose."""

import signal
import sqlite3
from pathlib import Path

import optuna
import pytest
import torch
import yaml

from recbole_llara.experiments import runner
from recbole_llara.experiments.search_trials import SearchTrials
from recbole_llara.utils.errors import Diverged, RunError, Stopped, UserError

pytestmark = pytest.mark.usefixtures("no_pngs")
FEW = "learning_rate choice [0.1, 0.01, 0.001]"
ARGV = ("--hidden_size=16", "--hidden_dropout_prob=0.2")


def searched(runs):
    return [(keys["hidden_size"], keys["learning_rate"], keys["hidden_dropout_prob"]) for keys in runs.keys]


def test_every_trial_is_one_run_of_its_keys_and_a_second_call_runs_none(make_search, runs, finished):
    search = make_search(argv=["--epochs=3"])
    trials = finished(search)
    assert len(trials) == len(runs.keys) == len(set(searched(runs))) == 12
    assert all(keys["epochs"] == 3 and keys["protocol"] == "leave_one_out" for keys in runs.keys)
    assert [tuple(trial.values.values()) for trial in trials] == searched(runs)
    best = SearchTrials(search).best()
    assert best.values == {"hidden_size": 16, "learning_rate": 0.01, "hidden_dropout_prob": 0.4}
    assert finished(search) == trials and len(runs.keys) == 12


def test_more_trials_go_on_from_those_there_are(make_search, runs, finished):
    few = finished(make_search(max_evals=5))
    assert len(few) == 5
    assert finished(make_search(max_evals=3)) == few
    more = finished(make_search(max_evals=9))
    assert more[:5] == few and len(more) == 9 == len(set(searched(runs)))


@pytest.mark.parametrize(
    ("algo", "ends_by"),
    [("exhaustive", MemoryError), ("random", KeyboardInterrupt), ("bayes", Stopped(signal.SIGTERM, "of the run"))],
)
def test_a_search_that_was_broken_off_goes_on_as_if_it_had_not_been(make_search, runs, algo, ends_by, finished):
    whole = [trial.values for trial in finished(make_search(algo=algo, max_evals=9, output="whole"))]
    runs.keys.clear()

    def stop(keys):
        if len(runs.keys) == 5:
            raise ends_by

    runs.before = stop
    with pytest.raises(MemoryError if ends_by is MemoryError else Stopped) as caught:
        finished(make_search(algo=algo, max_evals=9))
    if ends_by is not MemoryError:
        assert "4 of 9 runs are finished and kept, the same command resumes" in str(caught.value)
    trials = finished(make_search(algo=algo, max_evals=9))
    assert [trial.values for trial in trials] == whole
    assert searched(runs)[4] == searched(runs)[5] and len(runs.keys) == 10  # the fifth was begun, and run again
    assert [trial.number for trial in trials] == list(range(9))


def test_a_trial_that_diverges_or_is_too_large_has_failed_and_is_not_run_again(make_search, runs, finished):
    failures = iter([Diverged("the loss is nan"), torch.OutOfMemoryError("no room")])

    def fail(keys):
        if keys["learning_rate"] != 0.01:
            raise next(failures)

    runs.before = fail
    search = make_search(FEW, argv=ARGV)
    first, good, last = trials = finished(search)
    assert (first.score, first.error, last.error) == (None, "the loss is nan", "no room") and good.score is not None
    assert finished(search) == trials and len(runs.keys) == 3
    states = [trial.state.name for trial in optuna.load_study(study_name="search", storage=_storage(search)).trials]
    assert states == ["FAIL", "COMPLETE", "FAIL"]
    assert "2 of them failed" in SearchTrials(search).report()


def test_a_score_that_is_no_number_has_failed(make_search, monkeypatch, finished):
    nothing = {"best_valid_score": -float("inf"), "best_valid_result": None, "run_dir": "a", "result_file": "b"}
    monkeypatch.setattr(runner, "run_recbole_llara", lambda **keys: nothing)
    search = make_search(FEW)
    trials = finished(search)
    assert {trial.score for trial in trials} == {None} and "eval_step" in trials[0].error
    assert "No trial came to a score" in SearchTrials(search).report() and not (search.folder / "best.yaml").exists()


@pytest.mark.parametrize("error", [UserError("hidden_size: found 8"), RunError("the disk is full")])
def test_other_errors_end_the_search_and_the_trial_is_run_again(make_search, runs, error, finished):
    def fail(keys):
        raise error

    runs.before = fail
    told = "trial 0, learning_rate=0.1: hidden_size: found 8" if isinstance(error, UserError) else "the disk is full"
    with pytest.raises(type(error), match=told):
        finished(make_search(FEW, argv=ARGV))
    runs.before = lambda keys: None
    assert [trial.values["learning_rate"] for trial in finished(make_search(FEW, argv=ARGV))] == [0.1, 0.01, 0.001]
    assert len(runs.keys) == 4


def test_the_test_rows_choose_nothing_and_stand_nowhere_but_at_the_best(make_search, runs, finished):
    """The made-up test metrics say the opposite of those of the validation rows."""
    search = make_search(algo="bayes")
    trials = finished(search)
    best = SearchTrials(search).best()
    assert best.score == max(trial.score for trial in trials)
    with sqlite3.connect(search.folder / "trials.sqlite") as database:
        kept = [text for (text,) in database.execute("select value_json from trial_user_attributes")]
        values = [value for (value,) in database.execute("select value from trial_values order by trial_id")]
    assert len(kept) == 10 and "test" not in "".join(kept) and values == [trial.score for trial in trials]
    report = SearchTrials(search).report()
    assert report.count(f"hit@1 {1 - best.score}") == 1
    assert "test" not in (search.folder / "trials.csv").read_text()
    others = [trial for trial in trials if trial.score != best.score]
    assert others and all(f"{1 - trial.score}" not in report for trial in others)


def test_where_less_is_better_the_least_is_the_best(make_search, runs, finished):
    less = make_search(argv=["--metrics=[Hit,AveragePopularity]", "--valid_metric=AveragePopularity"])
    trials = finished(less)
    assert SearchTrials(less).best().score == min(trial.score for trial in trials)
    assert yaml.safe_load((less.folder / "best.yaml").read_text())["hidden_size"] == 8
    study = optuna.load_study(study_name="search", storage=_storage(less))
    assert study.best_value == SearchTrials(less).best().score


def test_of_equal_scores_the_first_is_the_best(make_search, monkeypatch, finished):
    same = {"best_valid_score": 0.5, "best_valid_result": {}, "run_dir": "a", "result_file": "b"}
    monkeypatch.setattr(runner, "run_recbole_llara", lambda **keys: same)
    search = make_search()
    finished(search)
    assert SearchTrials(search).best().number == 0


def test_two_at_once_take_each_trial_once(make_search, runs, monkeypatch, finished):
    """The second begins while the first is in its third trial, does all that are left, and waits for that one."""
    search, waited = make_search(), []
    second = SearchTrials(search)

    def begin(keys):
        if len(runs.keys) == 3 and not waited:
            monkeypatch.setattr(runner, "sleep", lambda seconds: waited.append(seconds) or (_ for _ in ()).throw(_Waiting))
            with pytest.raises(_Waiting):
                runner.execute(second)

    runs.before = begin
    trials = finished(search)
    assert len(runs.keys) == len(set(searched(runs))) == len(trials) == 12
    assert len(waited) == 1
    assert [trial.values for trial in second.finished()] == [trial.values for trial in trials]


class _Waiting(Exception):
    """Raised instead of waiting for another process."""


def test_the_trial_of_a_living_process_is_left_alone(make_search, runs):
    search = make_search(max_evals=2)
    (first, lock), (second, other) = SearchTrials(search).claim(), SearchTrials(search).claim()
    with other:
        with lock:
            assert (first[0], second[0]) == (0, 1) and SearchTrials(search).claim() is None
        again, lock = SearchTrials(search).claim()  # as after a kill
        with lock:
            assert again == first


def test_an_llms_trial_goes_on_from_its_own_states(make_search, runs, finished):
    runs.before = lambda keys: keys.update(hidden_size=8, hidden_dropout_prob=0)
    finished(make_search("learning_rate choice [0.1, 0.2]", model="LLaRA"))
    assert [keys["resume"] for keys in runs.keys] == ["auto", "auto"]


def test_a_folder_holds_one_search(make_search, runs, finished):
    finished(make_search(FEW, argv=ARGV, output="mine"))
    with pytest.raises(
        UserError, match=r"output: mine holds another search: parameters: .*0.1', '0.01', '0.001.*choose another"
    ):
        SearchTrials(make_search("learning_rate choice [0.1]", argv=ARGV, output="mine"))
    with pytest.raises(UserError, match="holds another search: keys"):
        SearchTrials(make_search(FEW, argv=[*ARGV, "--epochs=9"], output="mine"))


def _storage(search):
    return f"sqlite:///{Path(search.folder / 'trials.sqlite').resolve()}"
