"""What is said of a training whose numbers are finite no more."""

from collections.abc import Sequence
from logging import getLogger

from recbole_llara.model.losses import TrainingRows
from recbole_llara.utils.errors import Diverged

SHOWN = 5  # rows; the log names them all


def diverged(what: str, value: float, step: int, rows: TrainingRows, titles: Sequence[str], kept: str) -> Diverged:
    """The error that ends the training.

    Args:
        what: loss or gradient.
        value: what it is.
        step: optimiser steps done.
        rows: of the pass or step it came up in.
        titles: of all items.
        kept: what is on disk, and how to go on.
    """
    named = [f"{row} ({titles[item]!r})" for row, item in zip(rows.row_ids.tolist(), rows.targets.tolist(), strict=True)]
    getLogger().error(f"Training rows and their targets where the {what} is {value}: {', '.join(named)}")
    more = f" and {len(named) - SHOWN} more, in the log" if len(named) > SHOWN else ""
    return Diverged(
        f"training: the {what} is {value} at step {step}, expected a finite number; of the training rows "
        f"{', '.join(named[:SHOWN])}{more}. {kept}. Try a smaller learning_rate or max_grad_norm, or llm_dtype: float32"
    )
