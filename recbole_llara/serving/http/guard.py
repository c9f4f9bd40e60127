"""What every request passes through: who may ask, how much, for how long; and the line of the log that tells of it.

The lines hold no body, no query and no path but the route's pattern: whatever names a user's items stays out.
"""

import asyncio
import hmac
import logging
import re
import time
from dataclasses import dataclass
from uuid import uuid4

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_llara.serving.http.metrics import Metrics

MAX_BODY = 1 << 16  # bytes
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
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
# Routes that are answered without the token: what a load balancer asks, and the page's own files, which ask for the token.
WITHOUT_TOKEN = frozenset({"/", "/health", "/health/live", "/health/ready"})
STATIC_PREFIX = "/static/"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What a request must keep to."""

    timeout: float  # (s) in which it is answered
    token: str | None = None  # the bearer token that it must bring
    hosts: frozenset[str] | None = None  # names of this machine to which it must be addressed; None = any


class Guard:
    """Refuses what breaks the rules, ends what takes too long, counts and logs every request.

    Bodies of more than ``MAX_BODY`` bytes are refused, whatever length they announce. Every response gets ``HEADERS`` and
    ``X-Request-ID``: the client's own where it has sent one, of at most 64 letters, digits and ``_.:-``.
    """

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, read = time.monotonic(), 0, 0
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid4().hex
        scope.setdefault("state", {})

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"body: expected at most {MAX_BODY} bytes")
            return message

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({**HEADERS, "X-Request-ID": request_id})
            await send(message)

        async def refuse(refused: HTTPException) -> None:
            if not status:  # nothing was sent yet
                await problem(refused)(scope, receive, send_noted)

        try:
            async with asyncio.timeout(self.rules.timeout) as limit:
                self._check(scope)
                await self.app(scope, receive_bounded, send_noted)
        except HTTPException as refused:
            await refuse(refused)
        except Exception as error:
            if limit.expired():
                await refuse(HTTPException(504, f"not answered within {self.rules.timeout:g} s"))
            else:
                log.exception("failed", exc_info=error, extra={"told": {"request_id": request_id}})
                await refuse(HTTPException(500, f"the service failed; its log tells of request {request_id}"))
        finally:
            seconds = time.monotonic() - started
            route, method = route_of(scope), scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.observe_request(route, method, status, seconds)
            told = {"method": method, "path": route, "status": status, "ms": round(1000 * seconds, 1)}
            told |= {"batch": scope["state"].get("batch"), "request_id": request_id}
            log.info("request", extra={"told": told})

    def _check(self, scope: Scope) -> None:
        """Raise HTTPException where the request may not be answered."""
        headers, hosts, token = Headers(scope=scope), self.rules.hosts, self.rules.token
        if hosts is not None:
            named = _HOST.fullmatch(headers.get("host", ""))
            if named is None or named[1].lower() not in hosts:
                raise HTTPException(400, f"host: expected one of {', '.join(sorted(hosts))}")
        if token is not None and scope["path"] not in WITHOUT_TOKEN and not scope["path"].startswith(STATIC_PREFIX):
            kind, _, given = headers.get("authorization", "").partition(" ")
            # Compared as bytes: a header holds any, and other characters than ASCII are no error.
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
                raise HTTPException(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY:
            raise HTTPException(413, f"body: expected at most {MAX_BODY} bytes")


def route_of(scope: Scope) -> str:
    """The pattern of the route that a request has met, such as ``/api/cases/{row}``."""
    return getattr(scope.get("route"), "path", "none")


def problem(refused: HTTPException) -> JSONResponse:
    """The one shape of every error: ``{"error": "..."}`` under its status."""
    return JSONResponse({"error": str(refused.detail)}, refused.status_code, refused.headers)
