"""One optimiser step of an LLM recommender, from its rows to the moved weights.

A step reads ``train_batch_size`` rows, in forward passes of ``micro_batch_size`` rows of like length. The answers' loss is the
mean over all answer tokens of the step, and other losses too are those of the whole step, however it is cut. Where several
processes train, the passes are dealt out among them and their gradients added up: the step is the same. Where the losses of a
pass read something of all rows of the step, every row is previewed first.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import TypeVar

import torch
from torch.nn.utils import clip_grad_norm_

from recbole_llara.config.settings import OptimSettings
from recbole_llara.evaluator.evaluation import in_memory
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.losses import Step, TrainingRows
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import Diverged, StopRequest
from recbole_llara.utils.processes import Processes

T = TypeVar("T")
WeightedPass = tuple[TrainingRows, float]  # rows of a forward pass, and the weight of its losses
NAMED_ROWS = 5  # in an error; the log names them all


class OptimiserSteps:
    """Takes the optimiser steps of a training; ``processes`` share each of them, and may each be asked to ``stop``.

    Attributes:
        asked_to_stop: the first signal that any process received before the latest step.
        micro_batch_size: rows of a forward pass at most; halved where memory runs out.
        scaler: of the gradients, for float16.
    """

    def __init__(self, model: LLMRecommender, settings: OptimSettings, processes: Processes, stop: StopRequest) -> None:
        self.model, self.settings, self.processes, self.stop = model, settings, processes, stop
        self.asked_to_stop: int | None = None
        self.micro_batch_size = settings.micro_batch_size
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.compute_dtype == torch.float16)

    def take(
        self, optimizer: torch.optim.Optimizer, rows: TrainingRows, representation: Representation, number: int
    ) -> dict[str, float]:
        """Take one step over [B] rows. Where a process runs out of memory, all begin again with passes of half as many rows.

        Args:
            optimizer: of the model's trained parameters.
            rows: all rows of the step.
            representation: how items stand in its prompts.
            number: of the step, counted over the whole training.

        Returns:
            The losses by name, which sum to what was minimised.

        Raises:
            Diverged: a loss or the gradient is not finite; the weights are those of the step before.
        """
        while True:
            parts = self._cut(rows)
            own = self._own_passes(parts)
            step = self._in_memory(self._begin, rows, representation, number)
            if self.model.needs_previews and len(parts) > 1:
                step = self._with_previews(step, [part for part, _ in own])
            losses = None if step is None else self._in_memory(self._run_passes, step, own)
            everyone = self.processes.gather((losses, self.stop.asked))
            if all(losses is not None for losses, _ in everyone):
                break
            optimizer.zero_grad(set_to_none=True)
            before, self.micro_batch_size = self.micro_batch_size, max(1, self.micro_batch_size // 2)
            getLogger().warning(
                f"Out of memory at step {number}: micro_batch_size {before} becomes {self.micro_batch_size}, in more passes; "
                f"a step still has train_batch_size {self.settings.train_batch_size} rows"
            )
        self.processes.sum_gradients(self.model.parameters())
        self.scaler.unscale_(optimizer)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = clip_grad_norm_(trained, self.settings.max_grad_norm or math.inf)
        if not self.scaler.is_enabled():  # the scaler skips such a step by itself, and lowers its scale
            self._check_finite("gradient", norm, number, rows)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.asked_to_stop = next((asked for _, asked in everyone if asked is not None), None)
        return _summed([losses for losses, _ in everyone])

    def _cut(self, rows: TrainingRows) -> list[TrainingRows]:
        """Rows of like length together, so that little is padded, in parts of about equal size; equally many for each process."""
        length = self.model.encoder.prompt_lengths(rows.history, rows.candidates)
        count = self.processes.count
        parts = math.ceil(len(length) / (self.micro_batch_size * count)) * count
        return [rows.take(part) for part in length.argsort().tensor_split(min(parts, len(length)))]

    def _own_passes(self, parts: Sequence[TrainingRows]) -> list[WeightedPass]:
        """The passes of this process; where the LLM's weights are dealt out, each process makes as many."""
        own = [(part, 1.0) for part in self.processes.share(parts)]
        if self.model.is_sharded and len(own) * self.processes.count < len(parts):
            own.append((parts[0], 0.0))
        return own

    def _begin(self, rows: TrainingRows, representation: Representation, number: int) -> Step:
        with self.model.training_arithmetic():
            return self.model.begin_step(rows, representation, number, self.micro_batch_size)

    def _with_previews(self, step: Step | None, parts: Sequence[TrainingRows]) -> Step | None:
        """The step with the previews of all its rows, from all processes; None where memory ran out in any of them."""
        own = None if step is None else self._in_memory(self._preview, step, parts)
        everyone = self.processes.gather(own)
        if any(previews is None for previews in everyone):
            return None
        places, previews = zip(*(preview for own in everyone for preview in own), strict=True)
        return step.with_previews(torch.cat(places), torch.cat(previews))

    def _preview(self, step: Step, parts: Sequence[TrainingRows]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Places [B] and previews [B, D] of each part, on the CPU, so that processes can exchange them."""
        with self.model.training_arithmetic():
            return [(part.places, self.model.preview(part, step).cpu()) for part in parts]

    def _run_passes(self, step: Step, passes: Sequence[WeightedPass]) -> dict[str, float]:
        """Each pass forward and backward; returns the sums of their losses by name."""
        each: list[dict[str, torch.Tensor]] = []
        for part, weight in passes:
            with self.model.training_arithmetic():
                losses = {name: weight * value for name, value in self.model.step_losses(part, step).items()}
            self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            each.append({name: value.detach() for name, value in losses.items()})
        step.finish()
        # Read once, after all passes are launched: each read waits for the GPU.
        for (part, _), losses in zip(passes, each, strict=True):
            self._check_finite("loss", torch.stack(list(losses.values())).sum(), step.number, part)
        return _summed([{name: value.item() for name, value in losses.items()} for losses in each])

    def _in_memory(self, compute: Callable[..., T], *arguments: object) -> T | None:
        # Where weights are dealt out the other processes wait inside a pass, and cannot begin again.
        return in_memory(self.micro_batch_size > 1 and not self.model.is_sharded, compute, *arguments)

    def _check_finite(self, what: str, value: torch.Tensor, number: int, rows: TrainingRows) -> None:
        if torch.isfinite(value):
            return
        titles = self.model.encoder.titles
        targets = zip(rows.row_ids.tolist(), rows.targets.tolist(), strict=True)
        named = [f"{row} ({titles[item]!r})" for row, item in targets]
        getLogger().error(f"Training rows and their targets where the {what} is {value.item()}: {', '.join(named)}")
        more = f" and {len(named) - NAMED_ROWS} more, in the log" if len(named) > NAMED_ROWS else ""
        raise Diverged(
            f"training: the {what} is {value.item()} at step {number}, expected a finite number; of the training rows "
            f"{', '.join(named[:NAMED_ROWS])}{more}. Try a smaller learning_rate or max_grad_norm, or llm_dtype: float32"
        )


def _summed(each: Sequence[dict[str, float]]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for losses in each:
        totals.update(losses)
    return dict(totals)
