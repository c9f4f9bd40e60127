"""The benchmarks run; the GPU's on a CPU and without RecBole, so that it does the day a GPU is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
CODE = """
import sys
sys.modules["recbole"] = None  # importing it fails
sys.path[:0] = {paths!r}
import bench_gpu
bench_gpu.main(["--shape=small", "--rows=3", "--rounds=1", "--out={out}"])
"""


def _run(folder, name, *words):
    """What a benchmark that ends well has written."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *words], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_runs_on_a_cpu_without_recbole(tmp_path):
    out = tmp_path / "found.json"
    code = CODE.format(paths=[str(BENCHMARKS), str(BENCHMARKS.parents[1])], out=out)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    losses = found["train"]["losses"]
    assert abs(losses["ours"] - losses["plain"]) < 1e-5 * losses["plain"]
    assert found["train"]["tokens_per_second"] > 0 and found["evaluate"]["score_rows_per_second"] > 0
    assert "left_out" in found["4bit"] or found["4bit"]["rows_per_second"] > 0


def test_without_a_gpu_the_large_shape_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_gpu.py")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(BENCHMARKS.parents[1]), "CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "--shape=small" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("bench_speed.py", ["--columns=lora", "--max_eval_rows=8", "--out=found.json"], "score_of_floor"),
        ("bench_contrast.py", [], "RSLLM, both, stage 1"),
    ],
)
def test_runs_on_few_rows(tmp_path, name, words, told):
    keys = ["--rounds=1", "--max_train_rows=48", "--train_batch_size=8", "--micro_batch_size=4", "--max_title_tokens=4"]
    assert told in _run(tmp_path, name, *keys, *words).stdout


@pytest.mark.slow
def test_what_loading_costs_of_few_items(tmp_path):
    lines = _run(tmp_path, "bench_load.py", "--items=300").stdout.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["SASRec", "LLaRA"] and all(
        line.count(" MB") == 4 for line in lines[1:]
    )


@pytest.mark.slow
def test_what_retrieval_costs_over_few_items(tmp_path):
    lines = _run(tmp_path, "bench_retrieval.py", "--items=3000").stdout.splitlines()
    rows = [line for line in lines[1:] if "index" not in line]
    assert len(rows) == 4 and all(row.endswith(" 1.000") for row in rows)


@pytest.mark.slow
def test_what_waiting_threads_cost_on_few_rows(tmp_path):
    few = ["--rounds=1", "--rows", "640", "64", "--spins", "1000"]
    lines = _run(tmp_path, "bench_spin.py", *few).stdout.splitlines()
    assert lines[-2].split() == ["looks", "SASRec", "SASRec,", "busy", "LLaRA", "LLaRA,", "busy"]
    spins, *taken = map(float, lines[-1].split())
    assert spins == 1000 and len(taken) == 4 and min(taken) > 0


@pytest.mark.slow
def test_a_catalogue_is_converted_beside_pandas(tmp_path):
    assert "times pandas' table" in _run(tmp_path, "bench_convert.py", "--own", "--lines=50000").stdout


@pytest.mark.slow
def test_what_titles_are_worth_on_few_rows(tmp_path):
    few = ["--llm_path=tiny", "--rec_epochs=1", "--rec_max_train_rows=512", "--max_train_rows=256", "--max_eval_rows=48"]
    done = _run(tmp_path, "bench_knowledge.py", *few)
    assert "text of other items" in done.stderr and "whole history" in done.stderr and "n = 48" in done.stderr


@pytest.mark.slow
def test_what_states_of_texts_tell_of_new_items(tmp_path):
    lines = _run(
        tmp_path, "bench_text_states.py", "--llm_path=tiny", "--rec_epochs=1", "--max_eval_rows=48"
    ).stdout.splitlines()
    assert "1337 of 1682 items are fitted on" in lines[0] and len(lines) == 10
    assert all("neighbours, validation 0." in line and "text, test 0." in line for line in lines[1:])


def test_whole_histories_are_scored_as_ease_scores_them(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_knowledge import WholeHistories

    keys = {**write_toy_dataset(tmp_path), "protocol": "leave_one_out", "checkpoint_dir": str(tmp_path)}
    config = RunConfig("LLaRA", "toy", config_dict={**keys, "llm_path": "tiny", "MAX_ITEM_LIST_LENGTH": 3})
    data, ease = prepare_data(config), RunConfig("EASE", "toy", config_dict=keys)
    rows, whole = data.test_data.dataset.inter_feat, prepare_data(ease).test_data.dataset.inter_feat
    places, candidates = rows["target_place"], rows["candidate_id_list"]
    order, same = places.argsort(), whole["target_place"].argsort()
    assert torch.equal(candidates[order], whole["candidate_id_list"][same])
    scores = build_model(ease, prepare_data(ease)).full_sort_predict(whole).gather(1, whole["candidate_id_list"])
    expected = scores.log_softmax(1)
    found = WholeHistories(config, data, of_training=False)(places, candidates)
    assert torch.allclose(found[order][..., 0], expected[same], atol=1e-5)
    assert torch.equal(found[..., 1], found[..., 0].exp()) and float(found[..., 2].max()) == 1


@pytest.mark.parametrize("knows", [True, False])
def test_a_reader_finds_what_titles_tell(monkeypatch, knows):
    """Every second item is of one kind, users stay with theirs, the recommender knows nothing."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_knowledge import Asked, Reader, fitted

    torch.manual_seed(0)
    states = torch.randn(41, 8) + torch.tensor([[2.0], [-2.0]]).repeat(21, 1)[:41] * torch.eye(8)[0]
    if not knows:
        states = states[torch.randperm(41)]

    def asked(rows):
        kind = torch.randint(0, 2, (rows, 1))
        history = 2 * torch.randint(1, 21, (rows, 4)) - kind
        others = 2 * torch.randint(1, 21, (rows, 4)) - (1 - kind)
        target = 2 * torch.randint(1, 21, (rows, 1)) - kind
        place = torch.randint(0, 5, (rows,))
        candidates = torch.cat([target, others], 1)
        swapped = candidates.clone()
        swapped[:, 0], swapped[torch.arange(rows), place] = candidates[torch.arange(rows), place], candidates[:, 0]
        return Asked(history, swapped, place, torch.zeros(rows, 5), torch.zeros(rows, 5, 3))

    test = asked(500)
    found = fitted(Reader(states, None, False), asked(4000), asked(500), test)
    share = (found.argmax(1) == test.targets).float().mean()
    assert share > 0.9 if knows else share < 0.5


@pytest.mark.slow
def test_stock_steps_beside_recboles_loop(tmp_path):
    """Both loops train the same model: GRU4Rec to the same losses."""
    told = _run(tmp_path, "bench_stock.py", "--models=GRU4Rec", "--rounds=3", "--steps=2", "--max_train_rows=2000").stdout
    assert "anomaly detection off" in told
    assert told.splitlines()[-1].startswith("GRU4Rec") and float(told.split()[-1]) < 1e-6


@pytest.mark.slow
def test_what_the_embedded_llama_can_do_is_told(tmp_path):
    told = _run(tmp_path, "bench_tiny_llama.py", "--batches=12").stdout.splitlines()[1:]
    accuracy = {name.strip(): float(value) for name, value in (line.rsplit(maxsplit=1) for line in told)}
    assert accuracy["lookup by vector"] > 0.5 and accuracy["selection, hybrid"] > 0.3
