"""Training an LLM recommender inside RecBole's Trainer: its epochs, validation, early stopping, logs and boards stay.

An optimiser step reads ``train_batch_size`` rows, in forward passes of ``micro_batch_size`` rows of like length;
the answers' loss is the mean over all answer tokens of the step, and other losses too are those of the whole step, however it
is cut. Where several processes train, the passes are dealt out among them and their gradients added up: the step is the
same. Where a pass's losses read something of all rows of the step, every row is previewed first. A training that was stopped goes on
from its last state and ends as if it had not been.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_llara.checkpoint.progress import Progress
from recbole_llara.config.settings import OptimSettings
from recbole_llara.llm.architecture import held_here
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.losses import Step, TrainingRows
from recbole_llara.prompt.curriculum import stages_of
from recbole_llara.prompt.representation import Representation
from recbole_llara.trainer.boards import BoardsMixin
from recbole_llara.trainer.divergence import diverged
from recbole_llara.trainer.evaluation import CandidateEvaluationMixin
from recbole_llara.trainer.resumable import ResumableMixin
from recbole_llara.trainer.schedule import learning_rate_factor
from recbole_llara.utils.processes import processes_of

T = TypeVar("T")


class LLMTrainer(BoardsMixin, ResumableMixin, CandidateEvaluationMixin, Trainer):
    """RecBole's Trainer for an ``LLMRecommender``.

    Args:
        config: the run's RunConfig.
        model: the recommender.
    """

    def __init__(self, config: Any, model: LLMRecommender) -> None:
        self.settings = OptimSettings.from_config(config)
        self.processes = processes_of(config)
        super().__init__(config, model)
        self.micro_batch_size = self.settings.micro_batch_size  # halved where memory runs out
        self.stages = stages_of(config)
        self.stage = self.stages[-1]
        self.progress = Progress()
        self.total_steps = 0  # of the stage
        self._worst_score = self.best_valid_score
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=model.compute_dtype == torch.float16)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Adam; weight decay falls on what ``weight_decay_on`` names."""
        projector = [] if self.model.item_tokens.projector is None else list(self.model.item_tokens.projector.parameters())
        decayed = {id(parameter) for parameter in projector}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in decayed]
        decay = self.settings.weight_decay
        on_others = decay if self.settings.weight_decay_on == "all" else 0.0
        groups = [{"params": projector, "weight_decay": decay}, {"params": others, "weight_decay": on_others}]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.settings.learning_rate)

    def fit(
        self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True, **kwargs: Any
    ) -> tuple[float, Any]:
        """Train one stage after another as RecBole does, from the state that ``resume_checkpoint`` loaded, if it did.

        A later stage goes on from the best checkpoint of the one before, with a fresh optimiser, a learning rate curve
        of its own and its own best score: what is kept in the end is the last stage's best.

        Returns:
            RecBole's best score and result on the validation rows, of the last stage.

        Raises:
            Stopped: somebody asked for it; the message says how to go on.
            RunError: a loss or gradient is not finite, or a state cannot be written.
        """
        self._tell_what_is_trained()
        self._saves_states = saved
        self._began = perf_counter()
        self._train_data = train_data
        if self._resumed:
            train_data.generator.set_state(self.progress.order_state)
        self.processes.equalise(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        result: tuple[float, Any] = (-1.0, None)
        callback = kwargs.pop("callback_fn", None)

        def after_validation(epoch: int, score: float) -> None:
            self._save_state(self.progress.next_epoch())
            if callback is not None:
                callback(epoch, score)

        for number in range(self.progress.stage, len(self.stages)):
            if number and saved and not self._resumed:
                self.load_checkpoint(self.saved_model_file)
            self._enter(number, len(train_data))
            if self._stage_is_over():
                self.eval_collector.data_collect(train_data)
                result = self.best_valid_score, self.best_valid_result
            else:
                result = super().fit(train_data, valid_data, verbose, saved, callback_fn=after_validation, **kwargs)
            self._resumed = False
        return result

    def _tell_what_is_trained(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        held = sum(p.numel() for p in self.model.parameters())
        self.logger.info(f"{trained:,} of {held:,} parameters are trained")
        if self.processes.count > 1:
            self.logger.info(f"{self.processes.count} processes share every optimiser step and every evaluation")
            if self.model.is_sharded:
                every = sum(p.numel() for p in self.model.llm.parameters())
                self.logger.info(f"This process holds {held_here(self.model.llm):,} of the LLM's {every:,} weights")

    def _enter(self, number: int, steps_an_epoch: int) -> None:
        """Make everything ready for a stage, or for the rest of one."""
        self.stage = stage = self.stages[number]
        first = sum(earlier.epochs for earlier in self.stages[:number])
        self.epochs = first + stage.epochs
        self.total_steps = stage.epochs * steps_an_epoch
        self.model.representation = stage.hard
        if not self._resumed:
            done = self.progress
            self.progress = replace(
                done, stage=number, epoch=first, batches=0, step=0, steps_before=done.all_steps, epoch_losses=[]
            )
            if number:
                self.optimizer = self._build_optimizer()
                self.cur_step, self.best_valid_score, self.best_valid_result = 0, self._worst_score, None
        self.start_epoch = self.progress.epoch
        tasks = stage.hard.name if stage.easy == stage.hard else f"{stage.easy.name} and {stage.hard.name}"
        self.logger.info(
            f"Stage {number + 1} of {len(self.stages)}: {tasks}, {stage.epochs} epochs of {steps_an_epoch:,} optimiser steps, "
            f"learning rate {stage.learning_rate:g}"
        )

    def _stage_is_over(self) -> bool:
        """Whether a state was saved at the very end of its stage."""
        return self._resumed and (self.progress.epoch >= self.epochs or self.cur_step > self.stopping_step)

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """One pass over the training rows, or the rest of one.

        Returns:
            the epoch's mean loss a token.
        """
        self.model.train()
        progress = self.progress
        if progress.epoch != epoch_idx:
            progress = self.progress = progress.next_epoch()
        begun = progress.batches
        progress.order_state = train_data.generator.get_state()
        batches = tqdm(
            islice(train_data, begun, None),
            ncols=120,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
            total=len(train_data),
            initial=begun,
            disable=not (show_progress and self.processes.is_main),
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
        )
        every = self.settings.save_steps or math.inf
        with self.stop.deferred(), batches:
            for interaction in batches:
                batches.set_postfix_str(self._train_batch(interaction, epoch_idx), refresh=False)
                if progress.all_steps % every == 0 or progress.batches == len(train_data):
                    self._save_state(progress)
                self._stop_if_asked()
        self._stop_if_asked()
        return sum(progress.epoch_losses) / len(progress.epoch_losses)

    def _train_batch(self, interaction: Any, epoch: int) -> str:
        """One optimiser step; returns what the progress bar shows of it."""
        progress, started = self.progress, perf_counter()
        rate = self.stage.learning_rate * learning_rate_factor(progress.step, self.total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        hard = self.stage.hard_probability(progress.step, self.total_steps)
        parts = self._train_step(self.model.training_rows(interaction, epoch))
        seconds = perf_counter() - started
        self._write_step(parts, rate, hard, len(interaction) / seconds)
        progress.epoch_losses.append(sum(parts.values()))
        progress.step += 1
        progress.batches += 1
        progress.rows_trained += len(interaction)
        progress.seconds_trained += seconds
        recent = progress.epoch_losses[-50:]
        return f"loss {sum(recent) / len(recent):.4f} lr {rate:.1e} p(hard) {hard:.2f}"

    def _train_step(self, rows: TrainingRows) -> dict[str, float]:
        """One optimiser step over [B] rows; returns its losses by name, which sum to what was minimised.

        Where a process runs out of memory, all begin the step again with passes of half as many rows.
        """
        representation = self.stage.representation(self.progress.step, self.total_steps)
        while True:
            passed = self.processes.gather((self._passes(rows, representation), self.stop.asked))
            every = [losses for losses, _ in passed]
            if None not in every:
                break
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_passes()
        self.processes.sum_gradients(self.model.parameters())
        self._asked_to_stop = next((asked for _, asked in passed if asked is not None), None)
        totals: dict[str, float] = {}
        for losses in every:
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.settings.max_grad_norm or math.inf)
        if not self.scaler.is_enabled():  # which passes over such steps by itself, and lowers its scale
            self._check_finite("gradient", norm, rows)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _passes(self, rows: TrainingRows, representation: Representation) -> dict[str, float] | None:
        """This process's forward and backward passes of a step.

        Returns:
            their losses by name; None where memory ran out, in this process or in one whose previews all wait for.
        """
        parts = list(self._micro_batches(rows))
        dealt = [(part, 1.0) for part in self.processes.share(parts)]
        if self.model.is_sharded and len(dealt) * self.processes.count < len(parts):
            dealt.append((parts[0], 0.0))  # every process passes through the blocks equally often
        step = self._within_memory(lambda: self._begin_step(rows, representation))
        if self.model.needs_previews and len(parts) > 1:
            step = self._with_previews(step, [part for part, _ in dealt])
        return None if step is None else self._within_memory(lambda: self._take_passes(step, dealt))

    def _within_memory(self, compute: Callable[[], T]) -> T | None:
        """What is computed; None where memory ran out and passes can be made smaller."""
        try:
            return compute()
        except RuntimeError as error:
            # Where weights are dealt out the other processes wait inside a pass, and cannot begin again.
            if not should_reduce_batch_size(error) or self.micro_batch_size == 1 or self.model.is_sharded:
                raise
        clear_device_cache(garbage_collection=True)  # here, where the error's frames are gone
        return None

    def _begin_step(self, rows: TrainingRows, representation: Representation) -> Step:
        with self._autocast():
            return self.model.begin_step(rows, representation, self.progress.all_steps, self.micro_batch_size)

    def _with_previews(self, step: Step | None, parts: Sequence[TrainingRows]) -> Step | None:
        """A step whose passes know what they read of each other's rows; None where memory ran out in any process.

        Args:
            step: None where memory ran out in this process, which the others learn here.
            parts: the rows of this process's passes.
        """
        every = self.processes.gather(None if step is None else self._within_memory(lambda: self._preview(step, parts)))
        if any(previews is None for previews in every):
            return None
        places, previews = zip(*(preview for own in every for preview in own), strict=True)
        return step.with_previews(torch.cat(places), torch.cat(previews))

    def _preview(self, step: Step, parts: Sequence[TrainingRows]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Places [B] and previews [B, D] of each part, on the CPU, so that processes can hand them round."""
        found = []
        for part in parts:
            with self._autocast():
                found.append((part.places, self.model.preview(part, step).cpu()))
        return found

    def _take_passes(self, step: Step, dealt: Sequence[tuple[TrainingRows, float]]) -> dict[str, float]:
        """Each pass forward and backward, with the weight of its losses; returns their sums by name."""
        own: dict[str, float] = {}
        for part, weight in dealt:
            with self._autocast():
                losses = {name: weight * value for name, value in self.model.step_losses(part, step).items()}
            loss = torch.stack(list(losses.values())).sum()
            self._check_finite("loss", loss, part)
            self.scaler.scale(loss).backward()
            for name, value in losses.items():
                own[name] = own.get(name, 0.0) + value.item()
        step.finish()
        return own

    def _check_finite(self, what: str, value: torch.Tensor, rows: TrainingRows) -> None:
        """Raise where a loss or a gradient is NaN or infinite; the weights are still those of the step before."""
        if not torch.isfinite(value):
            raise diverged(what, value.item(), self.progress.all_steps, rows, self.model.encoder.titles, self._what_is_kept())

    def _halve_passes(self) -> None:
        """Let each forward pass hold half as many rows from now on; an optimiser step keeps all of its rows."""
        before, self.micro_batch_size = self.micro_batch_size, max(1, self.micro_batch_size // 2)
        self.logger.warning(
            f"Out of memory at step {self.progress.step}: micro_batch_size {before} becomes {self.micro_batch_size}, in more passes; "
            f"a step still has train_batch_size {self.settings.train_batch_size} rows"
        )

    def _autocast(self) -> torch.autocast:
        dtype = self.model.compute_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _micro_batches(self, rows: TrainingRows) -> Iterator[TrainingRows]:
        """Rows of like length together, so that little is padded; parts of about equal size, so that none is a single row.

        As many parts for every process, while there are rows.
        """
        length = self.model.encoder.prompt_lengths(rows.history, rows.candidates)
        count = self.processes.count
        parts = math.ceil(len(length) / (self.micro_batch_size * count)) * count
        for part in length.argsort().tensor_split(min(parts, len(length))):
            yield rows.take(part)
