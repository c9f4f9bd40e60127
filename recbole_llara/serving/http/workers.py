"""The processes behind one port: each loads the runs and answers; one that dies is started again.

The command's own process loads nothing. It holds the listening socket, which its workers share, so that a connection waits for one
that is free; and it ends them, in peace, on a signal. A worker whose parent has died ends by itself.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llara.serving.http.process import METRICS_FOLDER, json_log
from recbole_llara.utils.errors import RunError, UserError

if TYPE_CHECKING:
    import uvicorn

KEEP_ALIVE = 75  # (s) an idle connection stays: longer than proxies and clients that wait as Retry-After says keep theirs
LONGEST_PAUSE = 30  # (s) between attempts to start a worker again that never comes to answer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What a worker is told; see ``serving.http.command`` for each."""

    runs: tuple[str, ...]  # folders; the first is served, the page shows all
    words: tuple[str, ...]  # keys over the runs' own, as --key=value
    host: str
    queue: int
    batch: int
    timeout: float
    batch_wait: float
    token: str | None
    gateway: bool
    page: bool
    items: str | None


def supervise(served: Served, listener: socket.socket, count: int, tell: Callable[[], object]) -> None:
    """Serve until a signal comes; then what was accepted is answered, and this returns. A second signal ends it at once.

    Args:
        served: what the workers are told.
        listener: listens already; it is closed at the end.
        count: (int, processes) so many workers.
        tell: called when all of them answer.

    Raises:
        UserError: the runs cannot be loaded.
        RunError: a worker died before it could answer.
        KeyboardInterrupt: the second signal.
    """
    from prometheus_client.multiprocess import mark_process_dead

    context = multiprocessing.get_context("spawn")
    with json_log(), tempfile.TemporaryDirectory(prefix="recbole-llara-") as metrics:
        crew: list[_Worker] = []
        try:
            for _ in range(count):  # one after the other: what is wrong is said once
                crew.append(_Worker(context, served, listener, count, metrics))
                crew[-1].wait()
            tell()
            while True:
                wait([worker.process.sentinel for worker in crew])
                for place, worker in enumerate(crew):
                    if not worker.process.is_alive():
                        log.error("worker died", extra={"told": {"pid": worker.process.pid, "exit": worker.process.exitcode}})
                        mark_process_dead(worker.process.pid, metrics)
                        crew[place] = _again(context, served, listener, count, metrics)
        except KeyboardInterrupt:
            log.info("stopping")
        finally:
            listener.close()
            _stop(crew)


class _Worker:
    """A process, and the pipe by which it tells that it answers."""

    def __init__(self, context: SpawnContext, served: Served, listener: socket.socket, count: int, metrics: str) -> None:
        self._told, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(served, listener, count, metrics, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def wait(self) -> None:
        """Return when it answers; UserError or RunError where the runs cannot be loaded or it died."""
        try:
            failure = self._told.recv()
        except EOFError:
            self.process.join()
            raise RunError(f"serve: a worker ended with exit status {self.process.exitcode} before it could answer") from None
        if failure is not None:
            raise failure


def _again(context: SpawnContext, *told: object) -> _Worker:
    """A worker in the place of one that died: tried until it answers, after growing pauses."""
    pause = 1
    while True:
        worker = _Worker(context, *told)
        try:
            worker.wait()
        except (UserError, RunError) as error:
            log.error("worker not started", extra={"told": {"reason": str(error), "pause_s": pause}})
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return worker


def _stop(crew: "list[_Worker]") -> None:
    """End workers when they have answered what they accepted; at once where another signal comes."""
    try:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()
    except KeyboardInterrupt:
        for worker in crew:
            worker.process.kill()
        raise


def work(served: Served, listener: socket.socket, count: int, metrics: str, told: Connection) -> None:
    """A worker's life: load the runs, tell that they answer, answer until SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what happens
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[METRICS_FOLDER] = metrics
    if count > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    with json_log():
        try:
            server = _server(served, count)
        except (UserError, RunError) as error:
            told.send(error)
            return
        # uvicorn takes the signal over while it runs, and gives it back here afterwards: the process ends as any other does.
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        log.info("ready")
        told.send(None)
        server.run(sockets=[listener])


def _server(served: Served, count: int) -> "uvicorn.Server":
    """The application over the loaded runs, ready to take connections."""
    from recbole_llara.utils.process_setup import prepare_process

    prepare_process()  # before torch starts its threads
    import uvicorn
    from transformers.utils.logging import disable_progress_bar

    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.serving.http.app import create_app
    from recbole_llara.serving.http.items import ServedItems
    from recbole_llara.serving.http.runs import load_runs
    from recbole_llara.serving.http.service import Limits, Service

    disable_progress_bar()  # standard error holds lines of JSON
    runs = load_runs(served.runs, **parse_arguments(served.words))
    items = ServedItems(runs, None if served.items is None else Path(served.items).expanduser().absolute(), is_alone=count == 1)
    service = Service(runs, Limits(served.queue, served.batch, served.timeout, served.batch_wait), items)
    app = create_app(service, served.host, served.token, served.gateway, served.page)
    settings = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(
        uvicorn.Config(app, lifespan="on", ws="none", proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, **settings)
    )


def _end_with_parent() -> None:
    """A worker without its parent stops as on SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
