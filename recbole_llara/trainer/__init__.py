"""Trainers: RecBole's own for stock models, ours for LLM recommenders; both evaluate over candidates."""

from typing import Any

from torch import nn

from recbole_llara.config.models import is_llm_recommender


def get_trainer(config: Any, model: nn.Module) -> Any:
    """Make the trainer of a run's model, which ``build_model`` made."""
    if is_llm_recommender(config["model"]):
        from recbole_llara.trainer.trainer import LLMTrainer

        return LLMTrainer(config, model)
    from recbole_llara.trainer.stock import stock_trainer_class

    return stock_trainer_class(config)(config, model)
