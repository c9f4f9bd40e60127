"""vLLM's API on loopback for tests: ``/v1/models`` and ``/v1/completions`` over a causal LM that transformers reads from a folder.

It gives the real log-probabilities, each prompt in a plain pass of its own, and refuses what vLLM 0.32 refuses: tokens beyond the vocabulary,
prompts beyond its length, more than 128 ``logprob_token_ids``. It can misbehave as servers do.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Fault = Callable[["_Handler", int], bool]


class EngineServer(ThreadingHTTPServer):
    """Attributes: ``seen``, the bodies of all completions asked for; ``busiest``, how many were under way at once."""

    daemon_threads = True

    def __init__(self, folder: Path, name: str, max_model_len: int, key: str | None, fault: Fault | None, is_old: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.name, self.max_model_len, self.key, self.fault, self.is_old = name, max_model_len, key, fault, is_old
        self.seen: list[dict[str, Any]] = []
        self.lock, self.reading = threading.Lock(), threading.Lock()
        self.under_way = self.busiest = 0
        self.is_gone = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.is_refused():
            return
        card = {
            "id": self.server.name,
            "object": "model",
            "created": 1,
            "owned_by": "vllm",
            "max_model_len": self.server.max_model_len,
        }
        self.send(200, {"object": "list", "data": [card]})

    def do_POST(self) -> None:
        if self.server.is_gone:  # over a connection that outlived it
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            number = len(self.server.seen)
            self.server.under_way += 1
            self.server.busiest = max(self.server.busiest, self.server.under_way)
        try:
            if self.is_refused() or (self.server.fault is not None and self.server.fault(self, number)):
                return
            if body["model"] != self.server.name:
                return self.fail(404, f"The model `{body['model']}` does not exist.")
            self.complete(body)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def is_refused(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return False
        self.fail(401, f"Unauthorized: {self.headers['Authorization']}")
        return True

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> None:
        wanted, choices = body.get("logprob_token_ids"), []
        if wanted and (len(wanted) > 128 or body.get("logprobs") is None):
            return self.fail(400, "Requested logprob_token_ids of length 129, which is greater than max allowed: 128")
        for index, prompt in enumerate(body["prompt"]):
            if len(prompt) + body["max_tokens"] > self.server.max_model_len:
                told = f"This model's maximum context length is {self.server.max_model_len} tokens."
                return self.fail(
                    400,
                    f"{told} However, you requested {body['max_tokens']} output tokens and your prompt contains {len(prompt)}.",
                )
            written, first = [], None
            with self.server.reading:
                for _ in range(body["max_tokens"]):
                    log_probs = self.server.llm(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1].log_softmax(0)
                    first = log_probs if first is None else first
                    written.append(int(log_probs.argmax()))
                    if written[-1] in body.get("stop_token_ids", ()):
                        break
            shown = [written[0]] if self.server.is_old else [written[0], *(wanted or ())]
            told = {f"token_id:{token}": float(first[token]) for token in shown}
            choice = {"index": index, "text": "", "finish_reason": "length", "token_ids": written}
            if body.get("logprobs") is not None:
                own = {
                    "tokens": [f"token_id:{written[0]}"],
                    "token_logprobs": [told[f"token_id:{written[0]}"]],
                    "text_offset": [0],
                }
                choice["logprobs"] = {**own, "top_logprobs": [told]}
            choices.append(choice)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "1", "object": "text_completion", "created": 1, "model": body["model"], "usage": usage}
        self.send(200, {**head, "choices": choices[::-1]})  # a client goes by their index

    def send(self, status: int, payload: Any) -> None:
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def fail(self, status: int, message: str) -> None:
        self.send(status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def engine(
    folder: Path, name: str, max_model_len: int = 512, key: str | None = None, fault: Fault | None = None, is_old: bool = False
) -> Iterator[EngineServer]:
    """A server while the context lasts."""
    server = EngineServer(folder, name, max_model_len, key, fault, is_old)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_gone = True
        server.shutdown()
        server.server_close()
        thread.join()
