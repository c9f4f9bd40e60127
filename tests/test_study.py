"""Studies: systems on one set of questions, a second call that trains nothing, and every shipped study runs."""

import json
from pathlib import Path

import pytest
from synthetic_data import write_toy_dataset

from recbole_llara import study as module
from recbole_llara.config import LLaRAConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.errors import UserError
from recbole_llara.model.popularity import Popularity
from recbole_llara.study import STUDIES, load_study, main, run_system, study_report

SMALL = ("--max_train_rows=64", "--max_eval_rows=40", "--rec_epochs=1", "--rec_max_train_rows=500", "--show_progress=False")
SHIPPED = sorted(path.stem for path in STUDIES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_three_systems_on_the_same_questions_and_a_second_call_reuses_them(monkeypatch, capsys):
    report = study_report(("quickstart", *SMALL))
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
    assert llara["recommender"]["path"] and len(list(Path("saved/recommenders").glob("SASRec-*"))) == 1

    def fail(*arguments, **keys):
        raise AssertionError("a finished system was run again")

    monkeypatch.setattr("recbole_llara.quick_start.run_recbole_llara", fail)
    assert study_report(("quickstart", *SMALL)) == report
    assert "taken from" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        study_report(("quickstart", *SMALL, "--fresh"))


def test_a_users_mistake_ends_with_2(capsys, tmp_path):
    assert main(["quickstart", "--epoch=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert main(["quikstart"]) == 2
    assert "did you mean 'quickstart'" in capsys.readouterr().err
    assert main([]) == 2
    assert "found 0 studies" in capsys.readouterr().err
    own = tmp_path / "own.yaml"
    for content, message in (
        ("systems: [SASRec]", "expected systems"),
        ("systems: {A: {seed: 1}}", "model among them"),
        ("systems: {A: {model: Popularity}}\ncompare: [[A, B]]", "expected pairs of A"),
    ):
        own.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_study(str(own))


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "study_report", interrupted)
    assert main([]) == 130
    assert "run it again" in capsys.readouterr().err


def test_a_study_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("settings: {protocol: leave_one_out}\nsystems: {most often: {model: Popularity}}", encoding="utf-8")
    report = study_report((str(own), "--max_eval_rows=30", "--show_progress=False"))
    assert "most often" in report and " 30 " in report


@pytest.mark.parametrize("name", SHIPPED)
def test_every_system_of_a_shipped_study_is_a_configuration(name, monkeypatch):
    """The keys of each are known and fit together; what is compared is there."""
    monkeypatch.setenv("OPENAI_API_KEY", "of the test")
    study = load_study(name)
    for keys in study.systems.values():
        own = dict(keys)
        model = own.pop("model")
        config = LLaRAConfig(model, config_dict={**module._settings_for(model, study.settings), **own})
        assert config["dataset"] == "ml-100k" and config["protocol"] == "leave_one_out"


def test_the_chat_model_of_a_study_is_served_by_it():
    entry = run_system(load_study("main_results").with_settings({"max_eval_rows": 8, "show_progress": False}), "ChatLLM")
    assert entry.result["n"] == 8 and entry.result["chat"]["answers"] == 8 and entry.result["chat"]["completion_tokens"] >= 8


def test_popularity_counts_training_targets(tmp_path):
    config = LLaRAConfig("Popularity", "toy", config_dict=write_toy_dataset(tmp_path))
    data = prepare_data(config)
    model = Popularity(config, data.dataset)
    interaction = next(iter(data.test_data))[0]
    scores = model.full_sort_predict(interaction)
    targets = data.dataset.inter_feat["item_id"].tolist()
    assert scores.shape == (len(interaction), data.dataset.item_num)
    assert scores[0].tolist() == [targets.count(item) for item in range(data.dataset.item_num)]
