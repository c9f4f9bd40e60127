"""The page at ``/``: the package's own files, and the JSON that they ask for, of all runs side by side."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from recbole_llara.serving.catalogue import ID_PREFIX
from recbole_llara.serving.http.compared import Question
from recbole_llara.serving.http.guard import STATIC_PREFIX
from recbole_llara.serving.http.runs import CaseBook
from recbole_llara.serving.http.service import MAX_CANDIDATES, MAX_FOUND, MAX_HISTORY, MAX_QUERY, Name, Service
from recbole_llara.utils.errors import UserError

STATIC = Path(__file__).parent / "static"
MAX_CASES = 100  # rows
MAX_ROW = 1 << 53  # the whole numbers that JSON carries

Names = Annotated[list[Name], Query(default_factory=list, max_length=MAX_CANDIDATES)]


class Asked(BaseModel):
    """The body of a question; ids are the dataset's."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    history: list[Name] = Field(min_length=1, max_length=MAX_HISTORY)
    candidates: list[Name] | None = Field(None, min_length=2, max_length=MAX_CANDIDATES)
    k: int = Field(5, ge=1, le=MAX_CANDIDATES)
    runs: list[Name] | None = Field(None, min_length=1, max_length=MAX_CANDIDATES)


class AskedWhy(Asked):
    """The body of a question about one item of an answer."""

    item: Name | None = None


class PageApi:
    """What the page asks for."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.cases = CaseBook({run.name: run.folder for run in service.runs})

    def runs(self) -> dict[str, Any]:
        """The runs, and what a question may hold."""
        config = self.service.first.config
        return {
            "dataset": config["dataset"],
            "candidate_num": config["candidate_num"],
            "history_read": max(run.run.config["MAX_ITEM_LIST_LENGTH"] for run in self.service.runs),
            "limits": {"history": MAX_HISTORY, "query": MAX_QUERY, "found": MAX_FOUND, "k": MAX_CANDIDATES},
            "takes_items": self.service.items.refusal is None,
            "runs": [run.facts for run in self.service.runs],
        }

    async def recommend(self, asked: Asked, request: Request) -> dict[str, Any]:
        """Each run's ranking of the same candidates, and what its LLM read."""
        return await self._ask("ranked", asked, request)

    async def write(self, asked: Asked, request: Request) -> dict[str, Any]:
        """What each run's LLM writes freely to the same question."""
        return await self._ask("written", asked, request)

    async def explain(self, asked: AskedWhy, request: Request) -> dict[str, Any]:
        """Where one item of each run's answer comes from; ``k`` items of the history are told."""
        return await self._ask("explained", asked, request, None if asked.item is None else ID_PREFIX + asked.item)

    def find_cases(
        self,
        right: Names,
        wrong: Names,
        offset: Annotated[int, Query(ge=0, le=MAX_ROW)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_CASES)] = 20,
    ) -> dict[str, Any]:
        """Test rows on which these runs are right and those are wrong."""
        return self.cases.find(right, wrong, offset, limit)

    async def _ask(self, kind: str, asked: Asked, request: Request, item: str | None = None) -> dict[str, Any]:
        known = self.service.comparison.runs
        names = asked.runs or list(known)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"runs: found {unknown[0]!r}, expected some of {', '.join(known)}")
        history = [ID_PREFIX + one for one in asked.history]
        candidates = None if asked.candidates is None else [ID_PREFIX + one for one in asked.candidates]
        question = Question(kind, tuple(dict.fromkeys(names)), history, candidates, asked.k, item)
        return await self.service.ask(request, question)


def add_page(app: FastAPI, service: Service) -> None:
    """Give an application the page; none of its routes stands in the OpenAPI document."""
    api = PageApi(service)
    files = {path.name: path for path in STATIC.iterdir()}

    def file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, f"{name[:MAX_QUERY]}: the page has no such file")
        return FileResponse(files[name])

    for method, path, endpoint in (
        ("GET", "/api/runs", api.runs),
        ("POST", "/api/recommend", api.recommend),
        ("POST", "/api/write", api.write),
        ("POST", "/api/explain", api.explain),
        ("GET", "/api/cases", api.find_cases),
        ("GET", "/api/cases/{row}", api.cases.open),
        ("GET", "/", lambda: FileResponse(STATIC / "index.html")),
        ("GET", STATIC_PREFIX + "{name}", file),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None, include_in_schema=False)
