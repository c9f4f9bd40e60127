"""States of an unfinished training: a checkpoint and, beside it, the optimiser, the progress and every generator.

They lie in ``<run>/training_state/step-<steps>-epoch-<epoch>/``, the last ``save_total_limit`` of them; a finished run keeps
none. A run that was stopped goes on from the last one as if it had not been stopped.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recbole_llara.checkpoint.weights import Checkpoint, DamagedCheckpoint, LLMWeights, read_checkpoint, write_llm_checkpoint
from recbole_llara.data.numbering import Numbering, read_numbering
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.random_state import Generators

FOLDER, TENSORS, STATE = "training_state", "training.safetensors", "training.json"
OPTIMIZER, ORDER = "optimizer/", "order"  # names among the tensors


@dataclass
class Progress:
    """Where a training stands.

    Args:
        stage: of ``curriculum.stages_of``, from 0.
        epoch: counted over all stages, from 0.
        batches: of the epoch, done.
        step: optimiser steps of the stage, done.
        steps_before: those of earlier stages.
        rows_trained: rows of all steps.
        seconds_trained: (float, seconds) spent in the steps.
        seconds: (float, seconds) spent on the training as a whole, validation included.
        epoch_losses: of the epoch's steps.
        training_log: what ``training.jsonl`` will hold: steps, and validations.
        order_state: [bytes] uint8, the state from which the training rows' loader draws the epoch's order.
    """

    stage: int = 0
    epoch: int = 0
    batches: int = 0
    step: int = 0
    steps_before: int = 0
    rows_trained: int = 0
    seconds_trained: float = 0.0
    seconds: float = 0.0
    epoch_losses: list[float] = field(default_factory=list)
    training_log: list[dict[str, Any]] = field(default_factory=list)
    order_state: torch.Tensor | None = None

    @property
    def all_steps(self) -> int:
        """Optimiser steps of all stages so far."""
        return self.steps_before + self.step

    def next_epoch(self) -> "Progress":
        """At the beginning of the epoch after this one."""
        return Progress(**{**vars(self), "epoch": self.epoch + 1, "batches": 0, "epoch_losses": []})


@dataclass(frozen=True)
class TrainingState:
    """What a state holds beside the weights.

    Args:
        progress: how far the training has come.
        facts: what JSON can hold of the rest that the trainer needs.
        optimizer: its ``state_dict``.
        generators: of ``Generators.now``.
    """

    progress: Progress
    facts: dict[str, Any]
    optimizer: dict[str, Any]
    generators: Generators


@dataclass(frozen=True)
class TrainingStates:
    """The states of one run.

    Args:
        run: the run's folder.
        keep: how many remain; older ones are removed.
    """

    run: Path
    keep: int = 1

    def paths(self) -> list[Path]:
        """Their folders, oldest first."""
        return sorted(path for path in (self.run / FOLDER).glob("step-*") if path.is_dir())

    def numbering(self) -> Numbering | None:
        """The numbers by which the states know their items; None where there is no state yet."""
        found = (read_numbering(path, "resume") for path in reversed(self.paths()))
        return next((numbering for numbering in found if numbering is not None), None)

    def save(self, weights: LLMWeights, state: TrainingState) -> None:
        """Write a state, then remove the oldest beyond ``keep``.

        Raises:
            RunError: it cannot be written; the states before it are untouched.
        """
        progress = state.progress
        # What follows an epoch's validation comes after what went before it.
        path = self.run / FOLDER / f"step-{progress.all_steps:09d}-epoch-{progress.epoch:04d}"
        facts = {"step": progress.all_steps, "stage": progress.stage, "epoch": progress.epoch}
        write_llm_checkpoint(path, weights, facts, lambda folder: _write(state, folder))
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load_newest(self, load_weights: Callable[[Checkpoint], object]) -> TrainingState | None:
        """Read the newest whole state; None where there is none yet. A damaged one is skipped with a warning.

        Args:
            load_weights: puts the state's weights into the model.

        Raises:
            UserError: all states are damaged, or they belong to another run.
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
            getLogger().info(f"Training goes on from {path}")
            return _read(path)
        if found:
            raise UserError(
                f"resume: all {len(found)} states in {self.run / FOLDER} are damaged; start the run again without resume"
            )
        return None

    def remove(self) -> None:
        """Remove all of them, of a run that needs them no more."""
        shutil.rmtree(self.run / FOLDER, ignore_errors=True)


def _write(state: TrainingState, folder: Path) -> None:
    tensors = dict(state.generators.tensors)
    for number, values in state.optimizer["state"].items():
        tensors |= {f"{OPTIMIZER}{number}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
    save_file({**tensors, ORDER: state.progress.order_state}, folder / TENSORS)
    everything = {
        "progress": {name: value for name, value in asdict(state.progress).items() if name != "order_state"},
        "trainer": state.facts,
        "param_groups": state.optimizer["param_groups"],
        "generators": state.generators.plain,
    }
    (folder / STATE).write_text(json.dumps(everything), encoding="utf-8")


def _read(path: Path) -> TrainingState:
    tensors = load_file(path / TENSORS)
    everything = json.loads((path / STATE).read_text(encoding="utf-8"))
    values: dict[int, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.startswith(OPTIMIZER)]:
        _, number, key = name.split("/")
        values.setdefault(int(number), {})[key] = tensors.pop(name)
    known = {each.name for each in fields(Progress)}
    progress = {name: value for name, value in everything["progress"].items() if name in known}
    return TrainingState(
        progress=Progress(**progress, order_state=tensors.pop(ORDER)),
        facts=everything["trainer"],
        optimizer={"state": values, "param_groups": everything["param_groups"]},
        generators=Generators(tensors, everything["generators"]),
    )
