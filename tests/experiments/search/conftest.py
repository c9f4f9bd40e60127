"""Searches whose trials are made up: a score that is a function of the keys, and test metrics that say the opposite."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from synthetic_data import write_toy_dataset

from recbole_llara.experiments.search import run as module
from recbole_llara.experiments.search.definition import define

PARAMETERS = "hidden_size choice [8, 16]\nlearning_rate choice [0.1, 0.01, 0.001]\nhidden_dropout_prob choice [0.2, 0.4]\n"


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recbole_llara.experiments.search.report.write_pngs", lambda figures, folder: None)


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
        return define(model, "toy", "toy.hyper", algo=algo, config_files=[toy], argv=argv, **keys)

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

    monkeypatch.setattr(module, "run_recbole_llara", run)
    return seen
