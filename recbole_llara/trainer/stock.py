"""Training a stock recommender by RecBole's own trainer, which evaluates over candidates and keeps safetensors checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from recbole.utils import get_trainer

from recbole_llara.checkpoint.weights import Checkpoint
from recbole_llara.data.dataset import PreparedData
from recbole_llara.recommender.stock import load_recommender, save_recommender
from recbole_llara.trainer.evaluation import CandidateTrainer
from recbole_llara.utils.errors import Diverged


@runtime_checkable
class GroupsParameters(Protocol):
    """A model whose parts learn at different rates."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups as torch's optimisers take them; a group without ``lr`` learns at ``learning_rate``."""


def stock_trainer(config: Any, model: torch.nn.Module) -> CandidateTrainer:
    """RecBole's own trainer of a model, evaluating over candidates; its ``saved_model_file`` is a ``.safetensors`` file."""

    class StockTrainer(CandidateTrainer, get_trainer(config["MODEL_TYPE"], config["model"])):
        def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> tuple[float, Mapping[str, float] | None]:
            """Train as RecBole does; on Ctrl-C say where the best checkpoint is, then let the interrupt pass."""
            try:
                return super().fit(train_data, *args, **kwargs)
            except KeyboardInterrupt:
                kept = "no checkpoint yet" if self.best_epoch is None else f"best checkpoint kept: {self.saved_model_file}"
                self.logger.info(f"Training interrupted; {kept}")
                raise

        def write_weights(self, path: Path, facts: Mapping[str, Any]) -> None:
            save_recommender(self.model, path, facts)

        def read_weights(self, path: str | Path) -> Checkpoint:
            return load_recommender(self.model, path, self.config["model"])

        def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
            if isinstance(self.model, GroupsParameters):
                kwargs.setdefault("params", self.model.parameter_groups())
            return super()._build_optimizer(**kwargs)

        def _check_nan(self, loss: torch.Tensor) -> None:
            if torch.isnan(loss):
                raise Diverged(f"training: the loss is {loss.item()}, expected a number; try a smaller learning_rate")

    trainer = StockTrainer(config.redacted(), model)  # it tells TensorBoard and Weights & Biases all keys; no secrets
    trainer.saved_model_file = str(Path(trainer.saved_model_file).with_suffix(".safetensors"))
    return trainer


def train_stock(config: Any, model: torch.nn.Module, data: PreparedData, weights: Path) -> dict[str, Any]:
    """Train a stock recommender by its own configuration, write its best epoch's weights, and measure those on the test rows.

    Returns:
        ``best_epoch``, counted from 0, and ``metrics``: RecBole's, of ``valid`` and ``test``.
    """
    trainer = stock_trainer(config, model)
    trainer.saved_model_file, show_progress = str(weights), bool(config["show_progress"])
    _, valid = trainer.fit(data.train_data, data.valid_data, show_progress=show_progress)
    test = trainer.evaluate(data.test_data, show_progress=show_progress)
    return {"best_epoch": trainer.best_epoch, "metrics": {"valid": valid or {}, "test": test}}
