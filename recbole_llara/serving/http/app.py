"""The application: one run's recommendations as JSON, and the page that shows it beside others. Only ``POST /items``
writes, to the file that ``--items`` names.

Every question goes through one queue (``batches``), every request through one guard (``guard``), every error has one shape.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.exceptions import HTTPException as AnyHTTPException

from recbole_llara import __version__
from recbole_llara.serving.http.guard import LOOPBACK, Guard, Rules, problem
from recbole_llara.serving.http.page import add_page
from recbole_llara.serving.http.service import MAX_CANDIDATES, MAX_FOUND, MAX_HISTORY, MAX_QUERY, MAX_TOLD, Name, Service, Told
from recbole_llara.serving.loaded import as_json
from recbole_llara.utils.errors import RunError, UserError

log = logging.getLogger(__name__)

Item = Annotated[
    StrictInt | Name, Field(description="a title in any case, else an id; a number or id:NAME is an id in any case")
]


class AskedAnything(BaseModel):
    """To recommend what a user has not seen."""

    model_config = ConfigDict(extra="forbid")

    history: list[Item] = Field(min_length=1, max_length=MAX_HISTORY, description="what the user has seen, the oldest first")
    k: int = Field(5, ge=1, le=MAX_CANDIDATES, description="at most so many items")
    retrieve_k: int | None = Field(
        None, ge=1, le=MAX_CANDIDATES, description="how many items the recommender proposes; None = the run's candidate_num"
    )


class AskedCandidates(BaseModel):
    """To rank candidates that are given."""

    model_config = ConfigDict(extra="forbid")

    history: list[Item] = Field(min_length=1, max_length=MAX_HISTORY, description="what the user has seen, the oldest first")
    candidates: list[Item] = Field(min_length=2, max_length=MAX_CANDIDATES, description="what to choose from, each once")
    k: int = Field(MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES, description="at most so many items; all of them, unless said")


class Recommended(BaseModel):
    """One item of an answer."""

    item_id: str
    title: str
    score: float
    rank: int
    recommender_rank: int | None


class Recommendations(BaseModel):
    """The items, best first."""

    recommendations: list[Recommended]


class Found(BaseModel):
    """An item that a search found."""

    item_id: str
    title: str


class ToldItem(BaseModel):
    """What is told of one item; an entry beside these is a field of the run's ``item_fields``."""

    model_config = ConfigDict(extra="allow")

    item_id: Annotated[StrictInt | Name, Field(description="a new id, or that of an item to rename or to remove")]
    title: Name | None = Field(None, description="a new item needs one; of a known one None = as it is")
    removed: bool | None = Field(None, description="true = recommended no more; false = again")


class ToldItems(BaseModel):
    """Items to add, rename or remove: all of them or, on an error, none."""

    model_config = ConfigDict(extra="forbid")

    items: list[ToldItem] = Field(min_length=1, max_length=MAX_TOLD)


class Changed(BaseModel):
    """How many items were touched."""

    added: int
    renamed: int
    removed: int
    returned: int
    kept: bool = Field(description="whether the change outlives the service: it was started with --items")


class FoundItems(BaseModel):
    """Those whose titles begin with the text first, then the shorter titles."""

    items: list[Found]


class Problem(BaseModel):
    """Every error."""

    error: str


class Health(BaseModel):
    """What a probe is told."""

    status: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "An item that does not exist, or numbers out of range.",
        401: "No token, or another one.",
        409: "Items cannot be changed: other workers, or a run without an LLM, would not know of it.",
        413: "The body is too large.",
        422: "The request is malformed.",
        429: "Too many questions wait; Retry-After tells when to come back.",
        503: "The service is stopping.",
        504: "Not answered in time.",
    }.items()
}


class RunApi:
    """The routes of one run."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def recommend(self, asked: AskedAnything, request: Request) -> dict[str, Any]:
        """The best items that a user has not seen: the run's recommender proposes, its LLM ranks."""
        found = await self.service.ask(request, {**asked.model_dump(), "candidates": None})
        return {"recommendations": as_json(found)}

    async def rank(self, asked: AskedCandidates, request: Request) -> dict[str, Any]:
        """Candidates that are given, best first."""
        found = await self.service.ask(request, {**asked.model_dump(), "retrieve_k": None})
        return {"recommendations": as_json(found)}

    def items(
        self,
        query: Annotated[str, Query(max_length=MAX_QUERY, description="part of a title, in any case")],
        count: Annotated[int, Query(ge=1, le=MAX_FOUND, description="at most so many")] = MAX_FOUND,
    ) -> dict[str, Any]:
        """Items whose titles hold a text."""
        names = self.service.first.names
        return {"items": [names.told(item) for item in names.search(query, count)]}

    async def change(self, told: ToldItems, request: Request) -> dict[str, Any]:
        """Add items that the run has never seen, rename items, or take them out of what is recommended."""
        rows = [item.model_dump(exclude_none=True) for item in told.items]
        done = await self.service.ask(request, Told(rows))
        return {**asdict(done), "kept": self.service.items.are_kept}

    async def live(self) -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "live"}

    async def ready(self) -> dict[str, str]:
        """Whether questions are answered: 503 while the service stops, and where a batch takes longer than a request may."""
        if not self.service.queue.is_ready(self.service.limits.timeout):
            raise HTTPException(503, "stopping, or a batch takes longer than a request may")
        return {"status": "ready"}

    def metrics(self) -> Response:
        """What was counted, for Prometheus."""
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def create_app(
    service: Service, host: str = "127.0.0.1", token: str | None = None, gateway: bool = False, page: bool = True
) -> FastAPI:
    """The application.

    Args:
        service: answers.
        host: where it is served; on loopback without a token it answers only to loopback's names, so that no other site's name
            can be pointed at it (DNS rebinding).
        token: the bearer token that requests must bring; None = none.
        gateway: requests come through a gateway, which checks who asks and by which name.
        page: whether ``/`` shows the runs side by side, and their test rows.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.queue.close()

    app = FastAPI(
        title="recbole-llara",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        dependencies=[Security(HTTPBearer(auto_error=False))] if token else [],  # for OpenAPI; Guard is what checks
        responses=_PROBLEMS,
    )
    hosts = LOOPBACK if host in LOOPBACK and token is None and not gateway else None
    app.add_middleware(Guard, rules=Rules(service.limits.timeout, token, hosts), metrics=service.metrics)
    for kind in (UserError, RunError, RequestValidationError, AnyHTTPException):
        app.add_exception_handler(kind, _refused)
    api = RunApi(service)
    app.post("/recommend", response_model=Recommendations)(api.recommend)
    app.post("/rank", response_model=Recommendations)(api.rank)
    app.get("/items", response_model=FoundItems)(api.items)
    app.post("/items", response_model=Changed)(api.change)
    app.get("/health", response_model=Health, operation_id="health")(api.ready)
    app.get("/health/ready", response_model=Health, operation_id="ready")(api.ready)
    app.get("/health/live", response_model=Health, operation_id="live")(api.live)
    app.get("/metrics", response_class=Response)(api.metrics)
    app.get("/openapi.json", include_in_schema=False)(lambda: JSONResponse(app.openapi()))
    if page:
        add_page(app, service)
    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """The error in words, under its status."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier()) or "request"
        return problem(HTTPException(422, f"{where}: {first['msg']}"[:500]))
    if isinstance(error, RunError):
        log.error("backend fails", extra={"told": {"reason": str(error)}})
        return problem(HTTPException(503, "what reads the LLM does not answer; try again later", {"Retry-After": "5"}))
    return problem(error if isinstance(error, AnyHTTPException) else HTTPException(400, str(error)))
