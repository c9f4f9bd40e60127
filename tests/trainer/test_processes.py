"""Two processes, started as a user would start them, do what one does: every loss, every metric, every answer."""

import json
import re
from itertools import pairwise

import killing
import pytest
import yaml

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import Processes


@pytest.fixture
def run(keys, tmp_path, monkeypatch):
    """Runs in this process, or the command line in two; returns result.json, cases, training log and what the two printed."""

    def start(processes, **changes):
        folder = tmp_path / processes
        folder.mkdir()
        # A small rate: Adam turns the last bit of a gradient near zero into a whole step.
        values = {**keys, "checkpoint_dir": str(folder / "saved"), "state": "INFO", "learning_rate": 1e-4, **changes}
        printed = ""
        if processes == "one":
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                run_recbole_llara(values["model"], "toy", config_dict=values)
        else:
            (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
            status = killing.start(folder, launcher=killing.TWO).wait(timeout=400)
            printed = (folder / "printed.txt").read_text(encoding="utf-8")
            assert status == 0, printed[-3000:]
            assert ("2 processes share" in printed) == (values["model"] != "SASRec")
        (path,) = (folder / "saved").glob(f"{values['model']}-toy-*")  # one writer, one folder
        assert len(list((folder / "log_tensorboard").iterdir())) == 1
        log = read_records(path / "training.jsonl") if (path / "training.jsonl").exists() else []
        result = json.loads((path / "result.json").read_text(encoding="utf-8"))
        return result, read_records(path / "cases.jsonl"), log, printed

    return start


def assert_equal(one, two, tolerance=1e-5):
    (result, cases, log, _), (other, other_cases, other_log, _) = one, two
    assert other["candidate_sha256"] == result["candidate_sha256"] and other["n"] == result["n"] == len(other_cases)
    for split, metrics in result["metrics"].items():
        assert other["metrics"][split] == pytest.approx(metrics, abs=tolerance)
    steps = [record for record in log if "loss" in record]
    assert len(steps) > 3
    for own, theirs in zip(log, other_log, strict=True):
        assert theirs.keys() == own.keys()
        if "loss" in own:
            assert theirs == pytest.approx(own, rel=tolerance)
    for own, theirs in zip(cases, other_cases, strict=True):
        assert (own["row"], own["answer"], own["candidates"]) == (theirs["row"], theirs["answer"], theirs["candidates"])
        assert theirs["scores"] == pytest.approx(own["scores"], rel=10 * tolerance)


@pytest.mark.slow
def test_llara_with_dropout_and_a_curriculum(run):
    """Dropout's draws and the curriculum's are those of one process; the last step of an epoch has rows for one alone."""
    keys = {"model": "LLaRA", "strategy": "curriculum", "lora_dropout": 0.1, "epochs": 2, "max_train_rows": 49}
    one = run("one", **keys)
    assert_equal(one, run("two", **keys))
    tasks = [record["hard_probability"] for record in one[2] if "loss" in record]
    assert tasks[0] < tasks[-1]


@pytest.mark.slow
def test_an_llm_fused_with_its_recommender(run):
    """Weights are fitted once, for all processes, and both recommenders are those of one process."""
    keys = {"model": "LLaRA", "fusion": "validation", "epochs": 2, "full_rank": True, "protocol": "leave_one_out"}
    keys |= {"recommender_rows": "earlier", "user_token": True}
    one, two = run("one", **keys), run("two", **keys)
    assert_equal(one, two, tolerance=1e-4)
    for which in ("recommender", "recommender_of_training"):
        assert one[0][which]["sha256"] == two[0][which]["sha256"]
    (fusion, other), (ranks, others) = ([result[key] for result in (one[0], two[0])] for key in ("fusion", "full_rank"))
    assert fusion["weights"] == pytest.approx(other["weights"], rel=1e-3)
    assert fusion["temperature"] == pytest.approx(other["temperature"], rel=1e-3) and ranks["reranker"] == others["reranker"]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_rows_that_are_read_as_if_new(run, fsdp):
    """Vectors out of texts are made by every process alike, also where each holds a share of the LLM that reads them."""
    keys = {"model": "LLaRA", "protocol": "leave_one_out", "new_item_token": "text", "as_new_share": 0.5, "micro_batch_size": 6}
    keys |= {
        "recommender_score_token": "log_prob",
        "candidate_order": "recommender",
        "answer_loss": "listwise",
        "max_train_rows": 49,
    }
    assert_equal(run("one", **keys), run("two", fsdp=fsdp, **keys), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_rsllms_stages_and_contrasts(run, fsdp):
    """With dropout, weights dealt out or not; one process cuts a step of 16 rows into 3 passes, two cut it into 4; the last step is a single row."""
    keys = {"strategy": "two_stage", "lora_dropout": 0.1, "micro_batch_size": 6, "max_train_rows": 49}
    keys |= {"model": "RSLLM", "epochs": 2, "stage_1_epochs": 1}
    one, two = run("one", **keys), run("two", fsdp=fsdp, **keys)
    assert_equal(one, two)
    assert {"loss_answer", "loss_item_item", "loss_user_item"} <= one[2][0].keys()
    assert two[3].count("Stage 2 of 2") == 1  # one tells of it


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_the_whole_catalogue(run, fsdp):
    """Three batches for two processes, the last of one row."""
    keys = {"model": "LLaRA", "full_rank": True, "max_train_rows": 16, "max_eval_rows": 9, "eval_batch_size": 4, "topk": [1, 5]}
    (one, *_), (two, *_) = run("one", **keys), run("two", fsdp=fsdp, **keys)
    assert one["full_rank"]["n"] == 9 and one["full_rank"]["reranker"].keys() == {"hit@1", "ndcg@1", "hit@5", "ndcg@5"}
    assert two["full_rank"] == one["full_rank"]


@pytest.mark.slow
@pytest.mark.parametrize("decoding", ["score", "generate"])
def test_frozen_weights_dealt_out(run, make_llm, decoding):
    """FSDP over LoRA: one row is left for two processes in training as in evaluation, and generation ends at different steps."""
    keys = {"model": "LLaRA", "max_train_rows": 49, "max_eval_rows": 13, "eval_batch_size": 4, "decoding": decoding}
    one, two = run("one", **keys), run("two", fsdp=True, **keys)
    if decoding == "generate":
        assert [case["answer_text"] for case in two[1]] == [case["answer_text"] for case in one[1]]
    else:
        assert_equal(one, two)
    held, every = (int(number.replace(",", "")) for number in re.search(r"holds (\S+) of the LLM's (\S+)", two[3]).groups())
    frozen = sum(p.numel() for p in make_llm("llama").model.layers.parameters())
    assert held == every - frozen // 2  # embeddings and adapters whole


@pytest.mark.slow
def test_a_stock_model_is_trained_by_one_of_them(run, keys):
    del keys["rec_epochs"]
    _, _, _, told = run("two", model="SASRec", epochs=1)
    assert "trained by process 0 alone" in told


def test_how_work_is_dealt_out():
    shares = [Processes(index, 3) for index in range(3)]
    assert [one.share([1, 2, 3, 4, 5]) for one in shares] == [[1, 4], [2, 5], [3]]
    for total in range(8):
        bounds = [one.bounds(total) for one in shares]
        assert bounds[0][0] == 0 and bounds[-1][1] == total
        assert all(left[1] == right[0] for left, right in pairwise(bounds))
        assert max(end - first for first, end in bounds) - min(end - first for first, end in bounds) <= 1


def test_weights_that_learn_are_not_dealt_out(keys, make_trainer):
    for changes in ({"llm_tuning": "full"}, {"llm_quantization": "4bit"}):
        with pytest.raises(UserError, match="fsdp: found True"):
            make_trainer({**keys, "fsdp": True, **changes})
