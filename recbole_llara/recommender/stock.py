"""A recommender as RecBole makes it, its keys compared with the number of items first."""

from typing import Any

from torch import nn

from recbole_llara.checkpoint.identity import training_digest
from recbole_llara.config.keys import answering_keys
from recbole_llara.config.models import is_llm_recommender, replaces_item_table, resolve_model, stock_models
from recbole_llara.data.numbering import Numbering
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import json_ready
from recbole_llara.utils.protocols import TellsIdentity


def make_recommender(name: str, config: Any, dataset: Any) -> nn.Module:
    """Make a model as RecBole does, its keys compared with the number of items first.

    Args:
        name: of a model that is not ours.
        config: its keys.
        dataset: the training split.

    Raises:
        UserError: a partition of items that is larger than the catalogue, or partitions that do not add up.
    """
    if issubclass(resolve_model(name), _partitioned()):
        _check_partitions(config, dataset.item_num)
    return resolve_model(name)(config, dataset)


def _partitioned() -> tuple[type, ...]:
    """RecBole's models with Softmax-CPR, which ranks the best so many items anew."""
    stock = stock_models()
    return (stock["SASRecCPR"], stock["GRU4RecCPR"])


def _check_partitions(config: Any, n_items: int) -> None:
    text = str(config["reranker_CAN_NUM"])
    sizes = [int(size) if size.strip().isdecimal() else 0 for size in text.split(",")]
    if min(sizes) < 1 or (max(sizes) > n_items and config["n_facet_reranker"] > 0):
        raise UserError(
            f"reranker_CAN_NUM: found {text!r}, expected whole numbers from 1 to {n_items}, the {n_items - 1} items of "
            f"{config['dataset']} and the padding item, parted by commas; lower it, or set n_facet_reranker to 0 and n_facet_all "
            "accordingly"
        )
    facets = config["n_facet"] + config["n_facet_context"] + config["n_facet_reranker"] * len(sizes) + config["n_facet_emb"]
    if facets != config["n_facet_all"]:
        raise UserError(
            f"n_facet_all: found {config['n_facet_all']}, expected {facets}: n_facet + n_facet_context + n_facet_reranker for each of "
            f"the {len(sizes)} sizes of reranker_CAN_NUM + n_facet_emb"
        )


def numbered(model: nn.Module, config: Any, dataset: Any) -> nn.Module:
    """A model with what goes into its checkpoints and is compared with theirs.

    ``numbering`` is that of the data it was made for and ``training_digest`` tells its training interactions; ``belongs_to`` is
    what a stock model's answers depend on beside its weights.

    Args:
        model: as made of the other two.
        config: its own.
        dataset: a split of ``prepare_data``.
    """
    name = config["model"]
    model.numbering = Numbering.of(dataset, config["selected_features"])
    model.training_digest = model.trained_on = training_digest(dataset)
    if not is_llm_recommender(name):
        keys = answering_keys(name, config["rec_model"] if replaces_item_table(name) else None)
        own = model.identity() if isinstance(model, TellsIdentity) else {}
        model.belongs_to = json_ready({**{key: config[key] for key in sorted(keys)}, **own})
    return model
