"""The one table of models: ours, those that users register, and RecBole's own sequential recommenders.

Classes are imported when they are asked for, and so are RecBole and torch. What registers models of the user's own are plugins:
Python files and modules that the key ``plugins`` names.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from recbole_llara.config.yaml_files import read_properties, read_yaml
from recbole_llara.utils.errors import UserError, nearest


class Kind(StrEnum):
    """How a model is configured, trained and kept."""

    LLM = "llm"  # an LLM recommender: a subclass of ``model.base.LLMRecommender``
    BASELINE = "baseline"  # trained and evaluated as RecBole's own models are
    OVER_RECOMMENDER = "over_recommender"  # a baseline: ``rec_model`` with another item table; takes its keys without a prefix


@dataclass(frozen=True)
class Model:
    """An entry of the table."""

    source: str | type  # the class, or ``module:Class``, imported when it is asked for
    kind: Kind
    defaults: Mapping[str, Any] | Path | None = None  # of a registered one; see ``register_model``
    has_item_table: bool = False  # of a packaged baseline, whether an LLM can read it


_PACKAGED: dict[str, Model] = {
    "LLaRA": Model("recbole_llara.model.llara:LLaRA", Kind.LLM),
    "RSLLM": Model("recbole_llara.model.rsllm:RSLLM", Kind.LLM),
    "TALLRec": Model("recbole_llara.model.llara:TALLRec", Kind.LLM),
    "ZeroShotLLM": Model("recbole_llara.model.llara:ZeroShotLLM", Kind.LLM),
    "Popularity": Model("recbole_llara.recommender.closed_form:Popularity", Kind.BASELINE),
    "EASE": Model("recbole_llara.recommender.closed_form:EASE", Kind.BASELINE, has_item_table=True),
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


def is_llm_recommender(name: str) -> bool:
    """Whether a name is an LLM recommender's: others are trained as RecBole's own."""
    return name in MODELS and MODELS[name].kind is Kind.LLM


def replaces_item_table(name: str) -> bool:
    """Whether a model is the recommender ``rec_model`` itself, with an item table of another kind."""
    return name in MODELS and MODELS[name].kind is Kind.OVER_RECOMMENDER


def _is_registered(name: str) -> bool:
    return name in MODELS and name not in _PACKAGED


def checked_recommender(rec_model: Any, has_other_table: bool = False) -> str:
    """The name of a recommender that can be frozen: one of RecBole's sequential ones, EASE, or a registered baseline.

    Args:
        has_other_table: whether its item table is going to be replaced, which of EASE would change nothing.
    """
    own = [
        name
        for name, model in MODELS.items()
        if model.kind is Kind.BASELINE and (_is_registered(name) or (model.has_item_table and not has_other_table))
    ]
    known = [*stock_models(), *own]
    if rec_model not in known:
        hint = nearest(rec_model, known)
        raise UserError(f"rec_model: found {rec_model!r}, expected a RecBole sequential model or a registered one; {hint}")
    return rec_model


def resolve_model(name: str) -> type:
    """The class of a model.

    Raises:
        UserError: no model has this name; it is unsupported; or a registered class cannot be one of its kind.
    """
    if name in MODELS:
        source = MODELS[name].source
        if isinstance(source, str):
            module, _, attribute = source.partition(":")
            source = getattr(importlib.import_module(module), attribute)
        if _is_registered(name):
            _check_registered(name, source)
        return source
    if name in UNSUPPORTED:
        raise UserError(f"model: RecBole's {name} is not supported: {UNSUPPORTED[name]}")
    stock = stock_models()
    if name not in stock:
        raise UserError(
            f"model: found {name!r}, expected one of ours or a RecBole sequential one; {nearest(name, [*MODELS, *stock])}; "
            "a model of your own is registered by a file that the key plugins names"
        )
    return stock[name]


def _check_registered(name: str, model: Any) -> None:
    from recbole.model.abstract_recommender import SequentialRecommender

    if not (inspect.isclass(model) and issubclass(model, SequentialRecommender)):
        raise UserError(f"register_model {name}: found {model!r}, expected a subclass of RecBole's SequentialRecommender")
    if _is_llm(model) != (MODELS[name].kind is Kind.LLM):
        expected = "llm: it is a subclass of LLMRecommender" if _is_llm(model) else "baseline, or a subclass of LLMRecommender"
        raise UserError(f"register_model {name}: found kind {MODELS[name].kind}, expected kind {expected}")


def _is_llm(model: type) -> bool:
    return getattr(model, "kind", None) is Kind.LLM


def name_of(model: Any) -> Any:
    """The name of a model that is given by name or, as RecBole allows, as a class; a class that no table has is registered.

    Raises:
        UserError: the class has the name of another model of this package or of RecBole, or is no sequential recommender.
    """
    if not inspect.isclass(model):
        return model
    name = model.__name__
    if name not in MODELS and name not in stock_models():
        register_model(name, model, Kind.LLM if _is_llm(model) else Kind.BASELINE)
    if resolve_model(name) is not model:
        if not _is_registered(name):
            raise UserError(
                f"model: found the class {model.__module__}.{name}, whose name is taken by another model; rename it"
            )
        register_model(name, model, MODELS[name].kind, MODELS[name].defaults)
        resolve_model(name)
    return name


def lineage(name: str) -> list[str]:
    """The models whose keys and defaults hold for a model: those that a registered class inherits from, then itself."""
    if not _is_registered(name):
        return [name]
    sources = stock_models() | {known: model.source for known, model in MODELS.items()}
    above = [(ancestor.__name__, ancestor) for ancestor in reversed(resolve_model(name).__mro__[1:])]
    known = [label for label, each in above if sources.get(label) in (each, f"{each.__module__}:{label}")]
    return [*known, name]


def recbole_base(name: str) -> str:
    """The RecBole model that a registered one inherits from and whose file gives its first defaults; else the model itself."""
    stock = stock_models()
    return next((ancestor for ancestor in reversed(lineage(name)) if ancestor in stock), name)


def own_defaults(name: str) -> Mapping[str, Any]:
    """Keys and defaults that a registered model brings along; none for a model of this package or of RecBole."""
    if not _is_registered(name):
        return {}
    given = MODELS[name].defaults
    if given is None and (code := own_code(name)) is not None and code.with_suffix(".yaml").is_file():
        given = code.with_suffix(".yaml")
    return read_yaml(given) if isinstance(given, Path) else given or {}


def own_code(name: str) -> Path | None:
    """The Python file of a registered model; None in a notebook, and for a model of this package or of RecBole."""
    file = getattr(sys.modules[resolve_model(name).__module__], "__file__", None) if _is_registered(name) else None
    return None if file is None else Path(file)


def model_defaults(name: str, is_tiny: bool = False) -> dict[str, Any]:
    """All keys and defaults of a model but RecBole's: the files of what it inherits from, its own, what registered ones bring.

    ``is_tiny``: it runs on the embedded LLM, for which it has a further file.
    """
    files = [f"model/{each}" for each in lineage(name)] + [f"llm/tiny-{each}" for each in lineage(name) if is_tiny]
    values: dict[str, Any] = {}
    for layer in [*map(read_properties, files), *map(own_defaults, lineage(name))]:
        values.update(layer)
    return values


def registered_defaults() -> dict[str, Any]:
    """Keys and defaults of all registered models."""
    return {key: value for name in MODELS for key, value in own_defaults(name).items()}


def load_plugins(plugins: Any) -> None:
    """Import each plugin once in a process; as it is code, it is never named by the folder of a run.

    Args:
        plugins: the key's value: a list of paths that end in ``.py`` and names of modules, or one of them; None = none.

    Raises:
        UserError: a plugin is not there, or raises while it is imported.
    """
    for plugin in plugins if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]:
        if not isinstance(plugin, str) or not plugin:
            raise UserError(f"plugins: found {plugin!r}, expected a list of Python files or names of modules")
        try:
            _import_file(Path(plugin)) if plugin.endswith(".py") else importlib.import_module(plugin)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{plugin} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
            if isinstance(error, UserError):
                message = f"{plugin}: {error}"
            elif isinstance(error, ModuleNotFoundError) and error.name not in (plugin.partition(".")[0], plugin):
                message = f"{plugin} imports {error.name}, which is not installed"
            elif isinstance(error, ModuleNotFoundError):
                message = f"found {plugin!r}, which is no module of this Python; expected one, or a file that ends in .py"
            raise UserError(f"plugins: {message}") from error


def _import_file(path: Path) -> None:
    path = path.expanduser().resolve()
    name = f"plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise UserError(f"found no such file at {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
