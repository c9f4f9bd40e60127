"""Several processes on one search: each is the same command, and takes whole trials."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from time import sleep

from recbole_llara.errors import Stopped

COMMAND = (sys.executable, "-m", "recbole_llara.search")
LOOK_AGAIN = 0.2  # seconds


def run_beside(argv: Sequence[str], count: int) -> int:
    """Start a search in several processes, numbered as a launcher would, and wait for them.

    Args:
        argv: of the search's command.
        count: of processes; they share the CPU's cores, unless OMP_NUM_THREADS says otherwise.

    Returns:
        0, or the exit status of the first that failed, after the others were ended.

    Raises:
        Stopped: by a signal, which has been passed on.
    """
    command = [*COMMAND, *argv, "--processes=1"]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    children = []
    for index in range(count):
        numbers = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environment = {"OMP_NUM_THREADS": threads, **os.environ, **{name: str(number) for name, number in numbers.items()}}
        # A session of its own: Ctrl-C reaches it once, from here.
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
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
