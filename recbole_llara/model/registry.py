"""The one table of models. A name is ours, or RecBole's own sequential recommender."""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from recbole_llara.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

    from recbole_llara.data.dataset import PreparedData

MODELS: dict[str, str] = {
    "LLaRA": "recbole_llara.model.llara:LLaRA",
    "RSLLM": "recbole_llara.model.rsllm:RSLLM",
    "TALLRec": "recbole_llara.model.text_only:TALLRec",
    "ZeroShotLLM": "recbole_llara.model.text_only:ZeroShotLLM",
}
# Ours too, but trained and evaluated as RecBole's own models are.
BASELINES: dict[str, str] = {
    "Popularity": "recbole_llara.recommender.popularity:Popularity",
    "MoRec": "recbole_llara.recommender.morec:MoRec",
    "ChatLLM": "recbole_llara.model.chat.chat_llm:ChatLLM",
}
# Of these, the ones that are RecBole's ``rec_model`` with another item table: they take its keys without a prefix.
OVER_A_RECOMMENDER = ("MoRec",)

# RecBole's sequential models that a run cannot hold, and why.
UNSUPPORTED: dict[str, str] = {
    "DIEN": "it draws negatives for every step of a history in a dataset class of its own",
    "GRU4RecKG": "it needs pre-trained entity embeddings",
    "KSR": "it needs pre-trained entity embeddings and a knowledge graph",
    "S3Rec": "its two stages pass a pickled file from one run to the next",
}


def stock_models() -> dict[str, type]:
    """RecBole's sequential recommenders by name, those that are ``UNSUPPORTED`` left out."""
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_llara.utils.compat import sequential_recommenders

    return {
        name: value
        for name, value in vars(sequential_recommenders()).items()
        if inspect.isclass(value) and issubclass(value, AbstractRecommender) and name not in UNSUPPORTED
    }


def is_ours(name: str) -> bool:
    """Whether a name is one of this package's LLM recommenders: others are trained as RecBole's own."""
    return name in MODELS


def replaces_item_table(name: str) -> bool:
    """Whether a model is the recommender ``rec_model`` itself, with an item table of another kind."""
    return name in OVER_A_RECOMMENDER


def resolve_model(name: str) -> type:
    """Find the class of a model.

    Args:
        name: a key of ``MODELS`` or ``BASELINES``, or the name of a RecBole sequential recommender.

    Raises:
        UserError: no model has this name, and the message gives the nearest ones; or the model is unsupported.
    """
    if name in MODELS or name in BASELINES:
        module, _, attribute = (MODELS | BASELINES)[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in UNSUPPORTED:
        raise UserError(f"model: RecBole's {name} is not supported: {UNSUPPORTED[name]}")
    stock = stock_models()
    if name in stock:
        return stock[name]
    raise UserError(
        f"model: found {name!r}, expected one of ours or a RecBole sequential one; {nearest(name, [*MODELS, *BASELINES, *stock])}"
    )


def build_model(config: Any, data: "PreparedData") -> "nn.Module":
    """Make the model of a run, on its device: ours from all that was prepared, a stock one as RecBole makes it.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.

    Raises:
        UserError: ``checkpoint`` cannot be this model's, or what the model itself or ``make_recommender`` refuses.
    """
    if config["checkpoint"] is not None:
        from recbole_llara.checkpoint.given import check_given_checkpoint

        check_given_checkpoint(config["checkpoint"], config["model"], is_ours(config["model"]))
    if is_ours(config["model"]):
        model = resolve_model(config["model"]).from_data(config, data)
    else:
        model = make_recommender(config["model"], config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])


def numbered(model: "nn.Module", config: Any, dataset: Any) -> "nn.Module":
    """A model with what goes into its checkpoints and is compared with theirs.

    ``numbering`` is that of the data it was made for and ``training_digest`` tells its training interactions; ``belongs_to`` is
    what a stock model's answers depend on beside its weights.

    Args:
        model: as made of the other two.
        config: its own.
        dataset: a split of ``prepare_data``.
    """
    from recbole_llara.checkpoint.identity import training_digest
    from recbole_llara.config.keys import answering_keys
    from recbole_llara.data.numbering import Numbering
    from recbole_llara.evaluator.result import json_ready
    from recbole_llara.model.protocols import TellsIdentity

    name = config["model"]
    model.numbering = Numbering.of(dataset, config["selected_features"])
    model.training_digest = model.trained_on = training_digest(dataset)
    if not is_ours(name):
        keys = answering_keys(name, config["rec_model"] if replaces_item_table(name) else None)
        own = model.identity() if isinstance(model, TellsIdentity) else {}
        model.belongs_to = json_ready({**{key: config[key] for key in sorted(keys)}, **own})
    return model


def make_recommender(name: str, config: Any, dataset: Any) -> "nn.Module":
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
