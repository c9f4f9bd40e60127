"""The command as a user types it: real runs, killed, in two processes, stopped, and told what is wrong."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_llara.config.yaml_files import read_yaml
from recbole_llara.experiments.command import search_main as main

pytestmark = pytest.mark.usefixtures("no_pngs")
ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("--model=SASRec", "--dataset=toy", "--config_files=toy.yaml", "--params_file=toy.hyper", "--output=found")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE = 120  # seconds


def start(*arguments):
    with open("printed.txt", "a", encoding="utf-8") as printed:
        command = [sys.executable, "-W", "ignore", "-m", "recbole_llara", "search", *COMMAND, *arguments]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=printed, stderr=printed)


def states():
    """The state of every trial by its number, as optuna's file has them; nothing before there is one."""
    if not Path("found/trials.sqlite").exists():
        return []
    try:
        with sqlite3.connect("file:found/trials.sqlite?mode=ro", uri=True) as database:
            return [state for (state,) in database.execute("select state from trials order by number")]
    except sqlite3.OperationalError:  # its tables are being made
        return []


def wait_for(count, process):
    """Until so many trials are finished and another is running."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        found = states()
        if found.count("COMPLETE") >= count and "RUNNING" in found:
            return
        time.sleep(0.02)
    raise AssertionError(Path("printed.txt").read_text()[-3000:])


def trials():
    with open("found/trials.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_whole():
    """Twelve finished trials, none of them twice, the best of them in best.yaml."""
    rows = trials()
    values = [(row["hidden_size"], row["learning_rate"], row["hidden_dropout_prob"]) for row in rows]
    assert states() == ["COMPLETE"] * 12 and len(rows) == 12 == len(set(values))
    best = max(rows, key=lambda row: (float(row["score"]), -int(row["trial"])))
    content = read_yaml("found/best.yaml")
    assert {key: str(content[key]) for key in ("hidden_size", "learning_rate", "hidden_dropout_prob")} == {
        key: best[key] for key in ("hidden_size", "learning_rate", "hidden_dropout_prob")
    }
    assert Path(best["run_dir"], "result.json").is_file()


@pytest.mark.slow
def test_a_search_killed_at_5_of_12_trials_goes_on_to_12(toy):
    process = start("--algo=bayes", "--max_evals=12")
    wait_for(5, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = states()
    assert before.count("RUNNING") == 1 and 5 <= before.count("COMPLETE") < 12
    kept = {row["trial"]: row for row in trials()}
    assert start("--algo=bayes", "--max_evals=12").wait(PATIENCE) == 0, Path("printed.txt").read_text()[-3000:]
    check_whole()
    after = {row["trial"]: row for row in trials()}
    assert {number: after[number] for number in kept} == kept  # what was finished was not run again
    runs = len(list(Path("saved").glob("SASRec-*")))
    assert runs <= 13  # twelve, and the one that was killed


@pytest.mark.slow
def test_two_processes_share_a_search(toy):
    assert start("--processes=2").wait(PATIENCE) == 0, Path("printed.txt").read_text()[-3000:]
    check_whole()
    assert len(list(Path("saved").glob("SASRec-*"))) == 12  # no trial was run twice
    printed = Path("printed.txt").read_text()
    assert printed.count("# SASRec on toy: exhaustive search") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model=SASRec", "--dataset=toy"], "params_file: found none, expected a file or one of LLaRA, SASRec"),
        ([*COMMAND, "--processes=0"], "processes: found 0"),
        ([*COMMAND, "--learnin_rate=1"], "did you mean 'learning_rate'"),
        ([*COMMAND, "--tool=Ray"], "unknown key 'tool'"),
    ],
)
def test_a_users_mistake_ends_with_2(toy, capsys, arguments, told):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_in_one_process_it_prints_its_report(toy, runs, capsys):
    assert main(COMMAND) == 0
    printed = capsys.readouterr()
    assert "Best: trial 9, Hit@1 0.5040" in printed.out and "written: found/search.html" in printed.out
    assert printed.err.count("12/12") == 1


def test_where_no_trial_comes_to_a_score_it_ends_with_1(toy, runs):
    from recbole_llara.utils.errors import Diverged

    runs.before = lambda keys: (_ for _ in ()).throw(Diverged("nan"))
    assert main(COMMAND) == 1


def test_an_interrupt_ends_with_130(toy, runs, capsys):
    runs.before = lambda keys: (_ for _ in ()).throw(KeyboardInterrupt)
    assert main(COMMAND) == 130
    assert "0 of 12 runs are finished and kept, the same command resumes" in capsys.readouterr().err
