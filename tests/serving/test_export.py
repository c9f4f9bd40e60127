"""An exported run: PEFT's adapter gives the run's logits, the merged folder its metrics, and a moved folder still answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.command import export_main as main
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError


def _logits(llm):
    ids = torch.arange(2, 42).view(2, 20)
    with torch.no_grad():
        return llm(input_ids=ids).logits


def test_pefts_own_loading_gives_the_runs_logits(make_run, keys):
    folder = Path(make_run(epochs=2))
    base = AutoModelForCausalLM.from_pretrained(keys["llm_path"], dtype=torch.float32)
    before = _logits(base)
    llm = PeftModel.from_pretrained(base, folder / "checkpoint" / "adapter").eval()
    assert (_logits(recbole_llara.load(folder).model.llm) - _logits(llm)).abs().max() <= 1e-6
    assert (_logits(llm) - before).abs().max() > 1e-4  # something was learned


@pytest.mark.parametrize(("tuning", "merge"), [("lora", True), ("lora", False), ("full", False)])
def test_an_exported_folder_has_the_runs_metrics(tuning, merge, make_run, tmp_path, keys):
    folder = Path(make_run(llm_tuning=tuning))
    run = recbole_llara.load(folder)
    expected = run.recommend(["i1", "i2"], k=10)
    logits = _logits(run.model.llm)
    out = export(folder, tmp_path / "out", merge=merge)
    has_llm = merge or tuning == "full"
    assert (out / "llm" / "model.safetensors").is_file() == has_llm
    assert (out / "checkpoint" / "adapter").is_dir() == (not has_llm)
    if has_llm:
        plain = AutoModelForCausalLM.from_pretrained(out / "llm", dtype=torch.float32)
        assert (_logits(plain) - logits).abs().max() <= 1e-4  # float32 sums in another order
    again = run_recbole_llara(config_file_list=[out / "run.yaml"], config_dict={"checkpoint_dir": str(tmp_path / "elsewhere")})
    result, before = (json.loads(Path(path, "result.json").read_text()) for path in (again["run_dir"], folder))
    assert result["metrics"]["test"] == before["metrics"]["test"] and result["candidate_sha256"] == before["candidate_sha256"]
    answers, others = (read_records(Path(path, "cases.jsonl")) for path in (again["run_dir"], folder))
    assert [case["answer"] for case in answers] == [case["answer"] for case in others]
    moved = tmp_path / "moved" / "run"
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    shutil.rmtree(folder.parent)
    found = recbole_llara.load(moved).recommend(["i1", "i2"], k=10)
    assert [item.item_id for item in found] == [item.item_id for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)
    card = (moved / "README.md").read_text(encoding="utf-8")
    assert f"n: {before['n']}" in card and before["candidate_sha256"]["test"] in card and "licence" in card
    items = (moved / "items.tsv").read_text(encoding="utf-8").splitlines()
    assert len(items) == 61 and items[0] == "item_id\ttitle"


def test_what_cannot_be_exported(make_run, tmp_path, capsys):
    folder = Path(make_run("SASRec"))
    with pytest.raises(UserError, match="is one of SASRec, expected a run of an LLM"):
        export(folder, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export(folder, tmp_path / "there")
    assert main([f"--run={folder}", f"--output={tmp_path / 'out'}", "--dtype=int8"]) == 2
    assert "dtype: found 'int8'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
