"""Runs that are killed without warning and go on: a toy run, started as a user would, killed at chosen kinds of moments."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds until a run is taken to hang
MOMENTS = ("step", "checkpoint", "evaluation")


# Two processes by torch's launcher. accelerate's starts the same one on GPUs; on CPUs it starts a single process.
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def start(folder: Path, *arguments: str, launcher: Sequence[str] = (), hears: bool = False) -> subprocess.Popen:
    """Start the command line in a folder that holds ``run.yaml``; what it prints goes to ``printed.txt`` there.

    Args:
        folder: where it runs.
        arguments: of the command line.
        launcher: of Python, what starts the command line: ``TWO``, or nothing.
        hears: whether it hears Ctrl-C in any case; a child of a shell's background job would not.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(ROOT / "run_recbole_llara.py"), "--dataset=toy", "--config_files=run.yaml"]
    with open(folder / "printed.txt", "a", encoding="utf-8") as printed:
        return subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdout=printed,
            stderr=printed,
            preexec_fn=_hear if hears else None,
        )


def share_recommender(one: Path, other: Path) -> None:
    """Give a run the recommender that another one trained.

    RecBole's own training is not the same to the last bit every time: on a busy machine two SASRecs of one seed may differ.
    """
    shutil.copytree(one / "saved" / "recommenders", other / "saved" / "recommenders")


def run_folder(folder: Path) -> Path | None:
    """The one run's folder, None where it has not begun."""
    runs = [path.parent for path in folder.glob("saved/*/config.yaml")]
    assert len(runs) <= 1, f"a resumed run began anew: {runs}"
    return runs[0] if runs else None


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves but times: weights, losses, metrics and cases, to the last bit."""
    run = run_folder(folder)
    assert run is not None
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    weights = {
        f"{path.relative_to(run)}:{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in sorted(run.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    assert weights and not list(run.glob("training_state")) and not list(run.glob(".*.part"))
    kept = ("metrics", "correct", "n", "candidate_sha256", "best_epoch")
    return {
        "weights": weights,
        "log": (run / "training.jsonl").read_text(encoding="utf-8").splitlines(),
        "cases": (run / "cases.jsonl").read_text(encoding="utf-8").splitlines(),
        **{key: result[key] for key in kept},
    }


def kill_at(process: subprocess.Popen, folder: Path, moment: str, steps_an_epoch: int, rng: random.Random) -> bool:
    """Kill a process at the next moment of a kind that comes after it has saved something; whether it lived to be killed."""
    known, deadline = set(_states(folder)), time.monotonic() + PATIENCE
    while process.poll() is None:
        assert time.monotonic() < deadline, (folder / "printed.txt").read_text(encoding="utf-8")[-3000:]
        if _has_come(folder, moment, known, steps_an_epoch):
            if moment != "checkpoint":
                time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.0005)
    assert process.returncode == 0, (folder / "printed.txt").read_text(encoding="utf-8")[-3000:]
    return False


def kill_until_done(folder: Path, kills: int, steps_an_epoch: int, seed: int) -> Counter:
    """Start a run again and again, killing it each time until ``kills`` is reached; then let it end.

    Returns:
        how often it was killed at each kind of moment.
    """
    rng, killed = random.Random(seed), Counter()
    while True:
        process = start(folder, "--resume=auto")
        # Every kind comes up; which one when is drawn.
        wanted = rng.choice([moment for moment in MOMENTS if killed[moment] <= min(killed[other] for other in MOMENTS)])
        if killed.total() < kills and kill_at(process, folder, wanted, steps_an_epoch, rng):
            killed[wanted] += 1
        elif process.wait(timeout=PATIENCE) == 0:
            return killed
        else:
            raise AssertionError((folder / "printed.txt").read_text(encoding="utf-8")[-3000:])


def _states(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("saved/*/training_state/step-*")]


def _has_come(folder: Path, moment: str, known: set[str], steps_an_epoch: int) -> bool:
    new = set(_states(folder)) - known
    if moment == "checkpoint":  # something is being written, and something was
        return bool(new) and any([*folder.glob("saved/*/training_state/.step-*"), *folder.glob("saved/*/.checkpoint.*")])
    if moment == "evaluation":  # the last steps of an epoch are saved, and validation begins
        return any(int(name.split("-")[1]) % steps_an_epoch == 0 for name in new)
    return bool(new)


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
