"""The folder of one run: what is written there, what it was asked for, and which one is resumed.

It is ``<checkpoint_dir>/<model>-<dataset>-<protocol>-seed<seed>-<time>/``, and every file appears whole or not at all. It may
come from a stranger. Of what it asks for only the keys that ``config.settings`` lets it set are taken; whatever runs code,
reaches the network or names where files are written the caller gives.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml
from filelock import AcquireReturnProxy

from recbole_llara.config.keys import from_run, with_effect
from recbole_llara.config.models import is_llm_recommender, load_plugins
from recbole_llara.config.secrets import redacted, without_secrets
from recbole_llara.config.settings import TRUST
from recbole_llara.config.validation import FromRun
from recbole_llara.config.yaml_files import PlainText, parse_arguments, parse_value, plain, read_yaml
from recbole_llara.utils import __version__
from recbole_llara.utils.atomic import take_lock, write_text
from recbole_llara.utils.errors import UserError, differences
from recbole_llara.utils.hashing import json_ready

CONFIG, REQUEST, RESULT, LOCK = "config.yaml", "request.yaml", "result.json", ".lock"
RECOMMENDER, PROMPTS = (
    "recommender",
    "prompts.yaml",
)  # what a finished run has read: its recommender's files, and its prompt_file
AUTO = "auto"  # of the key ``resume``
_NOT_ASKED = ("resume", "checkpoint_dir")  # the caller names the run's folder, which tells both


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; ``path`` exists and belongs to this run alone."""

    path: Path

    @classmethod
    def create(cls, checkpoint_dir: str | Path, config: Mapping[str, Any]) -> "RunFolder":
        """Make a new folder in ``checkpoint_dir``, named by the run's resolved keys, or raise a ``UserError``."""
        check_writable(checkpoint_dir)
        parts = [str(config[key]) for key in ("model", "dataset", "protocol")]
        parts += [f"seed{config['seed']}", datetime.now().strftime("%Y%m%d-%H%M%S")]
        name = re.sub(r"[^\w.+-]", "_", "-".join(parts))
        path, attempt = Path(checkpoint_dir) / name, 1
        while True:
            try:
                path.mkdir()  # fails if another process took the name: no test-then-make race
                return cls(path)
            except FileExistsError:
                attempt += 1
                path = path.with_name(f"{name}-{attempt}")

    def held(self) -> AcquireReturnProxy:
        """A context in which no other process writes here; ``UserError`` where one does."""
        if (lock := take_lock(self.path / LOCK)) is None:
            raise UserError(f"resume: another process is writing {self.path}; wait for it, or start a new run")
        return lock

    def is_held(self) -> bool:
        """Whether a process is writing here."""
        if (lock := take_lock(self.path / LOCK)) is None:
            return True
        with lock:
            return False

    def write_records(self, name: str, records: Iterable[Mapping[str, Any]]) -> Path:
        """Write one record a line, such as the test rows of ``cases.jsonl``. Returns the path."""
        return write_text(self.path / name, (_json(record) for record in records))

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """Write ``config.yaml``: the resolved keys, without secrets. Returns the path."""
        return self._write_yaml(CONFIG, config)

    def write_request(self, config: Any) -> Path:
        """Write ``request.yaml``: what the run was asked for, without secrets, so that its folder's name resumes it."""
        model, dataset = config["model"], config["dataset"]
        told = {"version": __version__, "model": model, "dataset": dataset, "keys": config.external_config_dict}
        if is_llm_recommender(model) and (embedded := _embedded_llm(config.final_config_dict)):
            told["embedded_llm"] = embedded
        return self._write_yaml(REQUEST, told)

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
    """Make the folder of all runs and see that a file can be written there, or raise a ``UserError``."""
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


@dataclass(frozen=True)
class Request:
    """What a run was asked for, with every key that was given."""

    model: str | None
    dataset: str | None
    keys: Mapping[str, Any]


def completed_request(
    model: str | None,
    dataset: str | None,
    config_dict: Mapping[str, Any] | None,
    argv: Sequence[str] | None,
    config_file_list: Sequence[str | Path] | None = None,
) -> Request:
    """Add to a command's request, where it names a run's folder to resume, what that run was asked for.

    Returns:
        this command's words over those of the run; neither argv nor those of the files are among its keys.
    """
    keys = dict(config_dict or {})
    given = {**keys, **parse_arguments(argv or ())}
    wanted = given.get("resume")
    if not wanted or wanted == AUTO:
        return Request(model, dataset, keys)
    for path in config_file_list or ():
        given = {**read_yaml(path), **given}
    load_plugins(given.get("plugins"))
    folder = _run_folder(wanted)
    asked = read_request(folder, given)
    placed = {} if "checkpoint_dir" in given else {"checkpoint_dir": PlainText(folder.parent)}
    return Request(model or asked.model, dataset or asked.dataset, {**asked.keys, **placed, **keys})


def read_request(run: Path, given: Mapping[str, Any]) -> Request:
    """What a run was asked for, as far as its folder can tell.

    Args:
        run: the folder, which a stranger may have written.
        given: the caller's keys; what the folder says of them does not count.

    Raises:
        UserError: the folder is no run's; or it asks for what only the caller can give, and the caller does not.
    """
    asked = _asked(run)
    keys = {key: value for key, value in asked["keys"].items() if key not in given and key not in _NOT_ASKED}
    placed = {key: str(run / name) for key, name in asked["relative"].items() if key not in given}  # of an exported run
    refused = _refused({**keys, **placed}, given)
    refused |= {key: value for key, value in placed.items() if not _leads_into(value, run)}
    if refused:
        asks = ", ".join(f"{key} to {redacted(value)}" for key, value in refused.items())
        raise UserError(
            f"run: {run / REQUEST} sets {asks}, expected from the caller: the folder of a run may come from a stranger, and "
            "these keys run code, reach the network or write files. If you want them so, give them yourself: "
            f"{_arguments(refused)}; else give others"
        )
    taken = {key: value for key, value in {**keys, **placed}.items() if from_run(key) is not FromRun.NEVER}
    return Request(asked["model"], asked["dataset"], plain(taken))


def told_request(run: Path) -> Request:
    """What a run's folder says it was asked for, to be shown: nothing of it is refused, so nothing may be done by it."""
    asked = _asked(run)
    return Request(asked["model"], asked["dataset"], asked["keys"])


def model_of(run: Path) -> str:
    """The name of the model that a run's folder tells; ``UserError`` where the folder is no run's."""
    return _asked(run)["model"]


def resume_command(run: Path, keys: Mapping[str, Any]) -> str:
    """The arguments that resume a run which was given ``keys``: its folder, and what its folder cannot set."""
    again = {key: value for key, value in keys.items() if key not in _NOT_ASKED}
    return f"--resume={run} {_arguments(_refused(again, again))}".rstrip()


def is_network_share(value: str | Path) -> bool:
    """Whether a path names a share of a network, by its name alone: to look at one is to call upon it."""
    return str(value).replace("\\", "/").startswith("//")


def _leads_into(value: str, root: Path) -> bool:
    try:
        return not is_network_share(value) and Path(value).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _refused(keys: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's keys that its folder cannot set, where the caller has given others."""
    trusts = given.get(TRUST)
    trusts = bool(parse_value(trusts) if isinstance(trusts, str) else trusts)  # lets code of the LLM's folder run

    def can_set(key: str, value: Any) -> bool:
        answer = from_run(key)
        if answer is FromRun.VALUE or value is None:
            return True
        if answer is FromRun.NEVER:
            return value is False or value == []  # it asks for nothing
        if key == "llm_path" and trusts and value != "tiny":
            return False  # whose code is run, the caller says
        return not is_network_share(value)

    return {key: value for key, value in keys.items() if not can_set(key, value)}


def _arguments(keys: Mapping[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(json_ready(value)) for key, value in keys.items()}
    return " ".join(shlex.quote(f"--{key}={text}") for key, text in texts.items())


def _asked(run: Path) -> dict[str, Any]:
    """The contents of ``request.yaml``: ``model``, ``dataset``, ``keys`` and ``relative``, of the right types."""
    if not (run / REQUEST).is_file():
        raise UserError(f"run: found no {REQUEST} in {run}, expected the folder of a run, such as saved/LLaRA-ml-100k-...")
    asked = {"relative": {}, **_read(run / REQUEST)}
    for name, kind in (("model", str), ("dataset", str), ("keys", dict), ("relative", dict)):
        if not isinstance(asked.get(name), kind):
            raise UserError(f"run: {run / REQUEST} has {name} {redacted(asked.get(name))}, expected a {kind.__name__}")
    for key in asked["keys"]:
        if not isinstance(key, str):
            raise UserError(f"run: {run / REQUEST} has the key {key!r}, expected a text")
    for key, name in asked["relative"].items():
        if not isinstance(key, str) or from_run(key) is not FromRun.PATH or not isinstance(name, str):
            raise UserError(f"run: {run / REQUEST} places {key!r} at {redacted(name)}, expected a path within the folder")
    return asked


def folder_to_resume(config: Any) -> RunFolder | None:
    """The folder of the run that is resumed, or None where a new one begins.

    ``auto`` takes the newest unfinished run of the same keys that no other process is writing, if there is one.

    Raises:
        UserError: the model keeps no states, or the folder is no run's, is finished, or was made with other keys.
    """
    wanted = config["resume"]
    if not wanted:
        return None
    if not is_llm_recommender(config["model"]):
        raise UserError(f"resume: found {wanted!r} with {config['model']}, which keeps no training states; start it again")
    here = json_ready(without_secrets(config.final_config_dict))
    if wanted != AUTO:
        path = _run_folder(wanted)
        if obstacle := _obstacle(path, here):
            raise UserError(f"resume: {path} {obstacle}")
        return RunFolder(path)
    runs = [path.parent for path in Path(config["checkpoint_dir"]).glob(f"*/{CONFIG}") if (path.parent / REQUEST).is_file()]
    for path in sorted(runs, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True):
        if not _obstacle(path, here) and not RunFolder(path).is_held():
            getLogger().info(f"resume: {path} is resumed")
            return RunFolder(path)
    return None


def _run_folder(wanted: Any) -> Path:
    if not isinstance(wanted, str):
        raise UserError(f"resume: found {wanted!r}, expected auto or the folder of a run")
    path = Path(wanted).expanduser()
    if not (path / CONFIG).is_file() or not (path / REQUEST).is_file():
        raise UserError(f"resume: found no {CONFIG} and {REQUEST} in {path}, expected auto or the folder of a run")
    return path


def _obstacle(run: Path, here: Mapping[str, Any]) -> str:
    """Why a run cannot go on with the keys ``here``; empty where it can."""
    if (run / RESULT).exists():
        return f"is finished, its result stands in {run / RESULT}; to run it again leave resume out"
    request = _read(run / REQUEST)
    if (version := request.get("version")) != __version__:
        return f"was begun by recbole-llara {version}, expected {__version__}: resume it with that version, or start a new run"
    if differing := differences(with_effect(_read(run / CONFIG)), with_effect(here)):
        return f"was begun with other keys: {'; '.join(differing)}; leave them as they were, or start a new run"
    if request.get("embedded_llm") != _embedded_llm(here):
        return "was begun over other weights of the embedded LLM; start a new run"
    return ""


def _embedded_llm(keys: Mapping[str, Any]) -> str | None:
    # Here, since it brings transformers, which most who open a folder do without.
    from recbole_llara.llm.source import embedded_llm_read

    return embedded_llm_read(keys)


def _read(path: Path) -> dict[str, Any]:
    return read_table(path, yaml.safe_load, "the 'key: value' lines of a run; start it again without resume")
