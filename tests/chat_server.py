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

    def answer(self, body: dict[str, Any], text: str | None) -> None:
        """A chat completion of three and two tokens."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        completion = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        with self.server.lock:
            self.server.answered.append(body)
        self.send(200, {**completion, "choices": [choice], "usage": usage})

    def fail(self, status: int) -> None:
        """An error that asks to be tried again at once."""
        self.send(status, {"error": {"message": f"status {status}"}}, {"retry-after-ms": "1"})

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
