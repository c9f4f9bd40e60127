"""The arms of a study, one run each, and how one ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.experiments.study_definition import Study


@dataclass(frozen=True)
class Arm:
    """One run of a study."""

    system: str  # its name in the table
    dataset: str
    seed: int  # of training
    candidate_seed: int
    is_draw: bool = False  # whether these are further candidates, for which nothing is trained

    def __str__(self) -> str:
        draw = f", candidates {self.candidate_seed}" if self.is_draw else ""
        return f"{self.system} on {self.dataset}, seed {self.seed}{draw}"


@dataclass(frozen=True)
class FinishedArm:
    """An arm that was run; this is what ``studies/finished`` keeps."""

    result: dict[str, Any]  # the content of its ``result.json``
    paths: dict[str, str]  # of what it wrote
    seconds: float

    def cases(self) -> list[dict[str, Any]]:
        """The records of its ``cases.jsonl``."""
        return read_records(self.paths["cases_file"])

    def training_log(self) -> list[dict[str, Any]]:
        """The records of its ``training.jsonl``; none where nothing was trained."""
        path = Path(self.paths["run_dir"]) / "training.jsonl"
        return read_records(path) if path.is_file() else []

    def places(self) -> np.ndarray:
        """[2, n] places of the targets in the whole catalogue, the retriever's and the re-ranker's, 0 beyond ``topk``."""
        records = sorted(read_records(Path(self.paths["run_dir"]) / "full_rank.jsonl"), key=lambda record: record["row"])
        return np.array([[record[who] or 0 for record in records] for who in ("retriever", "reranker")])


@dataclass(frozen=True)
class FailedArm:
    """An arm that ended with an error."""

    message: str


Outcome = FinishedArm | FailedArm


def arms_of(study: Study) -> list[Arm]:
    """All arms in the order they are run: for each dataset the first seed, then its further draws, then the other seeds."""
    own = study.candidate_seed
    further = [draw for draw in study.candidate_seeds if draw != own]
    return [
        Arm(system, dataset, seed, draw, is_draw=draw != own)
        for dataset in study.datasets
        for seed in study.seeds
        for draw in [own, *(further if seed == study.seeds[0] else [])]
        for system in study.systems
    ]
