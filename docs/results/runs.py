"""The runs of runs.yaml, and what measured/ keeps of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_llara.experiments.study_definition import Study, read_command

Records = Mapping[str, Mapping[str, Any]]  # name of a run -> its ``study.json``

HERE = Path(__file__).resolve().parent


class NotMeasured(Exception):
    """A run has no file in measured/."""


def load_runs() -> dict[str, dict[str, Any]]:
    """The entries of runs.yaml."""
    return yaml.safe_load((HERE / "runs.yaml").read_text(encoding="utf-8"))


def words_of(run: Mapping[str, Any]) -> list[str]:
    """What stands behind ``recbole-llara study``."""
    return [run["study"], *run.get("arguments", [])]


def study_of(run: Mapping[str, Any]) -> Study:
    """The study that an entry runs."""
    return read_command(words_of(run))


def stored() -> dict[str, dict[str, Any]]:
    """Name -> record, of the runs that have been measured, in the order of runs.yaml."""
    files = {name: HERE / "measured" / f"{name}.json" for name in load_runs()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}
