"""The model of a run, ours or a stock one, with what goes into its checkpoints."""

from typing import Any

from torch import nn

from recbole_llara.checkpoint.weights import Format, given_checkpoint
from recbole_llara.config.models import is_llm_recommender, resolve_model
from recbole_llara.data.dataset import PreparedData
from recbole_llara.recommender.frozen import TrainStock
from recbole_llara.recommender.stock import make_recommender, numbered


def build_model(config: Any, data: PreparedData, train: TrainStock) -> nn.Module:
    """Make the model of a run, on its device: ours from all that was prepared, a stock one as RecBole makes it.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.
        train: trains the frozen recommender of one of ours, where it is not in the cache.

    Raises:
        UserError: ``checkpoint`` cannot be this model's, or what the model itself or ``make_recommender`` refuses.
    """
    is_llm = is_llm_recommender(config["model"])
    if config["checkpoint"] is not None:
        given_checkpoint(config["checkpoint"], config["model"], Format.LLM if is_llm else Format.STOCK)
    if is_llm:
        model = resolve_model(config["model"]).from_data(config, data, train)
    else:
        model = make_recommender(config["model"], config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])
