"""Runs whose training candidates come from the recommender."""

import json
from pathlib import Path

import pytest
from toy_run import stopped_run

import recbole_llara
from recbole_llara.data.dataset import ROW_FIELD
from recbole_llara.quick_start import run_recbole_llara

DRAWN = {"candidate_draw": "recommender", "candidate_draw_top": 15}


def result_of(told):
    return json.loads(Path(told["result_file"]).read_text(encoding="utf-8"))


def cases_of(told):
    return Path(told["cases_file"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("model", ["LLaRA", "TALLRec"])
def test_training_rows_have_the_recommenders_items(model, keys, make_trainer):
    trainer, data = make_trainer({**keys, **DRAWN}, model)
    own, loader = trainer.model, data.train_data
    assert own.proposing.model == "SASRec" and (own.recommender is None) == (model == "TALLRec")
    interaction = next(iter(loader))
    rows = own.training_rows(interaction, 1)
    proposed = own.sampler.proposals.of(interaction[ROW_FIELD].numpy())
    for candidates, target, items in zip(rows.candidates.tolist(), rows.targets.tolist(), proposed.tolist(), strict=True):
        assert target in candidates and set(candidates) - {target} <= set(items)
    assert (own.training_rows(interaction[:3], 1).candidates == rows.candidates[:3]).all()


def test_the_draw_changes_training_and_no_question(keys):
    told = {draw: run_recbole_llara("TALLRec", "toy", config_dict={**keys, **DRAWN, "candidate_draw": draw}) for draw in
            ("uniform", "recommender", "mixed")}  # fmt: skip
    results = {draw: result_of(paths) for draw, paths in told.items()}
    assert len({json.dumps(result["candidate_sha256"]) for result in results.values()}) == 1
    assert len({cases_of(paths) for paths in told.values()}) == 3
    assert results["mixed"]["proposing"]["sha256"] == results["recommender"]["proposing"]["sha256"]
    assert "proposing" not in results["uniform"]


def test_a_run_that_goes_on_draws_the_same(keys, monkeypatch, tmp_path):
    keys = {**keys, **DRAWN, "save_steps": 1}
    run = stopped_run(keys, 1, monkeypatch)
    for path in (tmp_path / "saved" / "proposals").glob("*.safetensors"):
        path.unlink()  # they are made again, to the same
    resumed = run_recbole_llara(config_dict={"resume": str(run)})
    whole = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    assert cases_of(resumed) == cases_of(whole)


def test_a_loaded_run_needs_no_proposals(keys, tmp_path):
    told = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **DRAWN})
    for path in (tmp_path / "saved" / "proposals").glob("*.safetensors"):
        path.unlink()
    assert recbole_llara.load(told["run_dir"]).recommend(["id:i3", "id:i4"], k=2)
    assert not list((tmp_path / "saved" / "proposals").glob("*.safetensors"))
