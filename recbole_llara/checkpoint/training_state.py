"""States of an unfinished training: a checkpoint and, beside it, the optimiser, the progress and every generator.

They lie in ``<run>/training_state/step-<steps>-epoch-<epoch>/``, the last ``save_total_limit`` of them; a finished run keeps
none. A stopped run continues from the last one as if it had not been stopped.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recbole_llara.checkpoint.weights import Checkpoint, DamagedCheckpoint, Weights, read_checkpoint, write_llm_checkpoint
from recbole_llara.data.numbering import Numbering, read_numbering
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.random_state import Generators

FOLDER, TENSORS, STATE = "training_state", "training.safetensors", "training.json"
OPTIMIZER, REFERENCE, ORDER = "optimizer/", "reference/", "order"  # names among the tensors


@dataclass
class Progress:
    """Where a training stands."""

    stage: int = 0  # of ``curriculum.stages_of``
    epoch: int = 0  # counted over all stages
    batches: int = 0  # of the epoch, done
    step: int = 0  # optimiser steps of the stage, done
    steps_before: int = 0  # those of earlier stages
    rows_trained: int = 0  # of all steps
    seconds_trained: float = 0.0  # spent in the steps
    seconds: float = 0.0  # spent on the training as a whole, validation included
    epoch_losses: list[float] = field(default_factory=list)  # of the epoch's steps
    training_log: list[dict[str, Any]] = field(default_factory=list)  # what training.jsonl will hold: steps, and validations
    order_state: torch.Tensor | None = None  # [bytes] uint8, from which the training rows' loader draws the epoch's order

    @property
    def all_steps(self) -> int:
        """Optimiser steps of all stages so far."""
        return self.steps_before + self.step

    def next_epoch(self) -> "Progress":
        """At the beginning of the epoch after this one."""
        return Progress(**{**vars(self), "epoch": self.epoch + 1, "batches": 0, "epoch_losses": []})


@dataclass(frozen=True)
class TrainingState:
    """What a state holds beside the weights."""

    progress: Progress
    facts: dict[str, Any]  # what JSON can hold of the rest that the trainer needs
    optimizer: dict[str, Any]  # its ``state_dict``
    generators: Generators
    reference: dict[str, torch.Tensor]  # the weights with which the stage began, where a loss reads them; else nothing

    def write(self, folder: Path) -> None:
        """Write it into a folder, as ``read`` reads it."""
        tensors = dict(self.generators.tensors)
        for number, values in self.optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}{number}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
        tensors |= {f"{REFERENCE}{name}": value.detach().cpu().contiguous() for name, value in self.reference.items()}
        progress = {**vars(self.progress)}
        save_file({**tensors, ORDER: progress.pop("order_state")}, folder / TENSORS)
        groups, generators = self.optimizer["param_groups"], self.generators.plain
        told = {"progress": progress, "trainer": self.facts, "param_groups": groups, "generators": generators}
        (folder / STATE).write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        """What ``write`` wrote."""
        tensors, told = load_file(folder / TENSORS), json.loads((folder / STATE).read_text(encoding="utf-8"))
        progress = Progress(**told["progress"], order_state=tensors.pop(ORDER))
        values: dict[int, dict[str, torch.Tensor]] = {}
        for name in [name for name in tensors if name.startswith(OPTIMIZER)]:
            _, number, key = name.split("/")
            values.setdefault(int(number), {})[key] = tensors.pop(name)
        optimizer = {"state": values, "param_groups": told["param_groups"]}
        names = [name for name in tensors if name.startswith(REFERENCE)]
        reference = {name.removeprefix(REFERENCE): tensors.pop(name) for name in names}
        return cls(progress, told["trainer"], optimizer, Generators(tensors, told["generators"]), reference)


@dataclass(frozen=True)
class TrainingStates:
    """The states of one run."""

    run: Path  # its folder
    keep: int = 1  # how many remain; older ones are removed

    def paths(self) -> list[Path]:
        """Their folders, oldest first."""
        return sorted(path for path in (self.run / FOLDER).glob("step-*") if path.is_dir())

    def numbering(self) -> Numbering | None:
        """The numbers by which the states know their items; None where there is no state yet."""
        return next(filter(None, (read_numbering(path, "resume") for path in reversed(self.paths()))), None)

    def save(self, weights: Weights, state: TrainingState) -> None:
        """Write a state, then remove the oldest beyond ``keep``; ``RunError`` where it cannot be written."""
        progress = state.progress
        # What follows an epoch's validation comes after what went before it.
        path = self.run / FOLDER / f"step-{progress.all_steps:09d}-epoch-{progress.epoch:04d}"
        facts = {"step": progress.all_steps, "stage": progress.stage, "epoch": progress.epoch}
        write_llm_checkpoint(path, weights, facts, state.write)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load_newest(self, load_weights: Callable[[Checkpoint], object]) -> TrainingState | None:
        """Read the newest whole state, its weights by ``load_weights``; None where there is none yet.

        A damaged one is skipped with a warning; where all are damaged, a ``UserError`` is raised.
        """
        for left in (self.run / FOLDER).glob(".step-*"):  # by a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        found = self.paths()
        for path in reversed(found):
            try:
                load_weights(read_checkpoint(path))
            except DamagedCheckpoint as error:
                getLogger().warning(f"{error}. The state before it is taken, if there is one")
                continue
            getLogger().info(f"Training resumes from {path}")
            return TrainingState.read(path)
        if found:
            raise UserError(
                f"resume: all {len(found)} states in {self.run / FOLDER} are damaged; start the run again without resume"
            )
        return None

    def remove(self) -> None:
        """Remove all states, once the run no longer needs them."""
        shutil.rmtree(self.run / FOLDER, ignore_errors=True)
