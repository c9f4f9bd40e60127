"""Runs the many runs of a study or of a search: one after another, or shared by several processes, none of them twice.

A study is a fixed list of runs; a search proposes its runs one by one. Both are a ``Plan``: it claims a run, performs it,
keeps its outcome, and finds the outcomes of earlier calls. Whoever performs a run holds its lock. A lock is released when its
process dies, however that happens, so a killed command is resumed by the same command.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from threading import Thread, main_thread
from time import perf_counter, sleep
from typing import Any, Protocol

import torch
from filelock import AcquireReturnProxy

from recbole_llara.config.models import is_llm_recommender
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import Stopped, signal_of

BAR_WIDTH = 20
RETRY = 0.5  # seconds, while other processes perform all runs that are left
POLL = 0.2  # seconds between looks at child processes, and of these at their parent
PARENT = "RECBOLE_LLARA_PARENT"  # the process that started this one to share its runs


class Plan(Protocol):
    """The runs of a study or of a search."""

    kind: str  # "Study" or "Search": stands before the progress bar
    count: int  # runs in all
    reuse_hint: str  # what to say of runs taken from earlier calls, after their number

    def claim(self) -> tuple[Any, AcquireReturnProxy] | None:
        """The next run, whose text names it, and its lock, which is held; None while others perform all that are left."""

    def perform(self, run: Any) -> str:
        """Perform a run and keep its outcome, which may be a failure; returns how it ended."""

    def finished(self) -> Sequence[Any]:
        """The outcomes so far."""

    def is_over(self) -> bool:
        """Whether every run has its outcome."""

    def forecast(self) -> Iterable[str]:
        """Find out how long the runs will take, before the first; yields what to say of it."""
        return ()

    def seconds_left(self) -> float | None:
        """About how long the rest takes, one run after another; None where nothing is known."""


def execute(plan: Plan) -> None:
    """Perform the runs of a plan until it is over; ``Stopped`` by a signal, which says how to resume.

    A line on standard error before and after every run tells the time so far and about how long the rest takes. It is not
    redrawn: between them every run writes its own log and its own live bar.
    """
    started, told = perf_counter(), 0

    def say(text: str) -> int:
        done = len(plan.finished())
        bar = "#" * min(BAR_WIDTH, BAR_WIDTH * done // plan.count)
        so_far = duration(perf_counter() - started)
        sys.stderr.write(f"{plan.kind} [{bar:<{BAR_WIDTH}}] {done}/{plan.count}, {so_far}: {text}\n")
        return done

    if reused := len(plan.finished()):
        told = say(f"{reused} of {plan.count} runs are taken from earlier calls{plan.reuse_hint}")
    try:
        for line in plan.forecast():
            say(line)
        while (claimed := plan.claim()) or not plan.is_over():
            if claimed is None:
                sleep(RETRY)
                continue
            run, lock = claimed
            with lock:
                left = plan.seconds_left()
                say(f"{run} ... " + ("time left not known yet" if left is None else f"about {duration(left)} left"))
                told = say(f"{run}: {plan.perform(run)}")
        if told < len(plan.finished()):
            say("other processes have finished the rest")
    except KeyboardInterrupt as stop:
        done = f"{len(plan.finished())} of {plan.count} runs are finished and kept"
        raise Stopped(signal_of(stop), f"stopped; {done}, the same command resumes with the rest") from None


def run_model(model: str, dataset: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """``run_recbole_llara``, which resumes the training of an LLM that a killed call began."""
    resume = {"resume": "auto"} if is_llm_recommender(model) and not keys.get("checkpoint") else {}
    return run_recbole_llara(model=model, dataset=dataset, config_dict={**keys, **resume})


def duration(seconds: float) -> str:
    """A length of time for people: ``40 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def environments_of(count: int) -> list[dict[str, str]]:
    """The environment of each of several processes, numbered as a launcher does it; none where one process is enough.

    They share the GPUs, and the CPU's cores unless OMP_NUM_THREADS is set. Ask for them before a Config is built, since RecBole
    writes CUDA_VISIBLE_DEVICES.
    """
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",")) if visible else torch.cuda.device_count()
    cores = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    shared = {**cores, **os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), PARENT: str(os.getpid())}
    return [{**shared, "RANK": str(index), "LOCAL_RANK": str(index % max(1, gpus))} for index in range(count)]


def end_with_parent() -> None:
    """Stop this process, as SIGTERM does, once the one that started it to share its runs is gone, however that ended."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            sleep(POLL)
        signal.pthread_kill(main_thread().ident, signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def run_processes(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Start a command once in each environment, and wait; a signal is passed on, then ``Stopped`` is raised.

    Returns:
        0, or the exit status of the first process that failed, after the others were ended.
    """
    # Each in a session of its own: Ctrl-C reaches it once, from here.
    children = [subprocess.Popen(command, env=environment, start_new_session=True) for environment in environments]
    ending = signal.SIGTERM
    try:
        while None in (statuses := [child.poll() for child in children]) and not any(statuses):
            sleep(POLL)
        failed = next(filter(None, statuses), 0)
        return failed if failed >= 0 else 128 - failed
    except KeyboardInterrupt as stop:
        ending = signal_of(stop)
        raise Stopped(ending, "stopped; the same command resumes with the runs that are left") from None
    finally:
        try:
            for child in children:
                child.send_signal(ending)
            for child in children:
                child.wait()
        finally:  # after a second signal; what they had finished is kept
            for child in children:
                child.kill()
