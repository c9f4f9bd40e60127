"""The application: a page of the package's own files, and the JSON that it asks for. Nothing here writes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from recbole_llara.demo.batching import BatchQueue, QueueFullError
from recbole_llara.demo.cases import CaseBook
from recbole_llara.demo.guard import LOOPBACK, BoundedBody, SafeHeaders
from recbole_llara.demo.questions import Answerer, Question
from recbole_llara.demo.runs import DemoRun
from recbole_llara.utils.errors import UserError

STATIC = Path(__file__).parent / "static"
MAX_BODY = 1 << 16  # bytes
MAX_HISTORY, MAX_CANDIDATES, MAX_FOUND, MAX_CASES = 200, 100, 20, 100  # items, items, items, rows
MAX_QUERY = 200  # characters
MAX_ROW = 1 << 53  # the whole numbers that JSON carries

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)]


class Asked(BaseModel):
    """The body of a question; ids are the dataset's."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    history: list[Name] = Field(min_length=1, max_length=MAX_HISTORY)
    candidates: list[Name] | None = Field(None, min_length=2, max_length=MAX_CANDIDATES)
    k: int = Field(5, ge=1, le=MAX_CANDIDATES)
    runs: list[Name] | None = Field(None, min_length=1, max_length=MAX_CANDIDATES)


class DemoApi:
    """What the page asks for.

    Args:
        runs: at least one.
        queue: answers questions; None = one of its own.
    """

    def __init__(self, runs: Sequence[DemoRun], queue: BatchQueue | None = None) -> None:
        self.demo_runs = list(runs)
        self.first = runs[0].run
        self.answerer = Answerer(runs)
        self.queue = queue or BatchQueue(self.answerer.answer)
        self.cases = CaseBook({run.name: run.folder for run in runs})

    def runs(self) -> dict[str, Any]:
        """The runs, and what a question may hold."""
        return {
            "dataset": self.first.config["dataset"],
            "candidate_num": self.first.config["candidate_num"],
            "history_read": max(run.run.config["MAX_ITEM_LIST_LENGTH"] for run in self.demo_runs),
            "limits": {"history": MAX_HISTORY, "query": MAX_QUERY, "found": MAX_FOUND, "k": MAX_CANDIDATES},
            "runs": [run.facts for run in self.demo_runs],
        }

    def items(self, query: Annotated[str, Query(max_length=MAX_QUERY)]) -> dict[str, Any]:
        """Items whose titles hold a text."""
        names = self.first.names
        found = names.search(query, MAX_FOUND)
        return {"items": [{"item_id": names.ids[item], "title": names.titles[item]} for item in found]}

    async def recommend(self, asked: Asked) -> dict[str, Any]:
        """Each run's ranking of the same candidates, and what its LLM read."""
        return await self._ask("ranked", asked)

    async def write(self, asked: Asked) -> dict[str, Any]:
        """What each run's LLM writes freely to the same question."""
        return await self._ask("written", asked)

    def find_cases(
        self,
        right: Annotated[list[Name], Query(default_factory=list, max_length=MAX_CANDIDATES)],
        wrong: Annotated[list[Name], Query(default_factory=list, max_length=MAX_CANDIDATES)],
        offset: Annotated[int, Query(ge=0, le=MAX_ROW)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_CASES)] = 20,
    ) -> dict[str, Any]:
        """Test rows on which these runs are right and those are wrong."""
        return self.cases.find(right, wrong, offset, limit)

    def open_case(self, row: int) -> dict[str, Any]:
        """A test row with what every run answered."""
        return self.cases.open(row)

    async def _ask(self, kind: str, asked: Asked) -> dict[str, Any]:
        names = tuple(asked.runs or self.answerer.runs)
        unknown = [name for name in names if name not in self.answerer.runs]
        if unknown:
            raise UserError(f"runs: found {unknown[0]!r}, expected some of {', '.join(self.answerer.runs)}")
        candidates = None if asked.candidates is None else tuple(asked.candidates)
        question = Question(kind, tuple(dict.fromkeys(names)), tuple(asked.history), candidates, asked.k)
        answers, place = self.queue.submit(question)
        # Others wait for the same batch: a visitor who leaves must not take it along.
        answer = (await asyncio.shield(asyncio.wrap_future(answers)))[place]
        if isinstance(answer, UserError):
            raise answer
        return answer


def create_app(api: DemoApi, host: str = LOOPBACK[0]) -> FastAPI:
    """The application.

    Args:
        api: answers.
        host: where it is served; on loopback it answers only to loopback's names, so that no other site's name can be
            pointed at it (DNS rebinding).
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        api.queue.close()

    app = FastAPI(title="recbole-llara demo", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(BoundedBody, most=MAX_BODY)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK) if host in LOOPBACK else ["*"])
    app.add_middleware(SafeHeaders)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for method, path, endpoint in (
        ("GET", "/api/runs", api.runs),
        ("GET", "/api/items", api.items),
        ("POST", "/api/recommend", api.recommend),
        ("POST", "/api/write", api.write),
        ("GET", "/api/cases", api.find_cases),
        ("GET", "/api/cases/{row}", api.open_case),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_api_route("/", _page, methods=["GET"], response_class=FileResponse)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


async def _mistaken(_: Request, error: UserError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 400)


async def _misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier()) or "request"
    return JSONResponse({"error": f"{where}: {first['msg']}"[:500]}, 422)


async def _full(_: Request, error: QueueFullError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 429, {"Retry-After": str(error.retry_after)})


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


_HANDLERS = {UserError: _mistaken, RequestValidationError: _misshapen, QueueFullError: _full, HTTPException: _refused}
