"""The runs that make up a study, and how each may end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.experiments.study.definition import Study


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Args:
        system: its name in the table.
        dataset: what it runs on.
        seed: of training.
        candidate_seed: of the questions; another than the study's for a further draw, where nothing is trained.
        is_draw: whether it is such a further draw.
    """

    system: str
    dataset: str
    seed: int
    candidate_seed: int
    is_draw: bool = False

    def __str__(self) -> str:
        draw = f", candidates {self.candidate_seed}" if self.is_draw else ""
        return f"{self.system} on {self.dataset}, seed {self.seed}{draw}"


@dataclass(frozen=True)
class Entry:
    """A finished arm.

    Args:
        result: the content of its ``result.json``.
        paths: of what it wrote.
        seconds: it took.
    """

    result: dict[str, Any]
    paths: dict[str, str]
    seconds: float

    def cases(self) -> list[dict[str, Any]]:
        """The records of its ``cases.jsonl``."""
        return read_records(self.paths["cases_file"])

    def training_log(self) -> list[dict[str, Any]]:
        """The records of its ``training.jsonl``; none where the run has none."""
        path = Path(self.paths["run_dir"]) / "training.jsonl"
        return read_records(path) if path.is_file() else []


@dataclass(frozen=True)
class Failure:
    """An arm that ended with an error.

    Args:
        message: its kind and text.
    """

    message: str


def arms_of(study: Study) -> list[Arm]:
    """All arms in the order they are run: a dataset's first seed whole, then its further draws, then other seeds."""
    arms: list[Arm] = []
    for dataset in study.datasets:
        for number, seed in enumerate(study.seeds):
            arms += [Arm(system, dataset, seed, study.asked) for system in study.systems]
            if number == 0:
                draws = [draw for draw in study.candidate_seeds if draw != study.asked]
                arms += [Arm(system, dataset, seed, draw, True) for draw in draws for system in study.systems]
    return arms
