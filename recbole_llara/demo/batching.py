"""Questions that wait together are answered together, by one thread: torch is never called from two at once."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class QueueFullError(RuntimeError):
    """Too many questions wait already.

    Args:
        retry_after: (int, seconds) when there may be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many questions wait already; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass
class _Batch(Generic[Question, Answer]):
    questions: list[Question] = field(default_factory=list)
    answers: "Future[Sequence[Answer]]" = field(default_factory=Future)


class BatchQueue(Generic[Question, Answer]):
    """Gathers questions while others are answered, and for a moment more.

    Args:
        answer: gives one answer for each of its questions; called by one thread, never twice at once.
        capacity: (int, questions) at most so many wait or are being answered.
        most: (int, questions) of one batch.
        gather: (float, s) how long a batch waits for company before it is answered.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer]],
        capacity: int = 64,
        most: int = 16,
        gather: float = 0.005,
    ) -> None:
        self._answer, self._capacity, self._most, self._gather = answer, capacity, most, gather
        self._thread = ThreadPoolExecutor(1, "answers")
        self._lock = threading.Lock()
        self._open: _Batch[Question, Answer] | None = None  # the batch that still takes questions
        self._waiting = 0
        self._last_seconds = 0.0  # what the last batch took

    def submit(self, question: Question) -> "tuple[Future[Sequence[Answer]], int]":
        """Ask.

        Returns:
            the answers of the question's batch, and its place among them.

        Raises:
            QueueFullError: ``capacity`` questions wait already.
        """
        with self._lock:
            if self._waiting >= self._capacity:
                batches = self._waiting / self._most
                raise QueueFullError(max(1, math.ceil(batches * self._last_seconds)))
            self._waiting += 1
            batch = self._open
            if batch is None or len(batch.questions) >= self._most:
                batch = self._open = _Batch()
                batch.answers = self._thread.submit(self._answered, batch)
            batch.questions.append(question)
            return batch.answers, len(batch.questions) - 1

    def close(self) -> None:
        """End the thread; what waits is given up."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _answered(self, batch: _Batch[Question, Answer]) -> Sequence[Answer]:
        time.sleep(self._gather)
        with self._lock:
            if self._open is batch:
                self._open = None
        start = time.monotonic()
        try:
            return self._answer(batch.questions)
        finally:
            with self._lock:
                self._waiting -= len(batch.questions)
                self._last_seconds = time.monotonic() - start
