"""How long a study will take: told before its first run, from small runs, and corrected by what systems really took."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments, property_files, read_yaml
from recbole_llara.experiments import study_runs
from recbole_llara.experiments.runner import execute
from recbole_llara.experiments.study_arms import FailedArm, FinishedArm, arms_of
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.experiments.study_forecast import Speed, Work, speed_of, work_of
from recbole_llara.experiments.study_runs import StudyRuns
from recbole_llara.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def toy(tmp_path):
    return {**write_toy_dataset(tmp_path), "protocol": "leave_one_out"}


@pytest.fixture
def size(toy):
    """Interactions and users of the toy data."""
    lines = next(Path(toy["data_path"]).rglob("toy.inter")).read_text().splitlines()[1:]
    return len(lines), len({line.split("\t")[0] for line in lines})


def test_what_a_run_has_to_do(toy, size):
    rows, users = size
    llara = RunConfig(
        "LLaRA", "toy", config_dict={**toy, "epochs": 3, "eval_step": 1, "max_train_rows": 50, "keep_valid_cases": True}
    )
    assert work_of(llara, True) == Work(3 * 50, users * (1 + 3 + 1))
    assert work_of(llara, False) == Work(0, users * 2)
    early = RunConfig("SASRec", "toy", config_dict={**toy, "stopping_step": 3, "max_eval_rows": 5})
    assert work_of(early, True) == Work(rows * (8 + 3), 5 * (1 + 8 + 3))
    fixed = RunConfig("SASRec", "toy", config_dict={**toy, "epochs": 2, "eval_step": 0, "protocol": "llara"})
    assert work_of(fixed, True) == Work(rows * 2, users // 10)


def test_a_small_run_is_timed_and_leaves_nothing(toy):
    keys = {**toy, "epochs": 50, "train_batch_size": 8}
    config = RunConfig("SASRec", "toy", config_dict=keys)
    state, before = torch.get_rng_state(), sorted(Path(toy["checkpoint_dir"]).parent.rglob("*.safetensors"))
    speed = speed_of(config, keys)
    assert speed.seconds_a_row > 0 and speed.seconds_an_answer == 0
    assert speed.seconds(Work(10, 4)) == pytest.approx(10 * speed.seconds_a_row + 4 * speed.seconds_an_answer)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(Path(toy["checkpoint_dir"]).parent.rglob("*.safetensors")) == before


@pytest.fixture
def runs(tmp_path, toy):
    """Builds a study of four systems over the toy data, of as many epochs as make small runs worth it."""
    own = tmp_path / "own.yaml"
    systems = {"Popularity": {"model": "Popularity"}, "SASRec": {"model": "SASRec"}, "LLaRA(SASRec)": {"model": "LLaRA"}}
    systems |= {"TALLRec": {"model": "TALLRec"}, "sum": {"fuses": ["SASRec", "LLaRA(SASRec)"]}}
    settings = {**toy, "dataset": "toy", "max_train_rows": 64, "train_batch_size": 8, "epochs": 5, "eval_step": 0}
    settings |= {"rec_epochs": 100, "rec_eval_step": 0, "rec_train_batch_size": 16}
    own.write_text(yaml.safe_dump({"settings": settings, "systems": systems}), encoding="utf-8")
    return lambda: StudyRuns(load_study(str(own)))


def test_all_runs_are_forecast_and_corrected_by_those_of_their_kind(runs, size, monkeypatch):
    rows, users = size
    speeds = {"SASRec": Speed(0.01, 0.0), "LLaRA": Speed(2.0, 0.1)}
    monkeypatch.setattr(study_runs, "speed_of", lambda config, keys: speeds[config["model"]])
    plan = runs()
    assert plan.seconds_left() is None
    said = list(plan.forecast())
    assert [line.split(":")[0] for line in said] == ["SASRec", "SASRec", "LLaRA(SASRec)", "LLaRA(SASRec)", "all runs"]
    assert "timing optimiser steps" in said[2] and "16 s a step of 8 rows" in said[3] and "Ctrl-C" in said[4]
    of_sasrec = 0.01 * rows * 100
    of_llm = 2 * 64 * 5 + 0.1 * users  # TALLRec's
    of_llara = of_llm + 0.1 * users  # its answers to the validation rows are kept for the sum
    assert plan.seconds_left() == pytest.approx(of_sasrec + of_llara + of_llm)
    arms = {arm.system: arm for arm in arms_of(plan.study)}
    plan.keep(arms["Popularity"], FinishedArm({}, {}, 1.0))
    plan.keep(arms["SASRec"], FinishedArm({}, {}, 5.0))
    assert plan.seconds_left() == pytest.approx(of_llara + of_llm), "a recommender says nothing of an LLM"
    plan.keep(arms["LLaRA(SASRec)"], FinishedArm({}, {}, 3 * of_llara))
    assert plan.seconds_left() == pytest.approx(3 * of_llm)


@pytest.mark.parametrize("is_forecast", [True, False])
def test_answers_by_a_trained_system_are_not_taken_for_a_training(tmp_path, size, toy, monkeypatch, is_forecast):
    """Known by the forecast, or else by the training: a row that is learned costs three that are answered."""
    rows, users = size
    systems = {"LLaRA": {"model": "LLaRA"}, "generate": {"evaluates": "LLaRA", "decoding": "generate"}}
    own = tmp_path / "own.yaml"
    settings = {**toy, "dataset": "toy", "epochs": 9, "eval_step": 0}
    own.write_text(yaml.safe_dump({"settings": settings, "systems": systems}), encoding="utf-8")
    plan = StudyRuns(load_study(str(own)))
    trained, _ = arms_of(plan.study)
    if is_forecast:
        monkeypatch.setattr(study_runs, "speed_of", lambda config, keys: Speed(2.0, 0.1))
        list(plan.forecast())
        plan.keep(trained, FinishedArm({}, {}, 2 * 9 * rows + 0.1 * users))
        assert plan.seconds_left() == pytest.approx(0.1 * users)
    else:
        plan.keep(trained, FinishedArm({}, {}, 3 * 9 * rows + 1 * users))
        assert plan.seconds_left() == pytest.approx(users)


def test_nothing_is_timed_that_an_earlier_call_has_run(runs, monkeypatch):
    plan = runs()
    for arm in arms_of(plan.study):
        if arm.system in ("SASRec", "LLaRA(SASRec)"):
            plan.keep(arm, FinishedArm({}, {}, 4.0))
    monkeypatch.setattr(study_runs, "speed_of", None)
    assert list(plan.forecast()) == [] and plan.seconds_left() is not None


def test_a_system_that_cannot_be_timed_is_told_by_its_own_run(runs, monkeypatch, capsys):
    def refuse(*_):
        raise UserError("none")

    plan = runs()
    monkeypatch.setattr(study_runs, "speed_of", refuse)
    monkeypatch.setattr(plan, "outcome_of", lambda arm: FailedArm("llm_path: nothing there"))
    execute(plan)
    told = capsys.readouterr().err
    assert "time left not known yet" in told and "FAILED: llm_path: nothing there" in told


def test_a_real_llm_gets_the_settings_of_the_study_for_one():
    """``make quickstart LLM=smollm2`` hands over what ahead.yaml has and quickstart.yaml has not."""
    flags = re.search(r"^REAL_LLM := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    studies = property_files("study")
    settings = {name: read_yaml(studies[name])["settings"] for name in ("quickstart", "ahead")}
    defaults = read_yaml(ROOT / "properties" / "llm_recommender.yaml")
    ours = {**defaults, **settings["quickstart"], **parse_arguments(flags.split())}
    assert {key: value for key, value in settings["ahead"].items() if key != "llm_path" and ours.get(key) != value} == {}


def test_the_main_comparison_is_a_part_of_the_whole():
    """Else ahead.yaml could not take over what ahead_main.yaml has finished."""
    part, whole = (read_yaml(property_files("study")[name]) for name in ("ahead_main", "ahead"))
    assert part["settings"] == whole["settings"]
    assert part["systems"].items() <= whole["systems"].items() and part["baselines"] == whole["baselines"]
    assert [pair for pair in part["compare"] if pair not in whole["compare"]] == []
    for name in ("whole_histories", "re_ranking"):
        assert read_yaml(property_files("study")[name])["settings"] == part["settings"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_hands_the_llm_over():
    def command(*words):
        done = subprocess.run(
            ["make", "-n", "-o", ".venv/.installed", "quickstart", *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "study quickstart --llm_path=smollm2 --learning_rate=0.0015" in command("LLM=smollm2")
    assert "--llm_path" not in command()
