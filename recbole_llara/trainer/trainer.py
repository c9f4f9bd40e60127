"""Training an LLM recommender inside RecBole's Trainer: its epochs, validation and early stopping stay.

``step.OptimiserSteps`` takes the optimiser steps. A training that was stopped continues from its last state and ends as if it had
not been.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch import nn
from tqdm import tqdm

from recbole_llara.checkpoint.run_folder import resume_command
from recbole_llara.checkpoint.training_state import Progress, TrainingState, TrainingStates
from recbole_llara.checkpoint.weights import Checkpoint, write_llm_checkpoint
from recbole_llara.config.models import is_llm_recommender
from recbole_llara.config.settings import OptimSettings
from recbole_llara.evaluator.evaluation import NO_BOARD, CandidateTrainer
from recbole_llara.llm.architecture import held_here
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.losses import TrainingRows
from recbole_llara.model.weights import has_other_prompts, load_llm_recommender, weights_of
from recbole_llara.prompt.curriculum import stages_of
from recbole_llara.recommender.stock import stock_trainer
from recbole_llara.trainer.step import OptimiserSteps
from recbole_llara.utils.atomic import sweep
from recbole_llara.utils.errors import Diverged, RunError, Stopped, StopRequest, UserError
from recbole_llara.utils.processes import processes_of
from recbole_llara.utils.random_state import Generators


def get_trainer(config: Any, model: nn.Module) -> CandidateTrainer:
    """The trainer of a run's model, which ``build_model`` made: ours of an LLM recommender, else RecBole's own."""
    return LLMTrainer(config, model) if is_llm_recommender(config["model"]) else stock_trainer(config, model)


def learning_rate_factor(step: int, total_steps: int, settings: OptimSettings) -> float:
    """The share of the maximal learning rate at an optimiser step, from 0: linear warm-up, then cosine (LLaRA sec. 5.1.2)."""
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        start = settings.warmup_learning_rate_ratio
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    end = settings.min_learning_rate_ratio
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class LLMTrainer(CandidateTrainer, Trainer):
    """RecBole's Trainer for an ``LLMRecommender``.

    ``saved_model_file`` is the folder of the best checkpoint; the training states lie beside it, in the run's folder.

    Attributes:
        progress: where the training stands.
        steps: takes the optimiser steps.
        stop: whether somebody asked this process to stop.
        seconds_before: (float, seconds) that earlier processes spent on this training.
    """

    def __init__(self, config: Any, model: LLMRecommender) -> None:
        self.settings = OptimSettings.from_config(config)
        super().__init__(config, model, processes_of(config))
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(""))
        self.stop = StopRequest()
        self.steps = OptimiserSteps(model, self.settings, self.processes, self.stop)
        self.stages = stages_of(config)
        self.stage = self.stages[-1]
        self.progress = Progress()
        self.total_steps = 0  # of the stage
        self.seconds_before = 0.0
        self._worst_score = self.best_valid_score
        self._resumed, self._saves_states = False, True

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Adam; weight decay falls on what ``weight_decay_on`` names."""
        projector = [] if self.model.item_tokens.projector is None else list(self.model.item_tokens.projector.parameters())
        decayed, decay = set(projector), self.settings.weight_decay
        others = [p for p in self.model.parameters() if p.requires_grad and p not in decayed]
        on_others = decay if self.settings.weight_decay_on == "all" else 0.0
        groups = [{"params": projector, "weight_decay": decay}, {"params": others, "weight_decay": on_others}]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.settings.learning_rate)

    def fit(
        self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True, show_progress: bool = False
    ) -> tuple[float, Any]:
        """Train one stage after another as RecBole does, from the state that ``resume_checkpoint`` loaded, if it did.

        A later stage continues from the best checkpoint of the one before, with a fresh optimiser, a learning rate curve
        of its own and its own best score: what is kept in the end is the last stage's best.

        Returns:
            RecBole's best score and result on the validation rows, of the last stage.

        Raises:
            Stopped: somebody asked for it; the message says how to go on.
            RunError: a loss or gradient is not finite, or a state cannot be written.
        """
        self._tell_what_is_trained()
        self._saves_states, self._train_data, self._began = saved, train_data, perf_counter()
        if self._resumed:
            train_data.generator.set_state(self.progress.order_state)
        self.processes.equalise(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        result: tuple[float, Any] = (-1.0, None)
        for number in range(self.progress.stage, len(self.stages)):
            if number and saved and not self._resumed:
                self.load_checkpoint(self.saved_model_file)
            self._enter(number, len(train_data))
            # A state may have been saved at the very end of its stage.
            if self._resumed and (self.progress.epoch >= self.epochs or self.cur_step > self.stopping_step):
                self.eval_collector.data_collect(train_data)
                result = self.best_valid_score, self.best_valid_result
            else:
                result = super().fit(
                    train_data, valid_data, verbose, saved, show_progress,
                    callback_fn=lambda *_: self._save_state(self.progress.next_epoch()),  # after a validation
                )  # fmt: skip
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
        self.model.enter(stage)
        if not self._resumed:
            if self.model.answer_loss.reads_reference:
                self.model.take_reference()
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

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """One pass over the training rows, or the rest of one; returns the epoch's mean loss a token."""
        self.model.train()
        if self.progress.epoch != epoch_idx:
            self.progress = self.progress.next_epoch()
        progress = self.progress
        progress.order_state = train_data.generator.get_state()
        batches = tqdm(
            islice(train_data, progress.batches, None),
            ncols=120,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
            total=len(train_data),
            initial=progress.batches,
            disable=not (show_progress and self.processes.is_main),
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
        )
        with self.stop.deferred(), batches:
            for interaction in batches:
                batches.set_postfix_str(self._train_batch(interaction, epoch_idx), refresh=False)
                is_due = self.settings.save_steps and progress.all_steps % self.settings.save_steps == 0
                if is_due or progress.batches == len(train_data):
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
        losses = self._train_step(self.model.training_rows(interaction, epoch))
        seconds, loss = perf_counter() - started, sum(losses.values())
        values = {"loss": loss, "learning_rate": rate, "hard_probability": hard}
        if len(losses) > 1:
            values |= {f"loss_{name}": value for name, value in losses.items()}
        self._write_to_boards("step", {**values, "rows_per_second": len(interaction) / seconds})
        progress.training_log.append({"step": progress.all_steps, **values})
        progress.epoch_losses.append(loss)
        progress.step += 1
        progress.batches += 1
        progress.rows_trained += len(interaction)
        progress.seconds_trained += seconds
        recent = progress.epoch_losses[-50:]
        return f"loss {sum(recent) / len(recent):.4f} lr {rate:.1e} p(hard) {hard:.2f}"

    def _train_step(self, rows: TrainingRows) -> dict[str, float]:
        """One optimiser step over [B] rows; returns its losses by name, which sum to what was minimised."""
        representation = self.stage.representation(self.progress.step, self.total_steps)
        try:
            return self.steps.take(self.optimizer, rows, representation, self.progress.all_steps)
        except Diverged as error:
            raise Diverged(f"{error}. {self._what_is_kept()}") from error

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self._write_to_boards("valid", result)
        self.progress.training_log.append({"step": self.progress.all_steps, "valid": dict(result)})
        return score, result

    def _write_to_boards(self, head: str, values: Mapping[str, float]) -> None:
        """Values of this optimiser step for TensorBoard and, with log_wandb, for Weights & Biases."""
        step = self.progress.all_steps
        try:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{head}/{name}", value, step)
        except OSError as error:  # of its own thread, some time after the value that could not be written
            self.logger.warning(f"log_tensorboard cannot be written ({error}): TensorBoard gets nothing further of this run")
            self.tensorboard = NO_BOARD
        self.wandblogger.log_metrics({**values, "optimiser_step": step}, head=head)

    @property
    def run_folder(self) -> Path:
        """Where this run writes."""
        return Path(self.saved_model_file).parent

    def write_weights(self, path: Path, facts: Mapping[str, Any]) -> None:
        where = {"step": self.progress.all_steps, "stage": self.progress.stage + 1}
        asked = {key: self.config[key] for key in ("protocol", "llm_path")}
        self._write(lambda: write_llm_checkpoint(path, weights_of(self.model), {**facts, **where, **asked}))

    def read_weights(self, path: str | Path) -> Checkpoint:
        return load_llm_recommender(self.model, path)

    def _write(self, write: Callable[[], None]) -> None:
        """Let process 0 write into the run's folder."""
        if self.processes.is_main:
            if not self.run_folder.is_dir():  # made again where a disk was unmounted, it would be on another one
                raise RunError(
                    f"checkpoint_dir: the run's folder {self.run_folder} has disappeared since the run began; bring it back (was a "
                    f"disk unmounted?) and resume with {self._resume_command()}, or start again"
                )
            write()
        self.processes.wait()

    def _save_state(self, progress: Progress) -> None:
        """Keep where the training stands, in the run's folder."""
        if not self._saves_states:
            return
        progress.seconds = self.seconds_before + perf_counter() - self._began
        if progress.batches == 0:
            progress = replace(progress, order_state=self._train_data.generator.get_state())
        facts = {
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result,
            "best_epoch": self.best_epoch,
            "micro_batch_size": self.steps.micro_batch_size,
            "scaler": self.steps.scaler.state_dict(),
            "rows_digest": self.model.rows_digest,
        }
        state = TrainingState(progress, facts, self.optimizer.state_dict(), Generators.now(), self.model.reference or {})
        states = TrainingStates(self.run_folder, self.settings.save_total_limit)
        self._write(lambda: states.save(weights_of(self.model), state))

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Take up the training of a run, by its folder, where its newest state left it; ``fit`` continues from there.

        Raises:
            UserError: its states are damaged or belong to something else.
        """
        sweep(Path(self.saved_model_file))

        def load_weights(checkpoint: Checkpoint) -> None:
            self.model.enter(self.stages[checkpoint.facts["stage"]])
            load_llm_recommender(self.model, checkpoint)
            if has_other_prompts(self.model):
                raise UserError(
                    f"resume: {resume_file} was begun under other prompts: the templates of prompt_file or domain have changed since; "
                    "bring them back, or start a new run"
                )

        state = TrainingStates(Path(resume_file)).load_newest(load_weights)
        if state is None:
            return
        facts = state.facts
        if facts["rows_digest"] != self.model.rows_digest:
            raise UserError(
                f"resume: the interactions or candidates of {self.config['dataset']} are not those that {resume_file} began with; "
                "bring them back (data_path, candidate_file), or start again without resume"
            )
        self._resumed, self.progress, self.seconds_before = True, state.progress, state.progress.seconds
        self.cur_step, self.best_valid_score = facts["cur_step"], facts["best_valid_score"]
        self.best_valid_result, self.best_epoch = facts["best_valid_result"], facts["best_epoch"]
        self.steps.micro_batch_size = facts["micro_batch_size"]
        self.steps.scaler.load_state_dict(facts["scaler"])
        self.optimizer.load_state_dict(state.optimizer)
        self.model.reference = {name: value.to(self.device) for name, value in state.reference.items()} or None
        state.generators.restore()

    def _stop_if_asked(self) -> None:
        """End the training between two steps, its state saved, where a signal came to some process."""
        asked = self.stop.asked if self.processes.count == 1 else self.steps.asked_to_stop
        if asked is None:
            return
        self._save_state(self.progress)
        where = f"step {self.progress.step} of {self.total_steps}"
        raise Stopped(asked, f"Training stopped at {where}; {self._what_is_kept()}")

    def _what_is_kept(self) -> str:
        kept = "no checkpoint yet" if self.best_epoch is None else f"the best checkpoint is {self.saved_model_file}"
        return f"{kept}; {self._resume_command()} resumes from the last state"

    def _resume_command(self) -> str:
        return resume_command(self.run_folder, self.config.external_config_dict)
