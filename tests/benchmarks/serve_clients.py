"""The clients of ``bench_serve.py``, for locust: each asks as soon as it is answered, or at a rate, and comes back when a 429 tells it to.

    BENCH=settings.json locust -f tests/benchmarks/serve_clients.py --headless ...

The settings name ``ids`` to draw histories from, ``requests`` after which to stop (0 = when locust's time is over), the ``rate`` of a
client in questions a second (0 = the next as soon as it is answered), and the file ``out``, which gets the number of answers by
status, the milliseconds of every 200, and the seconds from the first answer to the last.
"""

import json
import os
import random
from collections import Counter
from pathlib import Path
from time import perf_counter

import gevent
from locust import FastHttpUser, constant_throughput, events, task

SETTINGS = json.loads(Path(os.environ["BENCH"]).read_text(encoding="utf-8"))
DRAW = random.Random(SETTINGS["seed"])
ANSWERED: Counter[int] = Counter()
MILLISECONDS: list[float] = []
TIMES: list[float] = []


class Visitor(FastHttpUser):
    """One client: histories of 3 to 20 random items, the five best of what is proposed."""

    if SETTINGS["rate"]:
        wait_time = constant_throughput(SETTINGS["rate"])

    @task
    def ask(self) -> None:
        """One question."""
        history = [f"id:{item}" for item in DRAW.sample(SETTINGS["ids"], DRAW.randint(3, 20))]
        answer = self.client.post("/recommend", json={"history": history})
        if answer.status_code == 429:
            gevent.sleep(float(answer.headers["Retry-After"]))


@events.request.add_listener
def note(response_time: float, response: object, **_: object) -> None:
    """Count an answer."""
    TIMES.append(perf_counter())
    status = getattr(response, "status_code", 0) or 0
    ANSWERED[status] += 1
    if status == 200:
        MILLISECONDS.append(response_time)


@events.init.add_listener
def stop_in_time(environment: object, **_: object) -> None:
    """Stop after so many answers."""

    def watch() -> None:
        while ANSWERED.total() < SETTINGS["requests"]:
            gevent.sleep(0.05)
        environment.runner.quit()

    if SETTINGS["requests"]:
        gevent.spawn(watch)


@events.quitting.add_listener
def write(**_: object) -> None:
    """Hand over what was counted."""
    found = {"statuses": ANSWERED, "milliseconds": MILLISECONDS, "seconds": TIMES[-1] - TIMES[0] if TIMES else 0.0}
    Path(SETTINGS["out"]).write_text(json.dumps(found), encoding="utf-8")
