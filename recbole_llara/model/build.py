"""The model of a run, ours or a stock one, with what goes into its checkpoints."""

from typing import Any

from torch import nn

from recbole_llara.checkpoint.given import check_given_checkpoint
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
    if config["checkpoint"] is not None:
        check_given_checkpoint(config["checkpoint"], config["model"], is_llm_recommender(config["model"]))
    if is_llm_recommender(config["model"]):
        model = resolve_model(config["model"]).from_data(config, data, train)
    else:
        model = make_recommender(config["model"], config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])
