"""The quickstart: three systems on one set of questions, and a second call that trains nothing."""

import json
from pathlib import Path

import pytest

from recbole_llara import quickstart as module
from recbole_llara.model.popularity import Popularity
from recbole_llara.quickstart import main, quickstart

SMALL = ("--max_train_rows=64", "--max_eval_rows=40", "--rec_epochs=1", "--rec_max_train_rows=500", "--show_progress=False")


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_three_systems_on_the_same_questions_and_a_second_call_reuses_them(monkeypatch, capsys):
    report = quickstart(SMALL)
    rows = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("|")]
    assert rows[2:] == ["Popularity", "SASRec", "LLaRA(SASRec)"]
    assert "McNemar" in report
    results = [json.loads(path.read_text()) for path in Path("saved").glob("*/result.json")]
    assert len(results) == 3
    assert len({json.dumps(result["candidate_sha256"], sort_keys=True) for result in results}) == 1
    assert {result["n"] for result in results} == {40}

    llara = next(result for result in results if result["model"] == "LLaRA")
    sasrec = next(result for result in results if result["model"] == "SASRec")
    assert sasrec["timings"].get("training_seconds") is None  # the recommender LLaRA read, not another one
    assert llara["recommender"]["path"]

    def fail(*arguments, **keys):
        raise AssertionError("a finished system was run again")

    monkeypatch.setattr("recbole_llara.quick_start.run_recbole_llara", fail)
    assert quickstart(SMALL) == report
    assert "taken from" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        quickstart((*SMALL, "--fresh"))


def test_a_users_mistake_ends_with_2(capsys):
    assert main(["--epoch=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "quickstart", interrupted)
    assert main([]) == 130
    assert "run it again" in capsys.readouterr().err


def test_popularity_counts_training_targets(tmp_path):
    from synthetic_data import write_toy_dataset

    from recbole_llara.config import LLaRAConfig
    from recbole_llara.data.dataset import prepare_data

    config = LLaRAConfig("Popularity", "toy", config_dict=write_toy_dataset(tmp_path))
    data = prepare_data(config)
    model = Popularity(config, data.dataset)
    interaction = next(iter(data.test_data))[0]
    scores = model.full_sort_predict(interaction)
    targets = data.dataset.inter_feat["item_id"].tolist()
    assert scores.shape == (len(interaction), data.dataset.item_num)
    assert scores[0].tolist() == [targets.count(item) for item in range(data.dataset.item_num)]
