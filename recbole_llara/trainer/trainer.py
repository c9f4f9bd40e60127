"""Training an LLM recommender inside RecBole's Trainer: its epochs, validation, early stopping, logs and boards stay.

An optimiser step reads ``train_batch_size`` rows, in forward passes of ``micro_batch_size`` rows of like length;
the answers' loss is the mean over all answer tokens of the step, however it is cut. Where several processes train, the
passes are dealt out among them and their gradients added up: the step is the same.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_llara.model.base import LLMRecommender, TrainingRows
from recbole_llara.model.sharding import held_here
from recbole_llara.processes import processes_of
from recbole_llara.prompt.representation import Representation
from recbole_llara.settings import OptimSettings
from recbole_llara.trainer.candidate_evaluation import CandidateEvaluationMixin
from recbole_llara.trainer.checkpoint import load_llm_recommender, save_llm_recommender
from recbole_llara.trainer.strategy import stages_of


def learning_rate_factor(step: int, total_steps: int, settings: OptimSettings) -> float:
    """The share of the maximal learning rate at an optimiser step: linear warm-up, then cosine (LLaRA sec. 5.1.2).

    Args:
        step: counted from 0.
        total_steps: of the whole training.
        settings: its ``warmup_ratio``, ``warmup_learning_rate_ratio`` and ``min_learning_rate_ratio``.
    """
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        start = settings.warmup_learning_rate_ratio
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    end = settings.min_learning_rate_ratio
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class LLMTrainer(CandidateEvaluationMixin, Trainer):
    """RecBole's Trainer for an ``LLMRecommender``.

    Args:
        config: the run's LLaRAConfig.
        model: the recommender.
    """

    best_epoch: int | None = None

    def __init__(self, config: Any, model: LLMRecommender) -> None:
        self.settings = OptimSettings.from_config(config)
        self.processes = processes_of(config)
        super().__init__(config, model)
        self.micro_batch_size = self.settings.micro_batch_size  # halved where memory runs out
        self.stages = stages_of(config)
        self.stage = self.stages[-1]
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(""))
        self.step, self.total_steps = 0, 0  # of the stage
        self.steps_before = 0  # those of earlier stages
        self.rows_trained, self.seconds_trained = 0, 0.0
        self.training_log: list[dict[str, Any]] = []  # what ``training.jsonl`` will hold: steps, and validations
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
        """Train one stage after another as RecBole does; on Ctrl-C say where the best checkpoint is, then let it pass.

        A later stage goes on from the best checkpoint of the one before, with a fresh optimiser, a learning rate curve
        of its own and its own best score: what is kept in the end is the last stage's best.

        Returns:
            RecBole's best score and result on the validation rows, of the last stage.
        """
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        held = sum(p.numel() for p in self.model.parameters())
        self.logger.info(f"{trained:,} of {held:,} parameters are trained")
        if self.processes.count > 1:
            self.logger.info(f"{self.processes.count} processes share every optimiser step and every evaluation")
            if self.model.is_sharded:
                every = sum(p.numel() for p in self.model.llm.parameters())
                self.logger.info(f"This process holds {held_here(self.model.llm):,} of the LLM's {every:,} weights")
        self.processes.equalise(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        result: tuple[float, Any] = (-1.0, None)
        try:
            for number in range(len(self.stages)):
                if number and saved:
                    self.load_checkpoint(self.saved_model_file)
                self._enter(number, len(train_data))
                result = super().fit(train_data, valid_data, verbose, saved, **kwargs)
            return result
        except KeyboardInterrupt:
            kept = "no checkpoint yet" if self.best_epoch is None else f"best checkpoint kept: {self.saved_model_file}"
            self.logger.info(f"Training interrupted at step {self.step} of {self.total_steps}; {kept}")
            raise

    def _enter(self, number: int, steps_an_epoch: int) -> None:
        """Make everything ready for a stage."""
        self.stage = stage = self.stages[number]
        self.start_epoch = sum(earlier.epochs for earlier in self.stages[:number])
        self.epochs = self.start_epoch + stage.epochs
        self.steps_before += self.step
        self.step, self.total_steps = 0, stage.epochs * steps_an_epoch
        self.model.representation = stage.hard
        if number:
            self.optimizer = self._build_optimizer()
            self.cur_step, self.best_valid_score, self.best_valid_result = 0, self._worst_score, None
        tasks = stage.hard.name if stage.easy == stage.hard else f"{stage.easy.name} and {stage.hard.name}"
        self.logger.info(
            f"Stage {number + 1} of {len(self.stages)}: {tasks}, {stage.epochs} epochs of {steps_an_epoch:,} optimiser steps, "
            f"learning rate {stage.learning_rate:g}"
        )

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """One pass over the training rows.

        Returns:
            the epoch's mean loss a token.
        """
        self.model.train()
        started = perf_counter()
        batches = tqdm(
            train_data,
            ncols=120,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
            disable=not (show_progress and self.processes.is_main),
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
        )
        losses: list[float] = []
        for interaction in batches:
            rate = self.stage.learning_rate * learning_rate_factor(self.step, self.total_steps, self.settings)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            parts = self._train_step(self.model.training_rows(interaction, epoch_idx))
            losses.append(sum(parts.values()))
            hard = self.stage.hard_probability(self.step, self.total_steps)
            self._write_step(parts, rate, hard)
            recent = losses[-50:]
            batches.set_postfix_str(f"loss {sum(recent) / len(recent):.4f} lr {rate:.1e} p(hard) {hard:.2f}", refresh=False)
            self.step += 1
            self.rows_trained += len(interaction)
        self.seconds_trained += perf_counter() - started
        return sum(losses) / len(losses)

    def _train_step(self, rows: TrainingRows) -> dict[str, float]:
        """One optimiser step over [B] rows; returns its losses by name, which sum to what was minimised.

        Where a process runs out of memory, all begin the step again with passes of half as many rows.
        """
        representation = self.stage.representation(self.step, self.total_steps)
        while True:
            own = self._passes(rows, representation)
            every = self.processes.gather(own)
            if None not in every:
                break
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_passes()
        self.processes.sum_gradients(self.model.parameters())
        totals: dict[str, float] = {}
        for losses in every:
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _passes(self, rows: TrainingRows, representation: Representation) -> dict[str, float] | None:
        """This process's forward and backward passes of a step; returns their losses by name, None where memory ran out."""
        try:
            return self._passes_whole(rows, representation)
        except RuntimeError as error:
            # Where weights are dealt out the other processes wait inside a pass, and cannot begin again.
            if not should_reduce_batch_size(error) or self.micro_batch_size == 1 or self.model.is_sharded:
                raise
        clear_device_cache(garbage_collection=True)  # here, where the error's frames are gone
        return None

    def _passes_whole(self, rows: TrainingRows, representation: Representation) -> dict[str, float]:
        """As ``_passes``; memory that runs out is an error."""
        own: dict[str, float] = {}
        self._seed_pass(0)
        with self._autocast():
            step = self.model.begin_step(rows, representation)
        parts = list(enumerate(self._micro_batches(rows), 1))
        dealt = [(number, part, 1.0) for number, part in self.processes.share(parts)]
        if self.model.is_sharded and len(dealt) * self.processes.count < len(parts):
            dealt.append((*parts[0], 0.0))  # every process passes through the blocks equally often
        for number, part, weight in dealt:
            self._seed_pass(number)
            with self._autocast():
                losses = {name: weight * value for name, value in self.model.step_losses(part, step).items()}
            loss = torch.stack(list(losses.values())).sum()
            self._check_nan(loss)
            self.scaler.scale(loss).backward()
            for name, value in losses.items():
                own[name] = own.get(name, 0.0) + value.item()
        step.finish()
        return own

    def _halve_passes(self) -> None:
        """Let each forward pass hold half as many rows from now on; an optimiser step keeps all of its rows."""
        before, self.micro_batch_size = self.micro_batch_size, max(1, self.micro_batch_size // 2)
        self.logger.warning(
            f"Out of memory at step {self.step}: micro_batch_size {before} becomes {self.micro_batch_size}, in more passes; "
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

    def _seed_pass(self, number: int) -> None:
        """Make dropout a function of (seed, step, forward pass), whichever process makes the pass."""
        key = np.random.SeedSequence((self.config["seed"], self.steps_before + self.step, number))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def _write_step(self, losses: dict[str, float], rate: float, hard: float) -> None:
        """Tell the boards and the log of an optimiser step."""
        values = {"loss": sum(losses.values()), "learning_rate": rate, "hard_probability": hard}
        if len(losses) > 1:
            values |= {f"loss_{name}": value for name, value in losses.items()}
        step = self.steps_before + self.step
        for name, value in values.items():
            self.tensorboard.add_scalar(f"step/{name}", value, step)
        self.training_log.append({"step": step, **values})

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.training_log.append({"step": self.steps_before + self.step, "valid": dict(result)})
        return score, result

    # --- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        facts = {
            "epoch": epoch,
            "step": self.steps_before + self.step,
            "stage": self.stages.index(self.stage) + 1,
            "valid_metric": self.valid_metric,
            "best_valid_score": float(self.best_valid_score) if math.isfinite(self.best_valid_score) else None,
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "protocol": self.config["protocol"],
            "llm_path": self.config["llm_path"],
        }
        if self.processes.is_main:
            save_llm_recommender(self.model, path, facts)
        self.processes.wait()
        self.best_epoch = epoch if epoch >= 0 else None
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def load_checkpoint(self, path: str | Path) -> None:
        """Load what was trained into the model, strictly.

        Raises:
            UserError: no such folder, or one of another model, LLM, recommender or representation.
        """
        facts = load_llm_recommender(self.model, Path(path))
        self.logger.info(f"Loading what was trained from {path} (epoch {facts['epoch']})")
