"""What the routes ask: the runs behind one queue, and how much a question may hold."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import HTTPException, Request
from pydantic import StringConstraints

from recbole_llara.serving.changing import ChangedItems
from recbole_llara.serving.http.batches import BatchQueue
from recbole_llara.serving.http.compared import Comparison, Question
from recbole_llara.serving.http.items import ServedItems
from recbole_llara.serving.http.metrics import Metrics
from recbole_llara.serving.http.runs import ServedRun
from recbole_llara.serving.loaded import answer_alike, recommend_each
from recbole_llara.utils.errors import UserError

log = logging.getLogger(__name__)

MAX_HISTORY, MAX_CANDIDATES, MAX_FOUND = 200, 100, 20  # items
MAX_QUERY = 200  # characters
MAX_TOLD = 1000  # items of one call
CLIENT_GONE = 499  # what nginx calls it; nobody reads it but the log and the metrics

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)]


@dataclass(frozen=True)
class Limits:
    """How much an application takes at a time."""

    queue: int = 64  # (questions) that wait or are being answered; more get 429
    batch: int = 16  # (questions) answered at once
    timeout: float = 30.0  # (s) in which a request is answered; later it gets 504
    batch_wait: float = 0.005  # (s) that a batch waits for company


@dataclass(frozen=True)
class Told:
    """What somebody tells of items; it waits in the queue as a question does, since nothing is answered meanwhile."""

    rows: Sequence[Mapping[str, Any]]


class Service:
    """What every route asks: the runs, and the queue before them.

    Args:
        runs: at least one; the first answers ``/recommend`` and ``/rank``, and its recommender proposes candidates.
        limits: how much is taken.
        items: what changes the runs' items; None = changes last as long as this process.
    """

    def __init__(self, runs: Sequence[ServedRun], limits: Limits = Limits(), items: ServedItems | None = None) -> None:
        self.runs, self.first, self.limits = list(runs), runs[0].run, limits
        self.items = ServedItems(runs, None) if items is None else items
        self.comparison = Comparison(runs)
        self.metrics = Metrics(runs[0].folder.name, self.first.config["model"], self.first.name)
        most = min(limits.batch, limits.queue)
        self.queue = BatchQueue(self._answer_batch, limits.queue, most, limits.batch_wait, self.metrics.tell_length)

    async def ask(self, request: Request, question: Mapping[str, Any] | Question | Told) -> Any:
        """The answer to a question, which is dropped if the client leaves, or the request's time ends, before its batch begins.

        Raises:
            UserError: what is wrong with the question.
            HTTPException: too many wait, the service is stopping, or the client is gone.
        """
        answering = asyncio.wrap_future(self.queue.submit(question))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise HTTPException(CLIENT_GONE, "the client is gone")
            answer, request.state.batch = answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
        if isinstance(answer, UserError | HTTPException):
            raise answer
        return answer

    def _answer_batch(self, questions: Sequence[Mapping[str, Any] | Question | Told]) -> list[tuple[Any, int]]:
        """Each question's answer, or what is wrong with it, and the size of the batch; what is told of items comes first."""
        self.metrics.observe_batch(len(questions))
        self._take_items()
        told = [self._change(one) if isinstance(one, Told) else one for one in questions]
        asked = [one for one, given in zip(told, questions, strict=True) if not isinstance(given, Told)]
        answers = iter(answer_alike(asked, lambda one: isinstance(one, Question), self._answer_alike))
        return [
            (one if isinstance(given, Told) else next(answers), len(questions))
            for one, given in zip(told, questions, strict=True)
        ]

    def _take_items(self) -> None:
        """What other workers were told; a file that cannot be read leaves things as they are, and the log says so."""
        try:
            self.items.take()
        except (UserError, OSError) as error:
            log.error("items not read", extra={"told": {"reason": str(error)}})

    def _change(self, told: Told) -> ChangedItems | UserError | HTTPException:
        try:
            return self.items.change(told.rows)
        except (UserError, HTTPException) as error:
            return error

    def _answer_alike(self, questions: Sequence[Any]) -> list[Any]:
        """The answers to the page's questions, or to those of the run's own routes."""
        if isinstance(questions[0], Question):
            return self.comparison.answer(questions)
        return recommend_each(self.first, questions)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
