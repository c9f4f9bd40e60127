"""A run whose LLM and recommender answer together: fitted on validation rows, told in the result, the same where it is loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_run import stopped_run, toy_keys

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records, read_result
from recbole_llara.evaluator.fusion import Fusion
from recbole_llara.evaluator.report import system_name
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.export import export
from recbole_llara.serving.fused import fuse_run
from recbole_llara.serving.http.runs import load_runs
from recbole_llara.serving.loaded import LoadedRun
from recbole_llara.utils.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_llm, make_tokenizer):
    """A folder of two toy runs of one LLaRA, and their folders' names there: by itself, and fused without further training."""
    folder = tmp_path_factory.mktemp("fused")
    keys = {**toy_keys(folder, make_llm, make_tokenizer), "epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone = run_recbole_llara("LLaRA", "toy", config_dict=keys)
        evaluated = {**keys, "fusion": "validation", "checkpoint": alone["checkpoint"]}
        fused = run_recbole_llara("LLaRA", "toy", config_dict=evaluated)
    return folder, *(Path(paths["run_dir"]).resolve().relative_to(folder) for paths in (alone, fused))


@pytest.fixture
def pair(finished, tmp_path, monkeypatch):
    """Copies of both folders, where a test may change them."""
    folder, *names = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    return [copy / name for name in names]


@pytest.fixture
def alone(pair):
    """The folder of a toy run of LLaRA."""
    return pair[0]


@pytest.fixture
def fused(pair):
    """The folder of the same, fused with its recommender."""
    return pair[1]


def named(run, items):
    return [run.names.find(f"id:{item}") for item in items]


def told_by(run, case):
    """The scores by item of a row, as ``recommend`` tells them."""
    history, candidates = ([f"id:{item}" for item in case[key]] for key in ("history", "candidates"))
    return {item.item_id: item.score for item in run.recommend(history, k=len(candidates), candidates=candidates)}


def test_the_result_is_that_of_the_sum_and_recommend_gives_its_ranking(fused, alone):
    result = read_result(fused)
    told, fusion = result["fusion"], Fusion.read(result["fusion"])
    assert system_name(result) == told["name"] == "LLaRA + SASRec" and fusion.systems == ("SASRec", "LLaRA")
    assert told["fitted_on"] == "validation" and told["n"] == 12
    assert told["nll"]["fused"] <= min(told["nll"]["calibrated"].values()) + 1e-9
    assert read_result(alone)["metrics"]["test"] == told["alone"]["LLaRA"]["test"]
    run, correct = recbole_llara.load(fused), []
    assert run.name == "LLaRA + SASRec" and run.fusion == fusion
    for case, own in zip(read_records(fused / "cases.jsonl"), read_records(alone / "cases.jsonl"), strict=True):
        of_recommender = run.retriever.scores([named(run, case["history"])])[0, named(run, case["candidates"])]
        parts = [values.double().log_softmax(0) for values in (of_recommender, torch.tensor(own["scores"]))]
        total = sum(weight * values for weight, values in zip(fusion.weights, parts, strict=True)) / fusion.temperature
        assert case["scores"] == pytest.approx(total.log_softmax(0).tolist(), abs=1e-4)
        asked = told_by(run, case)
        assert next(iter(asked)) == case["answer"] and case["valid"] and case["answer_text"] == case["answer_title"]
        assert [asked[item] for item in case["candidates"]] == pytest.approx(case["scores"], abs=1e-4)
        correct.append(case["answer"] == case["target"])
    assert result["correct"] == sum(correct) and result["metrics"]["test"]["hit@1"] == pytest.approx(np.mean(correct), abs=1e-4)
    assert result["nll"] == pytest.approx(
        -np.mean([case["scores"][case["candidates"].index(case["target"])] for case in read_records(fused / "cases.jsonl")]),
        abs=1e-5,
    )


def test_test_rows_change_nothing_in_the_fit(keys, make_trainer):
    trainer, data = make_trainer({**keys, "fusion": "validation"})
    answered = {}
    trainer.eval_collector.data_collect(data.train_data)
    for split, rows in (("valid", data.valid_data), ("test", data.test_data)):
        trainer.evaluate(rows, load_best_model=False)
        answered[split] = trainer.last_cases
    run = LoadedRun(trainer.config, data, trainer.model)
    found = fuse_run(run, trainer, answered)
    test = answered["test"]
    scores = torch.randn(test.scores.shape)
    others = replace(
        test, scores=scores, targets=test.candidates[:, 0], items=test.candidates.gather(1, scores.argmax(1, True))[:, 0]
    )
    again = fuse_run(run, trainer, {**answered, "test": others})
    assert again.fusion == found.fusion and again.metrics["valid"] == found.metrics["valid"]
    assert again.metrics["test"] != found.metrics["test"]


def test_an_exported_run_answers_alike_and_is_measured_again(fused, tmp_path):
    run = recbole_llara.load(fused)
    expected = [(item.item_id, item.score) for item in run.recommend(["i1", "i2"], k=10)]
    by_llm = recbole_llara.load(fused, fusion="none").recommend(["i1", "i2"], k=10)
    assert [(item.item_id, item.score) for item in by_llm] != expected
    out = export(fused, tmp_path / "out")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "# LLaRA + SASRec on toy" in card and "| fusion | log-probabilities are added: SASRec 1, LLaRA " in card
    again = run_recbole_llara(config_file_list=[out / "run.yaml"], config_dict={"checkpoint_dir": str(tmp_path / "elsewhere")})
    result, before = read_result(Path(again["run_dir"])), read_result(fused)
    assert result["metrics"] == before["metrics"] and result["fusion"] == before["fusion"]
    shutil.rmtree(fused.parent)
    found = recbole_llara.load(out).recommend(["i1", "i2"], k=10)
    assert [item.item_id for item in found] == [item for item, _ in expected]
    assert [item.score for item in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_a_run_that_trains_is_fused_under_its_best_weights(make_run, fused, alone):
    trained = Path(make_run(epochs=2, fusion="validation"))
    assert read_result(trained)["fusion"] == read_result(fused)["fusion"]
    assert read_records(trained / "cases.jsonl") == read_records(fused / "cases.jsonl")
    assert (trained / "training.jsonl").exists() and not (fused / "training.jsonl").exists()
    with pytest.raises(UserError, match="was not fused, so that there are no weights.*--fusion=validation"):
        recbole_llara.load(alone, fusion="validation")


def test_a_run_that_was_stopped_is_fused_at_its_end(keys, monkeypatch):
    keys = {**keys, "epochs": 2, "fusion": "validation"}
    whole = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "checkpoint_dir": "whole"})
    stopped = stopped_run(keys, 4, monkeypatch)
    again = run_recbole_llara(config_dict={"resume": str(stopped)})
    assert again["run_dir"] == str(stopped) and again["test_result"] == whole["test_result"]
    assert read_result(stopped)["fusion"] == read_result(Path(whole["run_dir"]))["fusion"]


def test_a_text_only_llm_is_fused_with_rec_model(make_run, tmp_path):
    folder = Path(make_run("TALLRec", fusion="validation", rec_model="GRU4Rec", full_rank=True, protocol="leave_one_out"))
    result = read_result(folder)
    assert system_name(result) == "TALLRec + GRU4Rec" and result["recommender"]["sha256"] and result["rec_model"] == "GRU4Rec"
    assert result["full_rank"]["n"] == 12
    run = recbole_llara.load(folder)
    case = read_records(folder / "cases.jsonl")[0]
    asked = told_by(run, case)
    assert [asked[item] for item in case["candidates"]] == pytest.approx(case["scores"], abs=1e-4)
    moved = shutil.move(export(folder, tmp_path / "out"), tmp_path / "moved")
    shutil.rmtree(folder.parent)
    assert told_by(recbole_llara.load(moved), case) == pytest.approx(asked, abs=1e-4)


def test_another_recommender_is_refused(make_run):
    folder = Path(make_run("TALLRec", fusion="validation"))
    (other,) = (path for path in folder.parent.glob("recommenders/SASRec-*"))
    other = other.rename(other.with_name("SASRec-other"))
    Path(make_run("TALLRec", fusion="validation", rec_epochs=2))
    (another,) = (path for path in folder.parent.glob("recommenders/SASRec-*") if path != other)
    with pytest.raises(UserError, match="were fitted with another recommender than"):
        recbole_llara.load(folder, rec_checkpoint=str(another))
    assert recbole_llara.load(folder, rec_checkpoint=str(another), fusion="none").fusion is None


def test_a_table_of_vectors_is_fused_too(make_run, tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    (tmp_path / "own.ids.txt").write_text("".join(f"i{item}\n" for item in range(60)), encoding="utf-8")
    folder = Path(make_run(fusion="validation", item_embeddings=str(tmp_path / "own.npy")))
    assert system_name(read_result(folder)) == "LLaRA + own.npy"
    case = read_records(folder / "cases.jsonl")[0]
    asked = told_by(recbole_llara.load(folder), case)
    assert [asked[item] for item in case["candidates"]] == pytest.approx(case["scores"], abs=1e-4)


def test_a_user_who_has_seen_nearly_everything(fused):
    run = recbole_llara.load(fused)
    items = list(range(1, run.retriever.n_known))
    found = run.recommend([f"id:{run.names.ids[item]}" for item in items[:-3]], k=10)
    assert {item.item_id for item in found} == {run.names.ids[item] for item in items[-3:]}
    assert sum(np.exp(item.score) for item in found) == pytest.approx(1)  # of the list shown


def test_the_page_calls_it_by_its_own_name(fused, alone):
    runs = load_runs([str(fused), str(alone)])
    assert [run.name for run in runs] == ["LLaRA + SASRec", "LLaRA"]
    assert [run.facts["is_fused"] for run in runs] == [True, False]


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("LLaRA", {"decoding": "generate"}, "fusion: found validation with decoding generate, expected decoding score"),
        ("LLaRA", {"decoding": "constrained"}, "expected decoding score"),
        (
            "LLaRA",
            {"item_embeddings": "random"},
            "fusion: found 'validation' with item_embeddings 'random', expected a recommender",
        ),
        ("LLaRA", {"fusion": "test"}, "fusion: found 'test', expected one of none, validation"),
        ("SASRec", {}, "fusion: found 'validation' with SASRec, expected an LLM recommender"),
    ],
)
def test_what_cannot_be_fused(model, changes, message, make_run):
    with pytest.raises(UserError, match=message):
        make_run(model, **{"fusion": "validation", **changes})


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"weights": {"SASRec": 1.0, "GRU4Rec": 1.0}}, {"weights": [1, 2]}])
def test_weights_of_a_strange_folder(change, fused):
    result = read_result(fused)
    result["fusion"] |= change
    if isinstance(change.get("weights"), dict):
        result["fusion"]["nll"] |= {kind: dict.fromkeys(change["weights"], 1.0) for kind in ("alone", "calibrated")}
    (fused / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match="fusion: .*result.json tells"):
        recbole_llara.load(fused)
