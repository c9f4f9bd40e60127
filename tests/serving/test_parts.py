"""Users in many files: every line answered once, whatever is cut off, by the command line and by the scripts for clusters."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_llara.serving.command import answer_part, unanswered
from recbole_llara.serving.command import recommend_main as main
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PARTS, USERS = 4, 3  # of each


@pytest.fixture
def parts(tmp_path):
    """Files of users, each with a history of its own."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(PARTS):
        lines = [
            json.dumps({"user": f"{part}/{user}", "history": [f"i{1 + part * USERS + user}", "i50"], "k": 3})
            for user in range(USERS)
        ]
        (folder / f"{part:03}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def check(answers, run):
    """Every user is there once, in its part, with the answer that it gets alone."""
    assert sorted(path.name for path in answers.iterdir()) == [f"{part:03}.jsonl" for part in range(PARTS)]
    for part in range(PARTS):
        told = [json.loads(line) for line in (answers / f"{part:03}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [answer["user"] for answer in told] == [f"{part}/{user}" for user in range(USERS)]
        for user, answer in enumerate(told):
            alone = run.recommend([f"i{1 + part * USERS + user}", "i50"], k=3)
            assert [item["item_id"] for item in answer["recommendations"]] == [item.item_id for item in alone]


def test_parts_become_files_of_answers(make_run, parts, tmp_path, capsys):
    folder, answers = make_run("SASRec"), tmp_path / "answers"
    words = [f"--run={folder}", "--jsonl", f"--output={answers}", "--input", *map(str, sorted(parts.iterdir()))]
    assert main(words) == 0
    check(answers, load(folder))
    times = {path: path.stat().st_mtime_ns for path in answers.iterdir()}
    (answers / "002.jsonl").unlink()
    assert main(words) == 0
    assert "written: 1 of 4 parts" in capsys.readouterr().out
    check(answers, load(folder))
    assert sum(times[path] == path.stat().st_mtime_ns for path in answers.iterdir()) == PARTS - 1
    for wrong in (["--input", "x"], ["--input", "x", "--output", "y", "--history", "i1"]):
        with pytest.raises(SystemExit):
            main([f"--run={folder}", *wrong])


def test_a_part_that_is_cut_off_leaves_nothing(make_run, parts, tmp_path):
    run, answers = load(make_run("SASRec")), tmp_path / "answers"
    asked = []

    class Fails:
        batch_size = 1

        def recommend_batch(self, *given):
            asked.append(given)
            if len(asked) == 1:
                raise OSError("the disk is full")
            return run.recommend_batch(*given)

    part = parts / "000.jsonl"
    with pytest.raises(OSError, match="the disk is full"):
        answer_part(Fails(), part, answers)
    assert list(answers.iterdir()) == []
    assert answer_part(run, part, answers) and not answer_part(run, part, answers)
    with pytest.raises(UserError, match="input: found no file"):
        answer_part(run, parts / "none.jsonl", answers)
    with pytest.raises(UserError, match="two files of one name"):
        unanswered([part, tmp_path / "000.jsonl"], answers)


@pytest.mark.slow
def test_a_killed_process_is_started_again(make_run, parts, tmp_path):
    folder, answers = make_run("SASRec"), tmp_path / "answers"
    words = [sys.executable, "-m", "recbole_llara", "recommend", f"--run={folder}", "--jsonl", f"--output={answers}", "--input"]
    words += map(str, sorted(parts.iterdir()))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(answers.glob("0*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(words, check=True, timeout=120, capture_output=True)
    for hidden in answers.glob(".*"):  # what the killed process had begun
        hidden.unlink()
    check(answers, load(folder))


@pytest.mark.slow
def test_xargs_as_the_page_says(make_run, parts, tmp_path):
    folder, answers = make_run("SASRec"), tmp_path / "answers"
    command = f"{sys.executable} -m recbole_llara recommend --run={folder} --jsonl --output={answers} --input"
    line = f"ls {parts}/*.jsonl | xargs -P 2 -n 2 {command}"
    subprocess.run(["sh", "-c", line], check=True, timeout=300, capture_output=True)
    check(answers, load(folder))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "pyspark"])
def test_a_cluster_of_one_machine(engine, make_run, parts, tmp_path):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    folder, answers = make_run("SASRec"), tmp_path / "answers"
    script = ROOT / "docs" / "examples" / ("batch_ray.py" if engine == "ray" else "batch_spark.py")
    count = "--workers=2" if engine == "ray" else "--tasks=2"
    words = [
        sys.executable,
        str(script),
        f"--run={folder}",
        f"--parts={parts}",
        f"--output={answers}",
        count,
        "--use_gpu=False",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment["PYSPARK_PYTHON"] = sys.executable
    for expected in (PARTS, 1):
        done = subprocess.run(words, env=environment, check=False, timeout=400, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"answered {expected} parts" in done.stdout
        check(answers, load(folder))
        (answers / "001.jsonl").unlink()
