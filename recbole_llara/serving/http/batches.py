"""The queue between requests and the run: what waits together is answered in one batch, by one thread, and only so much may wait.

torch is never called from two threads at once. A question whose future is cancelled before its batch begins is never asked.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from starlette.exceptions import HTTPException

Asked, Answer = TypeVar("Asked"), TypeVar("Answer")


class BatchQueue(Generic[Asked, Answer]):
    """Gathers questions while others are answered, and for a moment more.

    Args:
        answer: gives one answer for each of its questions; called by one thread, never twice at once.
        capacity: (int, questions) at most so many wait or are being answered.
        most: (int, questions) of one batch.
        gather: (float, s) how long a batch waits for company before it is answered; a full one does not wait.
        tell_length: called with the number of questions that wait or are being answered, whenever it changes.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer]],
        capacity: int = 64,
        most: int = 16,
        gather: float = 0.005,
        tell_length: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._answer, self._capacity, self._most, self._gather = answer, capacity, most, gather
        self._tell_length = tell_length
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Future[Answer], Asked] = OrderedDict()
        self._answering = 0  # questions of the batch that is being answered
        self._since = 0.0  # when that batch began
        self._last_seconds = 0.0  # what the last batch took
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, question: Asked) -> "Future[Answer]":
        """Ask; HTTPException 429 where too many wait already, 503 once the queue is closed."""
        with self._changed:
            if self._is_closed:
                raise HTTPException(503, "the service is stopping")
            if self._length() >= self._capacity:
                seconds = max(1, math.ceil(self._length() / self._most * self._last_seconds))
                told = f"too many questions wait already; try again in {seconds} s"
                raise HTTPException(429, told, {"Retry-After": str(seconds)})
            future: Future[Answer] = Future()
            self._waiting[future] = question
            self._tell_length(self._length())
            self._changed.notify_all()
        future.add_done_callback(self._forget)
        return future

    def is_ready(self, seconds: float) -> bool:
        """Whether questions are taken, and the batch that is being answered, if any, has not taken longer than so many seconds."""
        with self._changed:
            is_stuck = self._answering > 0 and time.monotonic() - self._since > seconds
            return not self._is_closed and not is_stuck

    def close(self) -> None:
        """End the thread when its batch is answered; questions that still wait are cancelled."""
        with self._changed:
            self._is_closed = True
            waiting = list(self._waiting)
            self._changed.notify_all()
        for future in waiting:
            future.cancel()
        self._thread.join()

    def _length(self) -> int:
        return len(self._waiting) + self._answering

    def _forget(self, future: "Future[Answer]") -> None:
        """A question that was cancelled gives its place to others."""
        with self._changed:
            if self._waiting.pop(future, None) is not None:
                self._tell_length(self._length())

    def _work(self) -> None:
        while not self._is_closed or self._waiting:
            batch = self._next()
            if batch:
                self._answer_batch(batch)

    def _next(self) -> "list[tuple[Future[Answer], Asked]]":
        """The next batch; empty where the queue was closed or every question was cancelled meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._changed.wait_for(lambda: len(self._waiting) >= self._most or self._is_closed, self._gather)
            batch = []
            while self._waiting and len(batch) < self._most:
                future, question = self._waiting.popitem(last=False)
                if future.set_running_or_notify_cancel():
                    batch.append((future, question))
            self._answering, self._since = len(batch), time.monotonic()
            self._tell_length(self._length())
            return batch

    def _answer_batch(self, batch: "list[tuple[Future[Answer], Asked]]") -> None:
        failure, answers = None, []
        try:
            answers = list(self._answer([question for _, question in batch]))
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} questions got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001  whoever asked gets it; the thread goes on
            failure = error
        with self._changed:
            self._answering, self._last_seconds = 0, time.monotonic() - self._since
            self._tell_length(self._length())
        for place, (future, _) in enumerate(batch):
            if failure is None:
                future.set_result(answers[place])
            else:
                future.set_exception(failure)
