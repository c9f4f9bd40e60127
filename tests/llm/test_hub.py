"""A hub that refuses, that knows no such model, or that cannot be reached: one line that says what to do, before anything is trained."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bad_inputs import SHORT_LLM, as_arguments
from synthetic_data import write_toy_dataset

ROOT = Path(__file__).resolve().parent.parent.parent


class _Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does: of ``gated/...`` it gives nothing without a licence, others it does not know."""

    def do_HEAD(self) -> None:
        is_gated = self.path.startswith("/gated/")
        self.send_response(403 if is_gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if is_gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(folder: Path, llm_path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process that knows this hub and no cache."""
    keys = {**write_toy_dataset(folder), **SHORT_LLM, "llm_path": llm_path}
    return subprocess.run(
        [sys.executable, "-m", "recbole_llara", "--model=LLaRA", "--dataset=toy", *as_arguments(keys)], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], folder: Path, *parts: str) -> None:
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("recbole-llara: error: llm_path is ") and all(part in last for part in parts), last
    assert not list((folder / "saved").glob("LLaRA*")) and not (folder / "saved" / "recommenders").exists()


@pytest.mark.parametrize(
    ("llm_path", "parts"),
    [
        ("gated/llama", ("accepted its licence", "https://huggingface.co/gated/llama", "hf auth login", "--llm_path=FOLDER")),
        ("nobody/nothing", ("knows no such public model", "correct the name")),
    ],
)
def test_the_hub_refuses(llm_path: str, parts: tuple[str, ...], hub: str, tmp_path: Path) -> None:
    refused(run(tmp_path, llm_path, HF_ENDPOINT=hub), tmp_path, *parts)


def test_the_hub_may_not_be_asked(tmp_path: Path) -> None:
    done = run(tmp_path, "meta-llama/Llama-2-7b-hf", HF_HUB_OFFLINE="1")
    refused(done, tmp_path, "the hub cannot be reached", "hf download meta-llama/Llama-2-7b-hf --local-dir FOLDER")


@pytest.mark.slow
def test_the_hub_is_not_reached(tmp_path: Path) -> None:
    done = run(tmp_path, "meta-llama/Llama-2-7b-hf", HF_ENDPOINT="http://127.0.0.1:9")  # where nobody listens
    refused(done, tmp_path, "the hub cannot be reached", "hf download meta-llama/Llama-2-7b-hf --local-dir FOLDER")
