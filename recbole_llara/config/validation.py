"""How a key is declared and its value checked: pydantic looks at types and ranges, this module words what it finds."""

import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from recbole_llara.config.secrets import redacted
from recbole_llara.config.yaml_files import property_files
from recbole_llara.utils.errors import UserError, nearest

_STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
_OUT_OF_RANGE = ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
Names = Callable[[], Collection[str]]


class FromRun(Enum):
    """Whether the folder of a run, which a stranger may have written, can set a key."""

    VALUE = "it can: a value of the computation"
    PATH = "to any place of this machine or a model of the hub: what lies there is read as data"
    NEVER = "it cannot: the key runs code, reaches the network, or names where files are written"


class Scope(Enum):
    """Whose a key is, where a run trains an LLM over a frozen recommender."""

    OWN = "the model's alone"
    EACH = "the model's, and with the prefix rec_ its recommender's"
    SHARED = "of both alike: rows, candidates, columns, device, seed"


@dataclass(frozen=True)
class Declaration:
    """What is said of a key beside its type and range."""

    from_run: FromRun  # whether a run's folder can set it
    scope: Scope  # whose it is
    names: Names | None  # the texts that it takes, looked up when a value is checked; None = any
    has_effect: bool  # whether a result depends on it
    is_question: bool  # whether it says what is asked or how answers are measured: scores under two values are no comparison
    is_answering: bool  # whether a trained model's answers depend on it; False for what only training reads


def key(
    from_run: FromRun, scope: Scope = Scope.OWN, *, names: Names | None = None, has_effect: bool = True,
    is_question: bool | None = None, is_answering: bool = True, is_optional: bool = False
) -> Any:  # fmt: skip
    """A key, as a field of ``Settings`` whose annotation is its type and range; the arguments are those of ``Declaration``.

    A key that is shared or without effect is a question, unless ``is_question`` says otherwise: a search leaves it as it is.
    One that ``is_optional`` may be absent, and is None then.
    """
    question = (scope is Scope.SHARED or not has_effect) if is_question is None else is_question
    facts = Declaration(from_run, scope, names, has_effect, question, is_answering)
    return Field(default=None if is_optional else ..., json_schema_extra={"declaration": facts})  # type: ignore[dict-item]


def one_of(*names: str) -> Names:
    """These names."""
    return lambda: names


def named_in(table: str) -> Names:
    """The names of a table of another room, such as ``prompt.curriculum:CURRICULA``."""
    module, _, name = table.partition(":")
    return lambda: tuple(getattr(import_module(f"recbole_llara.{module}"), name))


def files_of(folder: str) -> Names:
    """The names of the YAML files in a folder of ``properties/``."""
    return lambda: property_files(folder)


class Settings(BaseModel):
    """The base of the settings, which are frozen: each field is a key, declared by ``key``.

    Types are strict, but a float may be written as an int, and lists become tuples.
    """

    model_config = _STRICT

    @field_validator("*")
    @classmethod
    def _has_a_known_name(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        names = cls.model_fields[name].json_schema_extra["declaration"].names  # type: ignore[index,union-attr]
        for element in value if isinstance(value, tuple) else (value,):
            if names is not None and element is not None:
                check_name(name, element, names())
        return value

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Read every key from RecBole's Config or a dict.

        Raises:
            UserError: a key is missing, its value has the wrong type, lies out of range or is unknown, or keys contradict each other.
        """
        values = {}
        for name, field in cls.model_fields.items():
            if name in config:
                values[name] = _as_tuple(config[name])
            elif field.is_required():
                raise UserError(f"{name}: no value found; it needs a default in properties/ or a value in the config")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
        if first["type"] == "value_error":
            raise first["ctx"]["error"]
        name = str(first["loc"][0])
        raise _worded(first, name, config[name], annotation(cls, name))

    def wrong(self, name: str, expected: str, *beside: str) -> UserError:
        """The error of a key that contradicts others, those ``beside``: their values, and what was expected."""
        given = {each: getattr(self, each) for each in (name, *beside)}
        shown = {each: redacted(list(value) if isinstance(value, tuple) else value) for each, value in given.items()}
        others = "".join(f" with {each} {shown[each]}" for each in beside)
        return UserError(f"{name}: found {shown[name]}{others}, expected {expected}")


def annotation(settings: type[Settings], name: str) -> Any:
    """The type of a key as it is declared, with its range."""
    return typing.get_type_hints(settings, include_extras=True).get(name)


def check_value(name: str, value: Any, kind: Any) -> None:
    """Check the value of a key that no settings declare against a type, or an ``Annotated`` one with a range."""
    try:
        TypeAdapter(kind, config=_STRICT).validate_python(_as_tuple(value))
    except ValidationError as error:
        raise _worded(error.errors()[0], name, value, kind) from None


def check_name(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse a value of a key that is no known name; the message holds the known ones, and the nearest."""
    if value not in tuple(known):
        raise UserError(f"{name}: found {redacted(value)}, expected one of {', '.join(known)}; {nearest(value, known)}")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _worded(error: Any, name: str, value: Any, kind: Any) -> UserError:
    """One line on what pydantic found first."""
    if error["type"] in _OUT_OF_RANGE:
        return UserError(f"{name}: found {redacted(error['input'])}, expected a number in {range_text(kind) or '(-inf, inf)'}")
    return UserError(f"{name}: found {redacted(value)} ({type(value).__name__}), expected {type_text(kind)}")


def type_text(kind: Any) -> str:
    """A type in words: ``int or None``, ``a list of str``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_text(argument) for argument in arguments)
    if origin is tuple:
        return "a list" if arguments[0] is Any else f"a list of {type_text(arguments[0])}"
    if kind is types.NoneType:
        return "None"
    return "anything" if kind is Any else kind.__name__.lower()


def range_text(kind: Any) -> str:
    """The range of a type, such as ``[1, inf)``; "" where it has none."""
    if typing.get_origin(kind) is not Annotated:
        return next(filter(None, map(range_text, typing.get_args(kind))), "")
    (field,) = kind.__metadata__
    ends = {end: getattr(limit, end) for limit in field.metadata for end in ("ge", "gt", "le", "lt") if hasattr(limit, end)}
    low = f"[{ends['ge']:g}" if "ge" in ends else f"({ends.get('gt', float('-inf')):g}"
    high = f"{ends['le']:g}]" if "le" in ends else f"{ends.get('lt', float('inf')):g})"
    return f"{low}, {high}"
