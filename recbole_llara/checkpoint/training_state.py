"""States of a training under way: a checkpoint and, beside it, the optimiser, the progress and every generator.

They lie in ``<run>/training_state/step-<steps>/``, the last ``save_total_limit`` of them; a run that has finished keeps none.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from recbole_llara.checkpoint.llm_weights import (
    DamagedCheckpoint,
    has_other_prompts,
    load_llm_recommender,
    read_meta,
    save_llm_recommender,
)
from recbole_llara.checkpoint.progress import Progress, generator_states
from recbole_llara.data.numbering import Numbering, read_numbering
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import UserError

FOLDER, TENSORS, STATE = "training_state", "training.safetensors", "training.json"
OPTIMIZER, ORDER = "optimizer/", "order"


@dataclass(frozen=True)
class TrainingState:
    """What is beside the weights in a state.

    Args:
        progress: how far the training has come.
        facts: what the trainer keeps of its own, as JSON has it.
        optimizer: as its ``state_dict`` gives it.
        tensors, generators: of ``progress.generator_states``.
    """

    progress: Progress
    facts: dict[str, Any]
    optimizer: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    generators: dict[str, Any]


def save_state(
    model: Any,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    facts: Mapping[str, Any],
    run: Path,
    keep: int,
) -> Path:
    """Write a state, then remove the oldest beyond ``keep``.

    Args:
        model, optimizer, progress: of the training.
        facts: what JSON can hold of the rest.
        run: the run's folder.
        keep: how many states remain.

    Returns:
        the state's folder.

    Raises:
        RunError: it cannot be written; the states before it are untouched.
    """

    def fill(folder: Path) -> None:
        state = optimizer.state_dict()
        tensors, plain = generator_states()
        for number, values in state["state"].items():
            tensors |= {f"{OPTIMIZER}{number}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
        save_file({**tensors, ORDER: progress.order_state}, folder / TENSORS)
        everything = {
            "progress": progress.facts(),
            "trainer": dict(facts),
            "param_groups": state["param_groups"],
            "generators": plain,
        }
        (folder / STATE).write_text(json.dumps(everything), encoding="utf-8")

    # What follows an epoch's validation comes after what went before it.
    path = run / FOLDER / f"step-{progress.all_steps:09d}-epoch-{progress.epoch:04d}"
    save_llm_recommender(model, path, {"step": progress.all_steps, "stage": progress.stage, "epoch": progress.epoch}, fill)
    for old in states(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def states(run: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step-*") if path.is_dir())


def state_numbering(run: Path) -> Numbering | None:
    """By which numbers the states of a run know its items; None where there is none yet."""
    found = (read_numbering(path, "resume") for path in reversed(states(run)))
    return next((numbering for numbering in found if numbering is not None), None)


def load_state(model: Any, run: Path, representations: Sequence[Representation]) -> TrainingState | None:
    """Load the newest whole state of a run, its weights into the model; None where there is none yet.

    A damaged one is passed over with a warning, for the one before it.

    Args:
        model: built by the run's configuration; its representation becomes that of the state's stage.
        run: the run's folder.
        representations: of the run's stages.

    Raises:
        UserError: all states are damaged, or they belong to another run.
    """
    for left in (run / FOLDER).glob(".step-*"):  # by a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    found = states(run)
    for path in reversed(found):
        try:
            model.representation = representations[read_meta(path)["stage"]]
            load_llm_recommender(model, path)
        except DamagedCheckpoint as error:
            getLogger().warning(f"{error}. The state before it is taken, if there is one")
            continue
        if has_other_prompts(model):
            raise UserError(
                f"resume: {run} was begun under other prompts: the templates of prompt_file or domain have changed since; bring them "
                "back, or start a new run"
            )
        getLogger().info(f"Training goes on from {path}")
        return _read(path)
    if found:
        raise UserError(f"resume: all {len(found)} states in {run / FOLDER} are damaged; start the run again without resume")
    return None


def _read(path: Path) -> TrainingState:
    tensors = load_file(path / TENSORS)
    everything = json.loads((path / STATE).read_text(encoding="utf-8"))
    values: dict[int, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.startswith(OPTIMIZER)]:
        _, number, key = name.split("/")
        values.setdefault(int(number), {})[key] = tensors.pop(name)
    return TrainingState(
        progress=Progress.from_facts(everything["progress"], tensors.pop(ORDER)),
        facts=everything["trainer"],
        optimizer={"state": values, "param_groups": everything["param_groups"]},
        tensors=tensors,
        generators=everything["generators"],
    )


def remove_states(run: Path) -> None:
    """Remove all states of a run that needs them no more."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
