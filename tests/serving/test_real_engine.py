"""The real vLLM over an exported run, where its command can be had: it ranks as the run does."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

import recbole_llara
from recbole_llara.model.engine_client import FOLDER, Served
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.export import export

# vLLM pins other packages than this one takes, and so has a Python of its own.
COMMAND = os.environ.get("VLLM_COMMAND") or shutil.which("vllm")
PATIENCE = 400  # seconds to start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="no vllm: set VLLM_COMMAND to the command of the Python that has it"),
]


@pytest.fixture
def serve(tmp_path):
    """Starts a server over a folder; it ends with the test."""
    started = []

    def start(folder, name):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [COMMAND, "serve", str(folder), f"--served-model-name={name}", "--host=127.0.0.1", f"--port={port}"]
        words += ["--dtype=float32", "--max-model-len=1024", "--enforce-eager"]
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": str(tmp_path)}
        log = (tmp_path / "vllm.log").open("w", encoding="utf-8")
        environment = {**os.environ, **own, "PYTHONPATH": ""}  # that of the tests is another Python's
        started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True))
        deadline = time.monotonic() + PATIENCE
        while True:
            assert started[-1].poll() is None and time.monotonic() < deadline, (tmp_path / "vllm.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    return f"http://127.0.0.1:{port}/v1"
            except OSError:
                time.sleep(1)

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.parametrize("model", ["LLaRA", "RSLLM", "TALLRec"])
def test_vllm_ranks_as_the_run_does(model, keys, serve, tmp_path):
    changes = {"strategy": "two_stage", "epochs": 2, "stage_1_epochs": 1} if model == "RSLLM" else {}
    folder = run_recbole_llara(model, "toy", config_dict={**keys, "llm_path": "tiny", **changes})["run_dir"]
    out = export(folder, tmp_path / "out", engine="vllm")
    local = recbole_llara.load(folder)
    remote = recbole_llara.load(out, backend="vllm", backend_url=serve(out / FOLDER, Served.read(out / FOLDER).name))
    for history in (["i1", "i2", "i3"], ["i7"], ["i11", "i5", "i9", "i30", "i2", "i4"]):
        here, there = (run.recommend(history, k=10) for run in (local, remote))
        assert [item.item_id for item in there] == [item.item_id for item in here]
        assert [item.score for item in there] == pytest.approx([item.score for item in here], abs=1e-3)
