"""A chat endpoint on loopback for tests: it answers what it is told to, and can misbehave in every way that counts."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["_Handler", int, dict[str, Any]], None]


class ChatServer(ThreadingHTTPServer):
    """Attributes: ``seen``, the bodies of all requests, and ``answered``, of those that got an answer."""

    daemon_threads = True

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.seen, self.answered = reply, [], []
        self.lock = threading.Lock()

    @property
    def api_base(self) -> str:
        """What the client is given."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            number = len(self.server.seen)
        self.server.reply(self, number, body)

    def send(self, status: int, payload: Any, headers: dict[str, str] | None = None) -> None:
        content = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def answer(self, body: dict[str, Any], text: Any, finish: str | None = "stop", **message: Any) -> None:
        """A chat completion of three and two tokens, with further fields in its message."""
        message = {"role": "assistant", "content": text, **message}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        with self.server.lock:
            self.server.answered.append(body)
        self.send(200, {**completion, "choices": [choice], "usage": usage})

    def fail(self, status: int, **error: Any) -> None:
        """An error that asks to be tried again at once."""
        self.send(status, {"error": {"message": f"status {status}", **error}}, {"retry-after-ms": "1"})

    def cut(self) -> None:
        """End the connection without a word."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def first_candidate(body: dict[str, Any]) -> str:
    """The first title after the last colon but one: what a lazy but obedient model answers."""
    prompt = body["messages"][-1]["content"]
    return prompt.split("items:")[1].split(",")[0].strip()


def obedient(handler: _Handler, number: int, body: dict[str, Any]) -> None:
    """Answer with the first candidate."""
    handler.answer(body, first_candidate(body))


def saying(text: Any, finish: str | None = "stop", **message: Any) -> Reply:
    """Obedient, in a manner of its own.

    Args:
        text: what it says, {} where the first candidate's title stands; a function of the title; or None.
        finish: why the message ends.
        message: further fields of it.
    """

    def reply(handler: _Handler, number: int, body: dict[str, Any]) -> None:
        title = first_candidate(body)
        said = text(title) if callable(text) else text and text.format(title)
        handler.answer(body, said, finish, **message)

    return reply


def refusing(is_refused: Callable[[dict[str, Any]], bool], status: int = 400, **error: Any) -> Reply:
    """Obedient, unless a request is refused."""

    def reply(handler: _Handler, number: int, body: dict[str, Any]) -> None:
        if is_refused(body):
            handler.fail(status, **error)
        else:
            obedient(handler, number, body)

    return reply


def newest(handler: _Handler, number: int, body: dict[str, Any]) -> None:
    """As OpenAI's reasoning models: neither max_tokens nor a temperature."""
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        handler.fail(400, message=message, type="invalid_request_error", param="max_tokens", code="unsupported_parameter")
    elif body.get("temperature", 1) != 1:
        message = (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
        )
        handler.fail(400, message=message, type="invalid_request_error", param="temperature", code="unsupported_value")
    else:
        obedient(handler, number, body)


POLICY = {
    "message": "The response was filtered due to the prompt triggering the content management policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
}
THOUGHT = "Let me look at the history first. They liked"
# How OpenAI-like servers really answer, and how such an answer comes out.
MANNERS: dict[str, tuple[Reply, str]] = {
    "plain": (obedient, "exact"),
    "thinks": (saying("<think>\nThe history leans to one kind, so I would go for the first.\n</think>\n\n{}"), "unwrapped"),
    "thinks, its template opened the tag": (saying("One kind, so the first.\n</think>\n\n{}"), "unwrapped"),
    "thinks too long": (saying(f"<think>\n{THOUGHT}", "length"), "cut"),
    "thinks too long, tag opened by the template": (saying(THOUGHT, "length"), "cut"),
    "reasoning in a field": (saying("", "length", reasoning=THOUGHT), "cut"),
    "no content but reasoning": (saying(None, "length", reasoning_content="Let me look"), "cut"),
    "reasoning in a field, then content": (saying("{}", reasoning_content="The first it is."), "exact"),
    "content in parts": (
        saying(
            lambda title: [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": title}]
        ),
        "exact",
    ),
    "numbered": (saying("1. {}"), "unwrapped"),
    "explained": (saying("{}\n\nThis fits the history best."), "unwrapped"),
    "explained too long": (saying("{}\n\nThis fits the", "length"), "unwrapped"),
    "cut in the title": (saying(lambda title: title[:3], "length"), "cut"),
    "bold": (saying("**{}**"), "unwrapped"),
    "upper case": (saying(str.upper), "unwrapped"),
    "labelled": (saying("Answer: {}"), "unwrapped"),
    "filtered": (saying(None, "content_filter"), "filtered"),
    "refused in a field": (saying(None, refusal="I cannot help with that."), "refused"),
    "nothing": (saying(None), "empty"),
    "something else": (saying("I cannot help with that."), "unmatched"),
}


def slow(seconds: float) -> Reply:
    """Obedient, after a while."""

    def reply(handler: _Handler, number: int, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        obedient(handler, number, body)

    return reply


@contextmanager
def serving(reply: Reply) -> Iterator[ChatServer]:
    """A server for the length of a test."""
    server = ChatServer(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
