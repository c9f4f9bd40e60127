import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml

from recbole_llara.checkpoint.run_folder import RunFolder, read_records
from recbole_llara.config.secrets import without_secrets
from recbole_llara.evaluator.answer import OUTCOMES, EvaluatedCases, joined
from recbole_llara.evaluator.result import build_result, command_line

CONFIG = {
    "model": "SASRec",
    "dataset": "ml-100k",
    "protocol": "leave_one_out",
    "seed": 2020,
    "candidate_seed": None,
    "max_title_tokens": 64,
    "openai_api_key": "sk-secret",
    "device": torch.device("cpu"),
    "topk": [1, 5],
}


def two_cases() -> EvaluatedCases:
    return EvaluatedCases(
        rows=torch.tensor([0, 1]),
        users=torch.tensor([1, 2]),
        histories=torch.tensor([[1, 2, 0], [3, 0, 0]]),
        candidates=torch.tensor([[3, 4], [1, 2]]),
        targets=torch.tensor([3, 2]),
        items=torch.tensor([3, 0]),
        texts=["Título 三", "nonsense"],
        outcomes=["exact", "unmatched"],
    )


def test_runs_started_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(tmp_path, CONFIG), range(24)))
    assert len({folder.path for folder in folders}) == 24
    assert all(folder.path.name.startswith("SASRec-ml-100k-leave_one_out-seed2020-") for folder in folders)


def test_names_cannot_leave_the_folder(tmp_path):
    folder = RunFolder.create(tmp_path, {**CONFIG, "dataset": "../../else/where"})
    assert folder.path.parent == tmp_path


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    folder = RunFolder.create(tmp_path, CONFIG)
    folder.write_records("cases.jsonl", [{"row": 0}])

    def broken():
        yield {"row": 1}
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError):
        folder.write_records("cases.jsonl", broken())
    assert read_records(folder.path / "cases.jsonl") == [{"row": 0}]
    assert [path.name for path in folder.path.iterdir()] == ["cases.jsonl"]


def test_config_is_written_without_secrets_and_with_ordinary_keys(tmp_path):
    path = RunFolder.create(tmp_path, CONFIG).write_config(CONFIG)
    written = yaml.safe_load(path.read_text())
    assert "sk-secret" not in path.read_text()
    assert written["max_title_tokens"] == 64
    assert written["device"] == "cpu"
    assert written["topk"] == [1, 5]


def test_secrets_are_masked_on_the_command_line():
    argv = ["/home/someone/run_recbole_llara.py", "--model=LLaRA", "--openai_api_key=sk-1", "--hf-token", "hf-2", "--seed=3"]
    assert command_line(argv) == [
        "run_recbole_llara.py",
        "--model=LLaRA",
        "--openai_api_key=***",
        "--hf-token",
        "***",
        "--seed=3",
    ]
    assert without_secrets({"API_KEY": "x", "token_field": "y"}) == {"token_field": "y"}


def test_result_carries_interval_counts_and_a_copy(tmp_path):
    numbers = torch.arange(10)
    cases = EvaluatedCases(
        items=torch.tensor([1] * 8 + [2, 0]),  # eight right, one wrong, one invalid
        rows=numbers,
        users=numbers + 1,
        histories=torch.full((10, 3), 4),
        candidates=torch.tensor([[1, 2]] * 10),
        targets=torch.ones(10, dtype=torch.int64),
    )
    result = build_result(
        CONFIG,
        cases,
        candidate_sha256={"valid": "aa", "test": "bb"},
        metrics={"valid": {"hit@1": np.float64(0.7)}, "test": {"hit@1": 0.8, "gauc": float("nan")}},
        timings={"training": 1.5},
        fields={"llm": "tiny", "text_encoder": "bert"},
        best_epoch=3,
    )
    folder = RunFolder.create(tmp_path, CONFIG)
    path = folder.write_result(result, tmp_path / "elsewhere" / "copy.json")
    written = json.loads(path.read_text())
    assert written == json.loads((tmp_path / "elsewhere" / "copy.json").read_text())
    assert (written["n"], written["correct"], written["valid_answers"]) == (10, 8, 9)
    assert written["hit_among_valid"] == pytest.approx(8 / 9)
    assert written["interval_95"]["low"] == pytest.approx(0.490163, abs=2e-6)
    assert written["candidate_seed"] == 2020
    assert (written["llm"], written["rec_model"], written["text_encoder"]) == ("tiny", None, "bert")
    assert written["metrics"]["test"]["gauc"] is None
    assert written["versions"]["torch"]


def test_cases_are_spelt_out_with_external_ids_and_titles(tmp_path):
    records = two_cases().records(["[PAD]", "u1", "u2"], ["[PAD]", "a", "b", "c", "d"], ["", "A", "B", "C", "D"], np.arange(5))
    path = RunFolder.create(tmp_path, CONFIG).write_records("cases.jsonl", records)
    first, second = read_records(path)
    assert first["user"] == "u1"
    assert (first["history"], first["history_titles"]) == (["a", "b"], ["A", "B"])
    assert (first["candidates"], first["candidate_titles"]) == (["c", "d"], ["C", "D"])
    assert (first["target"], first["answer"], first["answer_text"]) == ("c", "c", "Título 三")
    assert (first["valid"], first["correct"]) == (True, True)
    assert first["target_users"] == 3
    assert (second["answer"], second["answer_title"], second["answer_text"]) == (None, None, "nonsense")
    assert (second["valid"], second["correct"], second["scores"]) == (False, False, None)
    assert (first["outcome"], second["outcome"]) == ("exact", "unmatched")


def test_batches_are_joined_in_order():
    cases = joined([two_cases(), two_cases()])
    assert cases.correct.tolist() == [True, False, True, False]
    assert cases.valid.tolist() == [True, False, True, False]
    assert cases.texts == ["Título 三", "nonsense"] * 2 and cases.scores is None
    counts = cases.outcome_counts
    assert counts["exact"] == counts["unmatched"] == 2 and sum(counts.values()) == 4 and list(counts) == list(OUTCOMES)
