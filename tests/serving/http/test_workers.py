"""The command as processes: a worker that is killed is started again, a stop loses nothing, nobody outlives the parent."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

import recbole_llara
from recbole_llara.serving.loaded import as_json

ROOT = Path(__file__).resolve().parents[3]
HISTORY = ["i3", "i4", "i7"]


class Served:
    """The command's process, its address, and the lines of its log."""

    def __init__(self, toy, folder, *words):
        self.log = folder / "log.jsonl"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "recbole_llara", "serve", f"--run={toy.folders['LLaRA']}", "--port=0", *words],
                cwd=toy.keys["data_path"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A child of a shell's background job would not hear Ctrl-C.
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        told = self.process.stdout.readline()
        assert told.startswith("http://"), self.log.read_text(encoding="utf-8")
        self.address = told.split()[0]

    def lines(self, event=None):
        """What was logged, of one event or of all; every line is JSON."""
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def until(self, holds):
        """Wait for something that is sure to come while the service runs."""
        for _ in range(6000):
            if holds():
                return
            assert self.process.poll() is None
            time.sleep(0.02)
        pytest.fail("it did not come")

    def end(self):
        """Stop as a service manager does: the exit status."""
        self.process.terminate()
        return self.process.wait(120)


@pytest.fixture
def serve(toy, tmp_path):
    started = []

    def start(*words):
        started.append(Served(toy, tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()


def _ask(address, history=HISTORY):
    return httpx.post(f"{address}recommend", json={"history": list(history)}, timeout=120)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(serve, toy):
    served = serve("--workers=2")
    first, second = (line["worker"] for line in served.lines("ready"))
    own = {
        "recommendations": as_json(recbole_llara.load(toy.folders["LLaRA"], data_path=toy.keys["data_path"]).recommend(HISTORY))
    }
    assert _ask(served.address).json() == own
    os.kill(first, signal.SIGKILL)
    served.until(lambda: len(served.lines("ready")) == 3)
    third = served.lines("ready")[-1]["worker"]
    assert [(line["pid"], line["exit"]) for line in served.lines("worker died")] == [(first, -signal.SIGKILL)]
    os.kill(second, signal.SIGKILL)  # the third answers alone, or the fourth
    for _ in range(5):
        assert _ask(served.address).json() == own
    served.until(lambda: len(served.lines("ready")) == 4)
    answered = {line["worker"] for line in served.lines("request") if line["status"] == 200}
    assert answered & {third, served.lines("ready")[-1]["worker"]}
    # Whichever worker is asked tells of all of them, of the dead too.
    text = httpx.get(f"{served.address}metrics").text
    counted = {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "recbole_llara_requests_total"
    }
    assert sum(value for labels, value in counted.items() if "/recommend" in labels) == 6
    assert served.end() == 0
    assert not re.search(r"Title|\bi\d+\b", served.log.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_was_accepted(serve, signal_number):
    served = serve("--batch_wait=6")
    workers = [line["worker"] for line in served.lines("ready")]
    with ThreadPoolExecutor(5) as visitors:
        waiting = [visitors.submit(_ask, served.address, [f"i{number}"]) for number in range(1, 6)]

        def are_accepted():
            text = httpx.get(f"{served.address}metrics").text
            return re.search(r"^recbole_llara_queue_length 5\.0$", text, re.MULTILINE)

        served.until(are_accepted)
        served.process.send_signal(signal_number)
        assert [one.result().status_code for one in waiting] == [200] * 5
    assert served.process.wait(120) == 0
    with pytest.raises(httpx.ConnectError):
        _ask(served.address)
    assert not any(psutil.pid_exists(worker) for worker in workers)


@pytest.mark.slow
def test_workers_end_with_their_parent(serve):
    served = serve()
    (line,) = served.lines("ready")
    worker = psutil.Process(line["worker"])
    served.process.kill()
    worker.wait(120)
    with pytest.raises(httpx.ConnectError):
        _ask(served.address)


@pytest.mark.slow
def test_a_run_that_cannot_be_loaded_ends_it_with_one_line(toy, tmp_path):
    words = [f"--run={toy.folders['LLaRA']}", "--port=0", "--workers=2", f"--llm_path={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llara", "serve", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("recbole-llara: error: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_benchmark_asks_and_tells(toy, tmp_path):
    if importlib.util.find_spec("locust") is None:  # importing it would patch this process
        pytest.skip("needs the extra bench")
    words = [
        f"--run={toy.folders['LLaRA']}",
        "--clients=2",
        "--seconds=3",
        "--soak=20",
        "--soak_rate=40",
        "--batch=4",
        "--out=found.json",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "benchmarks" / "bench_serve.py"), *words, f"--data_path={toy.keys['data_path']}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    (stage,) = found["stages"]
    assert stage["answered"] > 0 and stage["p50_ms"] <= stage["p95_ms"] <= stage["p99_ms"]
    assert sum(part["answered"] for part in found["soak"]["parts"]) >= 20 and len(found["soak"]["memory_mb"]) == 11
