"""The application: a page of the package's own files, and the JSON that it asks for. Nothing here writes.

Bodies are bounded, and headers let a page run nothing but its own files.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_llara.demo.questions import Answerer, BatchQueue, Question
from recbole_llara.demo.runs import CaseBook, DemoRun
from recbole_llara.serving.catalogue import ID_PREFIX
from recbole_llara.utils.errors import UserError

STATIC = Path(__file__).parent / "static"
MAX_BODY = 1 << 16  # bytes
MAX_HISTORY, MAX_CANDIDATES, MAX_FOUND, MAX_CASES = 200, 100, 20, 100  # items, items, items, rows
MAX_QUERY = 200  # characters
MAX_ROW = 1 << 53  # the whole numbers that JSON carries
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)]
Names = Annotated[list[Name], Query(default_factory=list, max_length=MAX_CANDIDATES)]


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
        self.demo_runs, self.first = list(runs), runs[0].run
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
        return {"items": [self.first.names.told(item) for item in self.first.names.search(query, MAX_FOUND)]}

    async def recommend(self, asked: Asked) -> dict[str, Any]:
        """Each run's ranking of the same candidates, and what its LLM read."""
        return await self._ask("ranked", asked)

    async def write(self, asked: Asked) -> dict[str, Any]:
        """What each run's LLM writes freely to the same question."""
        return await self._ask("written", asked)

    def find_cases(
        self,
        right: Names,
        wrong: Names,
        offset: Annotated[int, Query(ge=0, le=MAX_ROW)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_CASES)] = 20,
    ) -> dict[str, Any]:
        """Test rows on which these runs are right and those are wrong."""
        return self.cases.find(right, wrong, offset, limit)

    async def _ask(self, kind: str, asked: Asked) -> dict[str, Any]:
        names = asked.runs or list(self.answerer.runs)
        unknown = [name for name in names if name not in self.answerer.runs]
        if unknown:
            raise UserError(f"runs: found {unknown[0]!r}, expected some of {', '.join(self.answerer.runs)}")
        history = [ID_PREFIX + item for item in asked.history]
        candidates = None if asked.candidates is None else [ID_PREFIX + item for item in asked.candidates]
        question = Question(kind, tuple(dict.fromkeys(names)), history, candidates, asked.k)
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
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK) if host in LOOPBACK else ["*"])
    app.add_middleware(Guard)
    for kind in (UserError, RequestValidationError, AnyHTTPException):
        app.add_exception_handler(kind, _refused)
    for method, path, endpoint in (
        ("GET", "/api/runs", api.runs),
        ("GET", "/api/items", api.items),
        ("POST", "/api/recommend", api.recommend),
        ("POST", "/api/write", api.write),
        ("GET", "/api/cases", api.find_cases),
        ("GET", "/api/cases/{row}", api.cases.open),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_api_route("/", lambda: FileResponse(STATIC / "index.html"), methods=["GET"], response_class=FileResponse)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class Guard:
    """Adds ``HEADERS`` to every response, and refuses bodies of more than ``MAX_BODY`` bytes, whatever length they announce."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"body: expected at most {MAX_BODY} bytes")
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive_bounded, send_with_headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """The error in words, under its status."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier()) or "request"
        return JSONResponse({"error": f"{where}: {first['msg']}"[:500]}, 422)
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 400)
