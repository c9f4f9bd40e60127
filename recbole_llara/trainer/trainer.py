"""Training an LLM recommender inside RecBole's Trainer: its epochs, validation, early stopping, logs and boards stay.

An optimiser step reads ``train_batch_size`` rows, in forward passes of ``micro_batch_size`` rows of like length;
the answers' loss is the mean over all answer tokens of the step, however it is cut.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_llara.model.base import LLMRecommender, TrainingRows
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
        super().__init__(config, model)
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
            disable=not show_progress,
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
        """One optimiser step over [B] rows; returns its losses by name, which sum to what was minimised."""
        representation = self.stage.representation(self.step, self.total_steps)
        totals: dict[str, float] = {}
        with self._autocast():
            step = self.model.begin_step(rows, representation)
        for part in self._micro_batches(rows):
            with self._autocast():
                losses = self.model.step_losses(part, step)
            loss = torch.stack(list(losses.values())).sum()
            self._check_nan(loss)
            self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item()
        step.finish()
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _autocast(self) -> torch.autocast:
        dtype = self.model.compute_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _micro_batches(self, rows: TrainingRows) -> Iterator[TrainingRows]:
        """Rows of like length together, so that little is padded; parts of about equal size, so that none is a single row."""
        length = self.model.encoder.prompt_lengths(rows.history, rows.candidates)
        for part in length.argsort().tensor_split(math.ceil(len(length) / self.settings.micro_batch_size)):
            yield rows.take(part)

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
        save_llm_recommender(self.model, path, facts)
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
