"""Several processes on one search: each is the same command, and takes whole trials."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from time import sleep

import torch

from recbole_llara.utils.errors import Stopped

COMMAND = (sys.executable, "-m", "recbole_llara", "search")
LOOK_AGAIN = 0.2  # seconds


def environments_of(count: int) -> list[dict[str, str]]:
    """The environment of each of several processes, numbered as a launcher would; to be asked for before a Config is built,
    since RecBole's writes CUDA_VISIBLE_DEVICES.

    Args:
        count: of processes; they share the GPUs, and the CPU's cores unless OMP_NUM_THREADS says otherwise.
    """
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(visible.split(",")) if visible else torch.cuda.device_count()
    cores = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    numbers = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [
        {**cores, **os.environ, **numbers, "RANK": str(index), "LOCAL_RANK": str(index % max(1, gpus))}
        for index in range(count)
    ]


def run_beside(argv: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Start a search in several processes and wait for them.

    Args:
        argv: of the search's command.
        environments: of the processes.

    Returns:
        0, or the exit status of the first that failed, after the others were ended.

    Raises:
        Stopped: by a signal, which has been passed on.
    """
    command = [*COMMAND, *argv, "--processes=1"]
    # Each in a session of its own: Ctrl-C reaches it once, from here.
    children = [subprocess.Popen(command, env=environment, start_new_session=True) for environment in environments]
    try:
        return _wait(children)
    except KeyboardInterrupt as stop:
        number = stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT
        _end(children, number)
        raise Stopped(number, "stopped; the same command goes on with the trials that are left") from None
    finally:
        for child in children:  # after a second signal: whatever ends a search, it goes on
            if child.poll() is None:
                child.kill()


def _wait(children: Sequence[subprocess.Popen]) -> int:
    while True:
        statuses = [child.poll() for child in children]
        failed = [status for status in statuses if status]
        if failed:
            _end(children, signal.SIGTERM)
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(status == 0 for status in statuses):
            return 0
        sleep(LOOK_AGAIN)


def _end(children: Sequence[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
    for child in children:
        child.wait()
