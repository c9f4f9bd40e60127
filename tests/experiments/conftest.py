"""Finished arms made by hand, whose answers are what a test says; searches whose trials are made up, with a score that is a
function of the keys, and test metrics that say the opposite."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from synthetic_data import write_toy_dataset

from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.experiments.command import search_parser
from recbole_llara.experiments.runner import execute
from recbole_llara.experiments.search_definition import read_command
from recbole_llara.experiments.search_trials import SearchTrials
from recbole_llara.experiments.study_arms import Arm, FinishedArm
from recbole_llara.experiments.study_definition import Study

PARAMETERS = "hidden_size choice [8, 16]\nlearning_rate choice [0.1, 0.01, 0.001]\nhidden_dropout_prob choice [0.2, 0.4]\n"


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_pngs(monkeypatch):
    """Draws no picture files, which take a browser."""
    monkeypatch.setattr("recbole_llara.experiments.report.write_pngs", lambda figures, folder: None)


@pytest.fixture
def make_study():
    """Builds a study of systems that are never run."""

    def make(names=("A", "B"), **keys):
        systems = {name: {"model": "LLaRA"} for name in names}
        keys = {"settings": {"checkpoint_dir": "saved", "protocol": "leave_one_out"}, **keys}
        return Study(name="made", title="Made <by hand>", systems=systems, **keys)

    return make


@pytest.fixture
def make_entry(tmp_path):
    """Builds the outcome of a run from which rows it answered correctly."""
    number = count()

    def make(
        correct,
        valid_hit=0.5,
        llm="tiny",
        protocol="leave_one_out",
        candidates="c",
        title="Title",
        decoding="score",
        scores=None,
    ):
        correct = np.asarray(correct, dtype=bool)
        folder = tmp_path / f"run{next(number)}"
        folder.mkdir()
        with open(folder / "cases.jsonl", "w", encoding="utf-8") as file:
            for row, is_right in enumerate(correct.tolist()):
                titles = [f"{title} {number}" for number in range(3)]
                answer = titles[0] if is_right else titles[1]
                case = {"row": row, "user": str(row), "history_titles": titles, "candidates": ["1", "2", "3"]}
                case |= {
                    "candidate_titles": titles,
                    "target": "1",
                    "target_title": titles[0],
                    "correct": is_right,
                    "scores": scores,
                }
                case["target_users"] = 10 * row
                file.write(json.dumps({**case, "answer_title": answer, "answer_text": answer}) + "\n")
        n, hits = len(correct), int(correct.sum())
        interval = wilson_interval(hits, n)
        result = {"dataset": "ml-100k", "protocol": protocol, "model": "LLaRA", "n": n, "correct": hits, "valid_answers": n}
        result |= {"candidate_sha256": {"test": candidates}, "llm": llm, "decoding": decoding, "best_epoch": 0, "timings": {}}
        result |= {"interval_95": {"low": interval.low, "high": interval.high}, "hit_among_valid": hits / n}
        result["metrics"] = {"valid": {"hit@1": valid_hit}, "test": {"hit@1": hits / n, "validratio": 1.0}}
        paths = {key: str(folder) for key in ("run_dir", "result_file", "checkpoint")}
        return FinishedArm(result, {**paths, "cases_file": str(folder / "cases.jsonl")}, 1.0)

    return make


@pytest.fixture
def outcomes_of(make_entry):
    """Builds outcomes from [seeds, n] answers of each system."""

    def make(answers, **keys):
        return {
            Arm(name, "ml-100k", 2020 + number, 2020): make_entry(correct, **keys)
            for name, of_seeds in answers.items()
            for number, correct in enumerate(of_seeds)
        }

    return make


@pytest.fixture
def toy(tmp_path):
    """The file of the keys of a toy run, and ``toy.hyper``, which has twelve combinations."""
    keys = {**write_toy_dataset(tmp_path), "epochs": 1, "checkpoint_dir": "saved"}
    Path("toy.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    Path("toy.hyper").write_text(PARAMETERS, encoding="utf-8")
    return "toy.yaml"


@pytest.fixture
def make_search(toy):
    """Defines a search of SASRec on the toy data."""

    def make(parameters=PARAMETERS, algo="exhaustive", argv=(), model="SASRec", **keys):
        Path("toy.hyper").write_text(parameters, encoding="utf-8")
        words = [f"--model={model}", "--dataset=toy", "--params_file=toy.hyper", f"--algo={algo}", f"--config_files={toy}"]
        words += [f"--{name}={value}" for name, value in keys.items()]
        return read_command(*search_parser().parse_known_args([*words, *argv]))

    return make


def score(keys):
    """Best at hidden_size 16 and learning_rate 0.01."""
    return round(keys["hidden_size"] / 32 - abs(keys["learning_rate"] - 0.01) + keys["hidden_dropout_prob"] / 100, 6)


@pytest.fixture
def runs(monkeypatch):
    """The ``config_dict`` of every run that a search asks for; ``runs.before(keys)`` is called before each ends."""
    number = count()
    seen = SimpleNamespace(keys=[], before=lambda keys: None)

    def run(model, dataset, config_dict):
        seen.keys.append(config_dict)
        folder = Path("saved") / f"run-{next(number)}"
        folder.mkdir(parents=True)
        seen.before(config_dict)
        found = score(config_dict)
        result = {"metrics": {"valid": {"hit@1": found}, "test": {"hit@1": 1 - found}}}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return {
            "best_valid_score": found,
            "valid_score_bigger": True,
            "best_valid_result": {"hit@1": found},
            "test_result": {"hit@1": 1 - found},
            "run_dir": str(folder),
            "result_file": str(folder / "result.json"),
        }

    monkeypatch.setattr("recbole_llara.experiments.runner.run_recbole_llara", run)
    return seen


@pytest.fixture
def finished():
    """Runs a search; returns its finished trials."""

    def run(search):
        trials = SearchTrials(search)
        execute(trials)
        return trials.finished()

    return run
