"""The one table of models, as plain names: ours, and RecBole's own sequential recommenders. Classes are imported when asked for."""

import importlib
import inspect

from recbole_llara.utils.compat import sequential_recommenders
from recbole_llara.utils.errors import UserError, nearest

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

    return {
        name: value
        for name, value in vars(sequential_recommenders()).items()
        if inspect.isclass(value) and issubclass(value, AbstractRecommender) and name not in UNSUPPORTED
    }


def is_llm_recommender(name: str) -> bool:
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
