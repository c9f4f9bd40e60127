"""What a runner says of its progress; its processes: numbered, ended with the one that fails, stopped with the command."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from recbole_llara.experiments.runner import Plan, duration, environments_of, execute, run_processes
from recbole_llara.utils.errors import exit_status

# A stand-in for the command: each writes a file when it begins, and another when SIGTERM has ended it.
CHILD = """
import os, signal, sys, time
name = os.environ["RANK"]
def end(number, frame):
    open("ended-" + name, "w").close()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
with open("begun-" + name, "w") as file:
    file.write(" ".join([os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], os.environ["OMP_NUM_THREADS"], *sys.argv[1:]]))
time.sleep({"0": 0, "1": 60}[name] if "wait" in sys.argv else 0)
sys.exit(3 if "fail" in sys.argv and name == "0" else 0)
"""
COMMAND = (sys.executable, "-S", "-c", CHILD)


@pytest.fixture(autouse=True)
def _two_cpus_alone(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def test_each_knows_its_number_and_its_share_of_the_cores():
    assert run_processes([*COMMAND, "--model=A"], environments_of(2)) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for index in range(2):
        assert Path(f"begun-{index}").read_text() == f"2 0 {threads} --model=A"


def test_processes_share_the_gpus_there_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [one["LOCAL_RANK"] for one in environments_of(3)] == ["0", "1", "0"]
    assert [one["RANK"] for one in environments_of(3)] == ["0", "1", "2"]
    assert environments_of(1) == []


def test_one_that_fails_ends_the_others():
    begun = time.monotonic()
    assert run_processes([*COMMAND, "wait", "fail"], environments_of(2)) == 3
    assert time.monotonic() - begun < 50


@pytest.fixture
def ctrl_c():
    """SIGINT does what it does by default, also where the tests run as a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_told(number, capsys):
    def send():
        while not Path("begun-1").exists() or not Path("begun-1").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert exit_status("search", lambda: run_processes([*COMMAND, "wait"], environments_of(2))) == 128 + number
    sender.join()
    assert "the same command resumes" in capsys.readouterr().err
    assert Path("ended-1").exists() == (number == signal.SIGTERM)  # the stand-in knows SIGTERM alone


# Starts two that share its runs; each of them says so, and waits.
PARENT = """
import sys
from recbole_llara.experiments.runner import environments_of, run_processes
run_processes([sys.executable, "-c", sys.argv[1]], environments_of(2))
"""
SHARING = """
import os, time
from recbole_llara.experiments.runner import end_with_parent
from recbole_llara.utils.errors import exit_status
name = os.environ["RANK"]
def work():
    end_with_parent()
    open("begun-" + name, "w").close()
    time.sleep(60)
status = exit_status("study", work)
with open("status-" + name, "w") as file:
    file.write(str(status))
os.replace("status-" + name, "ended-" + name)
"""


def test_processes_end_with_the_command_that_is_killed():
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SHARING], env=environment, stderr=subprocess.DEVNULL)

    def wait_for(*names):
        deadline = time.monotonic() + 60
        while not all(Path(name).exists() for name in names) and time.monotonic() < deadline:
            time.sleep(0.05)

    wait_for("begun-0", "begun-1")
    parent.kill()
    parent.wait()
    begun = time.monotonic()
    wait_for("ended-0", "ended-1")
    assert time.monotonic() - begun < 50
    assert [Path(f"ended-{index}").read_text() for index in range(2)] == ["143", "143"]


def test_lengths_of_time():
    assert (duration(40), duration(700), duration(7500)) == ("40 s", "12 min", "2 h 05 min")


class Three(Plan):
    """Runs named by letters; the first was finished by an earlier call, the second by another process meanwhile."""

    kind, count, reuse_hint = "Study", 3, " (--fresh runs them again)"

    def __init__(self):
        self.outcomes = ["A"]

    def claim(self):
        if len(self.outcomes) == 1:
            self.outcomes.append("B")
            return "run C", nullcontext()
        return None

    def perform(self, run):
        self.outcomes.append(run)
        return "HitRatio@1 0.5000"

    def finished(self):
        return self.outcomes

    def is_over(self):
        return len(self.outcomes) == self.count

    def forecast(self):
        yield "a step takes 2 s"

    def seconds_left(self):
        return 700.0


def test_every_run_has_a_line_before_and_after(capsys):
    execute(Three())
    lines = [re.sub(r"\d+ s: ", "0 s: ", line, count=1) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "Study [######              ] 1/3, 0 s: 1 of 3 runs are taken from earlier calls (--fresh runs them again)",
        "Study [######              ] 1/3, 0 s: a step takes 2 s",
        "Study [#############       ] 2/3, 0 s: run C ... about 12 min left",
        "Study [####################] 3/3, 0 s: run C: HitRatio@1 0.5000",
    ]
