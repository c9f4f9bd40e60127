"""How far a training has come, beside the weights: what a run that was stopped needs to go on as if it had not been."""

import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

STATE = "generator_state/"  # before the names of generators among the tensors of a training state


@dataclass
class Progress:
    """Where a training stands.

    Args:
        stage: of ``strategy.stages_of``, from 0.
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

    def facts(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {name: value for name, value in asdict(self).items() if name != "order_state"}

    @classmethod
    def from_facts(cls, facts: dict[str, Any], order_state: torch.Tensor) -> "Progress":
        """What ``facts`` gave, read back."""
        return cls(**{name.name: facts[name.name] for name in fields(cls) if name.name in facts}, order_state=order_state)


def generator_states() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The states of Python's, numpy's and torch's global generators, as tensors and as what JSON can hold."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {f"{STATE}numpy": torch.from_numpy(keys.astype(np.int64)), f"{STATE}torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"{STATE}cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": random.getstate(), "numpy": [name, position, has_gauss, cached]}


def restore_generators(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Put back what ``generator_states`` gave; the states of GPUs that are not here are left out."""
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    name, position, has_gauss, cached = plain["numpy"]
    np.random.set_state((name, tensors[f"{STATE}numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors[f"{STATE}torch"])
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"{STATE}cuda{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{STATE}cuda{number}"], number)
