"""The folder of one run: ``<checkpoint_dir>/<model>-<dataset>-<protocol>-seed<seed>-<time>/`` and what is written there.

Every file appears whole or not at all: it is written beside its place, flushed to disk, then renamed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from filelock import FileLock, Timeout

from recbole_llara.config.secrets import without_secrets
from recbole_llara.utils.atomic import write_text
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import json_ready
from recbole_llara.utils.version import __version__

CONFIG, REQUEST, RESULT = "config.yaml", "request.yaml", "result.json"
LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; ``path`` exists and belongs to this run alone."""

    path: Path

    @classmethod
    def create(cls, checkpoint_dir: str | Path, config: Mapping[str, Any]) -> "RunFolder":
        """Make a new folder for a run.

        Args:
            checkpoint_dir: the folder that holds all runs; made if absent.
            config: resolved keys; ``model``, ``dataset``, ``protocol`` and ``seed`` name the folder.

        Raises:
            UserError: no folder can be made there.
        """
        check_writable(checkpoint_dir)
        parts = [str(config[key]) for key in ("model", "dataset", "protocol")]
        parts += [f"seed{config['seed']}", datetime.now().strftime("%Y%m%d-%H%M%S")]
        name = re.sub(r"[^\w.+-]", "_", "-".join(parts))
        attempt = 1
        while True:
            path = Path(checkpoint_dir) / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()  # fails if another process took the name: no test-then-make race
            except FileExistsError:
                attempt += 1
            else:
                return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing here, or raise a ``UserError``; the lock ends with its process, however that ends."""
        try:
            lock = FileLock(self.path / LOCK).acquire(timeout=0)
        except Timeout:
            raise UserError(f"resume: another process is writing {self.path}; wait for it, or start a new run") from None
        with lock:
            yield

    def is_held(self) -> bool:
        """Whether a process is writing here."""
        try:
            with self.held():
                return False
        except UserError:
            return True

    def write_records(self, name: str, records: Iterable[Mapping[str, Any]]) -> Path:
        """Write one record a line, such as the test rows of ``cases.jsonl``. Returns the path."""
        return write_text(self.path / name, (_json(record) for record in records))

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """Write ``config.yaml``: the resolved keys, without secrets. Returns the path."""
        return self._write_yaml(CONFIG, config)

    def write_request(self, model: str, dataset: str, keys: Mapping[str, Any]) -> Path:
        """Write ``request.yaml``: what the run was asked for, without secrets, so that it can go on by its folder's name alone."""
        return self._write_yaml(REQUEST, {"version": __version__, "model": model, "dataset": dataset, "keys": keys})

    def _write_yaml(self, name: str, values: Mapping[str, Any]) -> Path:
        plain = json_ready(without_secrets(values))
        return write_text(self.path / name, yaml.safe_dump(plain, allow_unicode=True, sort_keys=True))

    def write_result(self, result: Mapping[str, Any], result_file: str | Path | None = None) -> Path:
        """Write ``result.json``, and a copy of it to ``result_file`` if given. Returns the path of the first."""
        text = _json(result, indent=2)
        path = write_text(self.path / RESULT, text)
        if result_file:
            write_text(Path(result_file), text)
        return path


def _json(value: Any, indent: int | None = None) -> str:
    """A line or more; numbers that JSON lacks (NaN, infinities) become null."""
    return json.dumps(json_ready(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def check_writable(checkpoint_dir: str | Path) -> None:
    """Make the folder of all runs, and see before anything is trained that a file can be written there.

    Raises:
        UserError: it cannot.
    """
    try:
        Path(checkpoint_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=checkpoint_dir) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(
            f"checkpoint_dir: nothing can be written to {str(checkpoint_dir)!r} ({error}); choose another"
        ) from error


def read_table(path: Path, parse: Callable[[str], Any], expected: str) -> dict[str, Any]:
    """The content of a file of a run's folder by ``parse``; ``UserError`` where it cannot be read or is no table."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"run: {path} cannot be read ({error}), expected {expected}") from error
    return content


def read_result(run: Path) -> dict[str, Any]:
    """The content of a run's ``result.json``; ``UserError`` where it cannot be read, or is no JSON object."""
    return read_table(run / RESULT, json.loads, "the result of a finished run")


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of one record a line back."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
