"""Which run goes on: the folder that ``resume`` names or finds, and what its command was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml

from recbole_llara import __version__
from recbole_llara.errors import UserError
from recbole_llara.evaluator.result import json_ready, without_secrets
from recbole_llara.evaluator.run_folder import CONFIG, REQUEST, RESULT, RunFolder
from recbole_llara.keys import WITHOUT_EFFECT
from recbole_llara.model import is_ours
from recbole_llara.yaml_files import PlainText, parse_arguments

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """What a run was asked for: its model, its dataset, and every key that was given."""

    model: str | None
    dataset: str | None
    keys: Mapping[str, Any]


def completed_request(
    model: str | None, dataset: str | None, config_dict: Mapping[str, Any] | None, argv: Sequence[str] | None
) -> Request:
    """Add to a request, where it names a run's folder to resume, what that run was asked for.

    Args:
        model, dataset, config_dict, argv: of this command.

    Returns:
        this command's words over those of the run; argv is not among its keys.

    Raises:
        UserError: the folder is no run's.
    """
    keys = dict(config_dict or {})
    wanted = {**keys, **parse_arguments(argv or ())}.get("resume")
    if not wanted or wanted == AUTO:
        return Request(model, dataset, keys)
    asked = read_request(_run_folder(wanted))
    return Request(model or asked.model, dataset or asked.dataset, {**asked.keys, **keys})


def read_request(run: Path) -> Request:
    """What a run was asked for, as its folder tells.

    Raises:
        UserError: the folder is no run's.
    """
    if not (run / REQUEST).is_file():
        raise UserError(f"run: found no {REQUEST} in {run}, expected the folder of a run, such as saved/LLaRA-ml-100k-...")
    asked = _read(run / REQUEST)
    # Values were parsed once; a quoted "1" of a config file must not become a number now.
    keys = {key: PlainText(value) if isinstance(value, str) else value for key, value in asked["keys"].items()}
    placed = {key: str(run / name) for key, name in asked.get("relative", {}).items()}  # of an exported run
    return Request(asked["model"], asked["dataset"], {**keys, **placed})


def folder_to_resume(config: Any) -> RunFolder | None:
    """The folder of the run that goes on, or None where a new one begins.

    ``auto`` takes the newest unfinished run of the same keys that no other process is writing, if there is one.

    Args:
        config: the run's LLaRAConfig.

    Raises:
        UserError: the model keeps no states, or the folder is no run's, is finished, or was made with other keys.
    """
    wanted = config["resume"]
    if not wanted:
        return None
    if not is_ours(config["model"]):
        raise UserError(f"resume: found {wanted!r} with {config['model']}, which keeps no training states; start it again")
    here = _compared(json_ready(without_secrets(config.final_config_dict)))
    if wanted != AUTO:
        return _checked(_run_folder(wanted), here)
    runs = [path.parent for path in Path(config["checkpoint_dir"]).glob(f"*/{CONFIG}")]
    for path in sorted(runs, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True):
        folder = RunFolder(path)
        if (path / RESULT).exists() or _version_of(path) != __version__:
            continue
        if _compared(_read(path / CONFIG)) == here and not folder.is_held():
            getLogger().info(f"resume: {path} goes on")
            return folder
    return None


def _run_folder(wanted: Any) -> Path:
    if not isinstance(wanted, str):
        raise UserError(f"resume: found {wanted!r}, expected auto or the folder of a run")
    path = Path(wanted).expanduser()
    if not (path / CONFIG).is_file() or not (path / REQUEST).is_file():
        raise UserError(f"resume: found no {CONFIG} and {REQUEST} in {path}, expected auto or the folder of a run")
    return path


def _version_of(run: Path) -> Any:
    """The version of this package that began a run."""
    return _read(run / REQUEST).get("version") if (run / REQUEST).is_file() else None


def _checked(path: Path, here: Mapping[str, Any]) -> RunFolder:
    if (path / RESULT).exists():
        raise UserError(f"resume: {path} is finished, its result stands in {path / RESULT}; to run it anew leave resume out")
    if _version_of(path) != __version__:
        raise UserError(
            f"resume: {path} was begun by recbole-llara {_version_of(path)}, expected {__version__}: go on with that version, "
            "or start a new run"
        )
    there = _compared(_read(path / CONFIG))
    differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if differing:
        lines = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differing)
        raise UserError(f"resume: {path} was begun with other keys: {lines}; leave them as they were, or start a new run")
    return RunFolder(path)


def _compared(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a result depends on."""
    return {key: value for key, value in keys.items() if key not in WITHOUT_EFFECT}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"resume: {path} cannot be read ({error}); start the run again without resume") from error
    if not isinstance(content, dict):
        raise UserError(f"resume: {path} holds a {type(content).__name__}, expected 'key: value' lines")
    return content
