"""Runs started together on empty caches: all finish, the recommender is trained once, and all have the same candidates."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from toy_run import keys, save_llm  # noqa: F401

TESTS = Path(__file__).parent


@pytest.fixture
def start(tmp_path):
    """Starts runs together and gives what each told."""

    def start(runs):
        plan = tmp_path / "runs.json"
        plan.write_text(json.dumps(runs), encoding="utf-8")
        path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TESTS / "together.py"), str(plan)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        told = [json.loads(line.removeprefix("TOLD ")) for line in done.stdout.splitlines() if line.startswith("TOLD ")]
        assert len(told) == len(runs), done.stderr[-3000:]
        assert not [run["error"] for run in told if "error" in run]
        return told

    return start


@pytest.mark.slow
def test_eight_runs_share_one_empty_cache(start, keys, tmp_path):  # noqa: F811
    """Eight of LLaRA, which wait for one that trains the recommender, and two of MoRec, for one that encodes the titles."""
    shared = ("data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress")
    morec = {**{key: keys[key] for key in shared}, "text_encoder_path": keys["llm_path"], "epochs": 1}
    told = start([("LLaRA", keys)] * 8 + [("MoRec", morec)] * 2)
    assert len({run["run_dir"] for run in told}) == 10
    results = [json.loads(Path(run["result_file"]).read_text(encoding="utf-8")) for run in told]
    ours = [result for result in results if result["model"] == "LLaRA"]
    assert len(ours) == 8
    logs = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "log").rglob("*.log"))  # runs may share a file
    assert logs.count("Training the recommender") == 1 and logs.count("Recommender taken from the cache") == 7
    assert Counter(result["recommender"]["training_seconds"] > 0 for result in ours) == {True: 1, False: 7}
    assert len({result["recommender"]["sha256"] for result in ours}) == 1
    for alike in (ours, [result for result in results if result["model"] == "MoRec"]):
        for same in ("candidate_sha256", "metrics"):
            assert all(result[same] == alike[0][same] for result in alike), same
    saved = tmp_path / "saved"
    assert len(list((saved / "candidates").glob("*.tsv"))) == 4  # of LLaRA's twelve rows, and of all
    assert len(list((saved / "text_features").glob("*.safetensors"))) == 1
    assert not [path for path in saved.rglob(".*") if not path.name.endswith(".lock")]  # nothing half-written
