"""What TensorBoard, Weights & Biases and ``training.jsonl`` are told of an LLM's training."""

from collections.abc import Mapping
from typing import Any


class BoardsMixin:
    """Put before a RecBole Trainer that has ``progress``."""

    def _write_step(self, losses: dict[str, float], rate: float, hard: float, rows_per_second: float) -> None:
        """Tell the boards and the log of an optimiser step."""
        values = {"loss": sum(losses.values()), "learning_rate": rate, "hard_probability": hard}
        if len(losses) > 1:
            values |= {f"loss_{name}": value for name, value in losses.items()}
        self._tell_boards("step", {**values, "rows_per_second": rows_per_second})
        self.progress.training_log.append({"step": self.progress.all_steps, **values})

    def _tell_boards(self, head: str, values: Mapping[str, float]) -> None:
        """Values of this optimiser step for TensorBoard and, with log_wandb, for Weights & Biases."""
        step = self.progress.all_steps
        for name, value in values.items():
            self.tensorboard.add_scalar(f"{head}/{name}", value, step)
        self.wandblogger.log_metrics({**values, "optimiser_step": step}, head=head)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        score, result = super()._valid_epoch(valid_data, show_progress)
        self._tell_boards("valid", result)
        self.progress.training_log.append({"step": self.progress.all_steps, "valid": dict(result)})
        return score, result
