"""The runs that a demo shows: loaded, named, and of the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.checkpoint.run_folder import read_result
from recbole_llara.serving.loaded import LoadedRun, load
from recbole_llara.utils.errors import UserError

_TOLD = ("rec_model", "representation", "n", "correct")  # of result.json, where that has it


@dataclass(frozen=True)
class DemoRun:
    """One run: its model's name, numbered where several have the same, and the facts that the page tells."""

    name: str
    folder: Path
    run: LoadedRun
    facts: dict[str, Any]


def load_runs(folders: Sequence[str], **keys: Any) -> list[DemoRun]:
    """Load finished runs that know the same items; the first one's recommender proposes candidates.

    Raises:
        UserError: one cannot be loaded, is given twice, or knows other items than the first.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("compare: found the same run twice, expected others")
    loaded = [load(path, **keys) for path in paths]
    check_same_items(paths, loaded)
    names: list[str] = []
    for run in loaded:
        number = sum(name.split()[0] == run.config["model"] for name in names) + 1
        names.append(run.config["model"] if number == 1 else f"{run.config['model']} {number}")
    return [DemoRun(name, path, run, _facts(name, path, run)) for name, path, run in zip(names, paths, loaded, strict=True)]


def check_same_items(paths: Sequence[Path], runs: Sequence[LoadedRun]) -> None:
    """Refuse runs of different items; the message names two of them."""
    first = set(runs[0].names.ids)
    for path, run in zip(paths[1:], runs[1:], strict=True):
        others = first.symmetric_difference(run.names.ids)
        if others:
            raise UserError(
                f"compare: {path} (dataset {run.config['dataset']}) and {paths[0]} (dataset {runs[0].config['dataset']}) do not "
                f"know the same items, {len(others)} differ, such as {min(others)!r}; expected runs of one dataset"
            )


def _facts(name: str, path: Path, run: LoadedRun) -> dict[str, Any]:
    result = read_result(path)
    told = {key: result.get(key) for key in _TOLD}
    return {"name": name, "model": run.config["model"], "folder": path.name, "is_llm": run.is_llm, **told}
