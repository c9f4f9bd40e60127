"""What an LLM's training keeps on disk: its best checkpoint, and the states from which it goes on after it was stopped."""

import math
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from recbole_llara.checkpoint.llm_weights import load_llm_recommender, save_llm_recommender
from recbole_llara.checkpoint.progress import Progress, restore_generators
from recbole_llara.checkpoint.resume import resume_command
from recbole_llara.checkpoint.training_state import load_state, save_state
from recbole_llara.utils.atomic import sweep
from recbole_llara.utils.errors import RunError, Stopped, UserError
from recbole_llara.utils.stopping import StopRequest


class ResumableMixin:
    """Put before a RecBole Trainer that has ``progress``, ``stages``, ``settings``, ``scaler`` and ``processes``.

    ``saved_model_file`` is the folder of the best checkpoint; states lie beside it.

    Attributes:
        best_epoch: the epoch, counted from 0, of the checkpoint on disk; None before there is one.
        stop: whether somebody asked this process to stop.
        seconds_before: (float, seconds) that earlier processes spent on this training.
    """

    best_epoch: int | None = None

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(""))
        self.stop = StopRequest()
        self._asked_to_stop: int | None = None  # as all processes know of it
        self._resumed = False
        self._saves_states = True
        self.seconds_before, self._began = 0.0, perf_counter()

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        facts = {
            "epoch": epoch,
            "step": self.progress.all_steps,
            "stage": self.progress.stage + 1,
            "valid_metric": self.valid_metric,
            "best_valid_score": float(self.best_valid_score) if math.isfinite(self.best_valid_score) else None,
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "protocol": self.config["protocol"],
            "llm_path": self.config["llm_path"],
        }
        if self.processes.is_main:
            self._check_folder()
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
            "micro_batch_size": self.micro_batch_size,
            "scaler": self.scaler.state_dict(),
            "rows_digest": self.model.rows_digest,
        }
        if self.processes.is_main:
            self._check_folder()
            save_state(self.model, self.optimizer, progress, facts, self.run_folder, self.settings.save_total_limit)
        self.processes.wait()

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Take up the training of a run where its newest state left it; ``fit`` goes on from there.

        Args:
            resume_file: the run's folder.

        Raises:
            UserError: its states are damaged or belong to something else.
        """
        sweep(Path(self.saved_model_file))
        state = load_state(self.model, Path(resume_file), [stage.hard for stage in self.stages])
        if state is None:
            return
        if state.facts["rows_digest"] != self.model.rows_digest:
            raise UserError(
                f"resume: the interactions or candidates of {self.config['dataset']} are not those that {resume_file} began with; "
                "bring them back (data_path, candidate_file), or start again without resume"
            )
        self.progress, self._resumed = state.progress, True
        self.seconds_before, self._began = state.progress.seconds, perf_counter()
        facts = state.facts
        self.cur_step, self.best_valid_score = facts["cur_step"], facts["best_valid_score"]
        self.best_valid_result, self.best_epoch = facts["best_valid_result"], facts["best_epoch"]
        self.micro_batch_size = facts["micro_batch_size"]
        self.scaler.load_state_dict(facts["scaler"])
        self.optimizer.load_state_dict(state.optimizer)
        restore_generators(state.tensors, state.generators)

    def _check_folder(self) -> None:
        """Refuse to make a folder again that has gone: where a disk was unmounted, it would be on another one."""
        if not self.run_folder.is_dir():
            raise RunError(
                f"checkpoint_dir: the run's folder {self.run_folder} has gone since the run began; bring it back (was a disk "
                f"unmounted?) and go on with {self._resume_command}, or start again"
            )

    @property
    def _resume_command(self) -> str:
        return resume_command(self.run_folder, self.config.external_config_dict)

    @property
    def run_folder(self) -> Path:
        """Where this run writes."""
        return Path(self.saved_model_file).parent

    def _what_is_kept(self) -> str:
        kept = "no checkpoint yet" if self.best_epoch is None else f"the best checkpoint is {self.saved_model_file}"
        return f"{kept}; {self._resume_command} goes on from the last state"

    def _stop_if_asked(self) -> None:
        """End the training between two steps, its state saved, where a signal came to some process."""
        asked = self.stop.asked if self.processes.count == 1 else self._asked_to_stop
        if asked is None:
            return
        self._save_state(self.progress)
        where = f"step {self.progress.step} of {self.total_steps}"
        raise Stopped(asked, f"Training stopped at {where}; {self._what_is_kept()}")
