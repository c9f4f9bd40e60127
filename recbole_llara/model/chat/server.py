"""An LLM of this machine behind a chat endpoint of its own: ``transformers serve`` for the time of a run."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from recbole_llara.llm.source import resolve_llm_path
from recbole_llara.utils.errors import UserError

# For models that were never taught to chat: the messages as they are.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SERVE = "from transformers.cli.transformers import main; main()"  # the script of that name, wherever it was installed
PATIENCE = 600.0  # seconds to load a model


@dataclass(frozen=True)
class ServedModel:
    """Where a served model is found: its endpoint, and its name there."""

    api_base: str
    model: str


@contextmanager
def served(llm_path: str) -> Iterator[ServedModel]:
    """Serve a causal LM on loopback.

    Args:
        llm_path: "tiny" or a folder; a model without a chat template gets one that changes nothing.

    Raises:
        UserError: the server cannot be started.
    """
    source = resolve_llm_path(llm_path)
    if not isinstance(source.where, Path) or source.adapter is not None:
        raise UserError(f"llm_path: found {llm_path!r}, expected an LLM's folder or file, to be served for api_base: local")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(llm_path).name  # the server knows a model by its path; seen from its folder, that is the name
        _link_with_template(source.where, Path(folder) / model)
        port = _free_port()
        command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port)]
        log = Path(folder) / "serve.log"
        with open(log, "w", encoding="utf-8") as output:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen([*command, model], cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            _wait(process, port, log)
            yield ServedModel(f"http://127.0.0.1:{port}/v1", model)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _link_with_template(source: Path, folder: Path) -> None:
    """A folder with the model's files, and a chat template where they have none."""
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    if AutoTokenizer.from_pretrained(source, local_files_only=True).chat_template is None:
        (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")


def _wait(process: subprocess.Popen, port: int, log: Path) -> None:
    """Until the server is healthy."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
                if json.load(response).get("status") == "ok":
                    return
        except (OSError, ValueError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["it said nothing"]
            raise UserError(
                f"api_base: local needs transformers serve, which did not start ({last[0]}): pip install recbole-llara[chat]"
            )
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
