"""The one table of models: ours, those that users register, and RecBole's own sequential recommenders.

Classes are imported when they are asked for, and so are RecBole and torch.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError, nearest


class Kind(StrEnum):
    """How a model is configured, trained and kept."""

    LLM = "llm"  # an LLM recommender: a subclass of ``model.base.LLMRecommender``
    BASELINE = "baseline"  # trained and evaluated as RecBole's own models are
    OVER_RECOMMENDER = (
        "over_recommender"  # a baseline that is ``rec_model`` with another item table: it takes its keys without a prefix
    )


@dataclass(frozen=True)
class Model:
    """An entry of the table.

    Args:
        source: the class, or ``module:Class``, imported when it is asked for.
        kind: how it is configured, trained and kept.
        defaults: its own keys with their defaults, or a YAML file of them; None = ``properties/model/<name>.yaml``; for a
            registered class ``my_file.yaml`` beside its ``my_file.py``, where there is one.
    """

    source: str | type
    kind: Kind
    defaults: Mapping[str, Any] | Path | None = None


_PACKAGED: dict[str, Model] = {
    "LLaRA": Model("recbole_llara.model.llara:LLaRA", Kind.LLM),
    "RSLLM": Model("recbole_llara.model.rsllm:RSLLM", Kind.LLM),
    "TALLRec": Model("recbole_llara.model.llara:TALLRec", Kind.LLM),
    "ZeroShotLLM": Model("recbole_llara.model.llara:ZeroShotLLM", Kind.LLM),
    "Popularity": Model("recbole_llara.recommender.popularity:Popularity", Kind.BASELINE),
    "MoRec": Model("recbole_llara.recommender.morec:MoRec", Kind.OVER_RECOMMENDER),
    "ChatLLM": Model("recbole_llara.model.chat_llm:ChatLLM", Kind.BASELINE),
}
MODELS: dict[str, Model] = dict(_PACKAGED)  # and those of ``register_model``

# RecBole's sequential models that a run cannot hold, and why.
UNSUPPORTED: dict[str, str] = {
    "DIEN": "it draws negatives for every step of a history in a dataset class of its own",
    "GRU4RecKG": "it needs pre-trained entity embeddings",
    "KSR": "it needs pre-trained entity embeddings and a knowledge graph",
    "S3Rec": "its two stages pass a pickled file from one run to the next",
}


def register_model(
    name: str, model: str | type, kind: str = Kind.LLM, defaults: Mapping[str, Any] | str | Path | None = None
) -> None:
    """Add a model to the table, so that ``model`` (or ``rec_model``, for a baseline) can name it.

    Keys and defaults of a model that it inherits from hold for it too. A file with this call is loaded by the key ``plugins``.

    Args:
        name: what ``--model`` is given; a name registered before is replaced.
        model: the class, or ``module:Class``, imported when it is asked for.
        kind: ``llm`` for a subclass of ``LLMRecommender``; ``baseline`` for a RecBole ``SequentialRecommender``;
            ``over_recommender`` for a baseline that is made of the recommender ``rec_model``.
        defaults: its own keys with their defaults, or a YAML file of them; None = ``my_file.yaml`` beside the ``my_file.py`` of
            the class, where there is one.

    Raises:
        UserError: an unknown kind, or the name of one of this package's or RecBole's models.
    """
    if kind not in list(Kind):
        raise UserError(f"register_model {name}: found kind {kind!r}, expected one of {', '.join(Kind)}")
    if name in _PACKAGED or name in UNSUPPORTED or name in stock_models():
        raise UserError(f"register_model: the name {name} is taken by this package or by RecBole; choose another")
    MODELS[name] = Model(model, Kind(kind), Path(defaults) if isinstance(defaults, str) else defaults)


def stock_models() -> dict[str, type]:
    """RecBole's sequential recommenders by name, those that are ``UNSUPPORTED`` left out."""
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_llara.utils.compat import sequential_recommenders

    return {
        name: value
        for name, value in vars(sequential_recommenders()).items()
        if inspect.isclass(value) and issubclass(value, AbstractRecommender) and name not in UNSUPPORTED
    }


def recommenders() -> dict[str, type | str]:
    """What ``rec_model`` may name: RecBole's sequential recommenders and registered baselines."""
    own = {name: model.source for name, model in MODELS.items() if model.kind is Kind.BASELINE and name not in _PACKAGED}
    return {**stock_models(), **own}


def is_llm_recommender(name: str) -> bool:
    """Whether a name is an LLM recommender's: others are trained as RecBole's own."""
    return name in MODELS and MODELS[name].kind is Kind.LLM


def replaces_item_table(name: str) -> bool:
    """Whether a model is the recommender ``rec_model`` itself, with an item table of another kind."""
    return name in MODELS and MODELS[name].kind is Kind.OVER_RECOMMENDER


def resolve_model(name: str) -> type:
    """Find the class of a model.

    Args:
        name: a key of ``MODELS``, or the name of a RecBole sequential recommender.

    Raises:
        UserError: no model has this name, and the message gives the nearest ones; the model is unsupported; or a registered
            class cannot be one of its kind.
    """
    if name in MODELS:
        source = MODELS[name].source
        if isinstance(source, str):
            module, _, attribute = source.partition(":")
            source = getattr(importlib.import_module(module), attribute)
        if name not in _PACKAGED:
            _check_registered(name, source)
        return source
    if name in UNSUPPORTED:
        raise UserError(f"model: RecBole's {name} is not supported: {UNSUPPORTED[name]}")
    stock = stock_models()
    if name in stock:
        return stock[name]
    raise UserError(
        f"model: found {name!r}, expected one of ours or a RecBole sequential one; {nearest(name, [*MODELS, *stock])}; a model of "
        "your own is registered by a file that the key plugins names"
    )


def name_of(model: Any) -> Any:
    """The name of a model that is given by name or, as RecBole allows, as a class; a class that no table has is registered.

    Raises:
        UserError: the class has the name of another model of this package or of RecBole, or is no sequential recommender.
    """
    if not inspect.isclass(model):
        return model
    name = model.__name__
    if name not in MODELS and name not in stock_models():
        register_model(name, model, getattr(model, "kind", Kind.BASELINE))
    if resolve_model(name) is not model:
        if name in _PACKAGED or name in stock_models():
            raise UserError(
                f"model: found the class {model.__module__}.{name}, whose name is taken by another model; rename it"
            )
        register_model(name, model, MODELS[name].kind, MODELS[name].defaults)
        resolve_model(name)
    return name


def _check_registered(name: str, model: type) -> None:
    from recbole.model.abstract_recommender import SequentialRecommender

    if not (inspect.isclass(model) and issubclass(model, SequentialRecommender)):
        raise UserError(f"register_model {name}: found {model!r}, expected a subclass of RecBole's SequentialRecommender")
    is_llm = getattr(model, "kind", None) is Kind.LLM
    if is_llm != (MODELS[name].kind is Kind.LLM):
        expected = (
            "kind llm: it is a subclass of LLMRecommender" if is_llm else "kind baseline, or a subclass of LLMRecommender"
        )
        raise UserError(f"register_model {name}: found kind {MODELS[name].kind}, expected {expected}")


def lineage(name: str) -> list[str]:
    """The models whose keys and defaults hold for a model: those that a registered class inherits from, then itself."""
    if name not in MODELS or name in _PACKAGED:
        return [name]
    stock = stock_models()
    names = []
    for ancestor in reversed(resolve_model(name).__mro__[1:]):
        known = MODELS.get(ancestor.__name__)
        path = f"{ancestor.__module__}:{ancestor.__name__}"
        if stock.get(ancestor.__name__) is ancestor or (known is not None and known.source in (ancestor, path)):
            names.append(ancestor.__name__)
    return [*names, name]


def recbole_base(name: str) -> str:
    """The RecBole model that a registered one inherits from and whose file gives its first defaults; else the model itself."""
    stock = stock_models()
    return next((ancestor for ancestor in reversed(lineage(name)) if ancestor in stock), name)


def own_defaults(name: str) -> Mapping[str, Any]:
    """Keys and defaults that a registered model brings along; none for a model of this package or of RecBole."""
    if name not in MODELS or name in _PACKAGED:
        return {}
    given = MODELS[name].defaults
    if given is not None:
        return read_yaml(given) if isinstance(given, Path) else given
    code = own_code(name)
    beside = None if code is None else code.with_suffix(".yaml")
    return read_yaml(beside) if beside is not None and beside.is_file() else {}


def own_code(name: str) -> Path | None:
    """The Python file of a registered model; None in a notebook, and for a model of this package or of RecBole."""
    if name not in MODELS or name in _PACKAGED:
        return None
    file = getattr(sys.modules[resolve_model(name).__module__], "__file__", None)
    return None if file is None else Path(file)


def registered_defaults() -> Mapping[str, Any]:
    """Keys and defaults of all registered models."""
    return {key: value for name in MODELS for key, value in own_defaults(name).items()}


def model_defaults(name: str) -> Mapping[str, Any]:
    """All keys and defaults of a model's files, save RecBole's: of those that it inherits from, then its own."""
    files = [PROPERTIES / "model" / f"{each}.yaml" for each in lineage(name)]
    values: dict[str, Any] = {}
    for each, file in zip(lineage(name), files, strict=True):
        values |= (read_yaml(file) if file.is_file() else {}) | dict(own_defaults(each))
    return values
