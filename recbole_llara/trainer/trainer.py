"""Training an LLM recommender inside RecBole's Trainer: its epochs, validation, early stopping, logs and boards stay.

An optimiser step reads ``train_batch_size`` rows, in forward passes of ``micro_batch_size`` rows of like length;
its loss is the mean over all answer tokens of the step, however it is cut.
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
from recbole_llara.settings import OptimSettings, PromptSettings
from recbole_llara.trainer.candidate_evaluation import CandidateEvaluationMixin
from recbole_llara.trainer.checkpoint import load_llm_recommender, save_llm_recommender
from recbole_llara.trainer.strategy import make_strategy

CHECKPOINT_FOLDER = "checkpoint"


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
        prompt = PromptSettings.from_config(config)
        self.strategy = make_strategy(prompt.strategy, prompt.curriculum, prompt.representation, config["seed"])
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(""))
        self.step, self.total_steps = 0, 0
        self.rows_trained, self.seconds_trained = 0, 0.0
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=model.compute_dtype == torch.float16)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Adam; weight decay falls on the projector alone, as in LLaRA's public code."""
        projector = [] if self.model.projector is None else list(self.model.projector.parameters())
        decayed = {id(parameter) for parameter in projector}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in decayed]
        groups = [{"params": projector, "weight_decay": self.settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.settings.learning_rate)

    def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> tuple[float, Any]:
        """Train as RecBole does; on Ctrl-C say where the best checkpoint is, then let the interrupt pass."""
        self.total_steps = self.epochs * len(train_data)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        held = sum(p.numel() for p in self.model.parameters())
        self.logger.info(f"{trained:,} of {held:,} parameters are trained, in {self.total_steps:,} optimiser steps")
        try:
            return super().fit(train_data, *args, **kwargs)
        except KeyboardInterrupt:
            kept = "no checkpoint yet" if self.best_epoch is None else f"best checkpoint kept: {self.saved_model_file}"
            self.logger.info(f"Training interrupted at step {self.step} of {self.total_steps}; {kept}")
            raise

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
            rate = self.settings.learning_rate * learning_rate_factor(self.step, self.total_steps, self.settings)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses.append(self._train_step(self.model.training_rows(interaction, epoch_idx)))
            hard = self.strategy.hard_probability(self.step, self.total_steps)
            self._write_step(losses[-1], rate, hard)
            recent = losses[-50:]
            batches.set_postfix_str(f"loss {sum(recent) / len(recent):.4f} lr {rate:.1e} p(hard) {hard:.2f}", refresh=False)
            self.step += 1
            self.rows_trained += len(interaction)
        self.seconds_trained += perf_counter() - started
        return sum(losses) / len(losses)

    def _train_step(self, rows: TrainingRows) -> float:
        """One optimiser step over [B] rows; returns its mean loss a token."""
        representation = self.strategy.representation(self.step, self.total_steps)
        tokens = int((self.model.encoder.answer_ids(rows.targets, representation) >= 0).sum())
        total = 0.0
        dtype = self.model.compute_dtype
        for part in self._micro_batches(rows):
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                sums, _ = self.model.answer_nll(part, representation)
            loss = sums.sum() / tokens
            self._check_nan(loss)
            self.scaler.scale(loss).backward()
            total += loss.item()
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _micro_batches(self, rows: TrainingRows) -> Iterator[TrainingRows]:
        """Rows of like length together, so that little is padded."""
        length = self.model.encoder.prompt_lengths(rows.history, rows.candidates)
        for part in length.argsort().split(self.settings.micro_batch_size):
            yield rows.take(part)

    def _write_step(self, loss: float, rate: float, hard: float) -> None:
        self.tensorboard.add_scalar("step/loss", loss, self.step)
        self.tensorboard.add_scalar("step/learning_rate", rate, self.step)
        self.tensorboard.add_scalar("step/hard_probability", hard, self.step)

    # --- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        facts = {
            "epoch": epoch,
            "step": self.step,
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
