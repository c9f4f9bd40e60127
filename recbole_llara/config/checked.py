"""How a key's value is checked: the annotation of a dataclass field is its type, its metadata the range or names."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Protocol, Self

from recbole_llara.config.properties import PROPERTIES
from recbole_llara.config.secrets import redacted
from recbole_llara.utils.errors import UserError, nearest


class Readable(Protocol):
    """What settings are read from: RecBole's Config, or a dict."""

    def __contains__(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Any: ...


@dataclass(frozen=True)
class Range:
    """An interval of numbers, each end closed unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -math.inf else "["
        right = ")" if self.open_high or self.high == math.inf else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


def within(low: float = -math.inf, high: float = math.inf, open_low: bool = False, open_high: bool = False) -> Any:
    """A field whose number lies in an interval."""
    return field(metadata={"range": Range(low, high, open_low, open_high)})


def one_of(*names: str) -> Any:
    """A field whose text is one of these names."""
    return field(metadata={"names": lambda: names})


def named_in(table: str) -> Any:
    """A field whose text is a name of a table of another folder, such as ``prompt.curriculum:CURRICULA``."""
    module, _, name = table.partition(":")
    return field(metadata={"names": lambda: getattr(import_module(f"recbole_llara.{module}"), name)})


def one_of_files(folder: str) -> Any:
    """A field whose text is the name of a YAML file in a folder of ``properties/``."""
    return field(metadata={"names": lambda: sorted(path.stem for path in (PROPERTIES / folder).glob("*.yaml"))})


def _type_name(kind: Any) -> str:
    if kind is types.NoneType:
        return "None"
    if kind == tuple[Any, ...]:
        return "a list"
    if typing.get_origin(kind) is tuple:
        return f"a list of {_type_name(typing.get_args(kind)[0])}"
    return kind.__name__


def _convert(value: Any, kind: Any) -> Any:
    """Fit a value to one type, or raise TypeError."""
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(element, typing.get_args(kind)[0]) for element in value)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is Any or isinstance(value, kind):
        return value
    raise TypeError


def check_value(key: str, value: Any, kinds: tuple[Any, ...], metadata: Mapping[str, Any]) -> Any:
    """Convert and check one value.

    Args:
        key: for the message.
        value: what was given.
        kinds: the types it may have; a float may be written as an int.
        metadata: ``range``, a ``Range``, or ``names``, a function that gives the known names; of a list for each element.

    Returns:
        The value, lists as tuples.

    Raises:
        UserError: the type is none of ``kinds``, or the value is out of range or unknown.
    """
    for kind in kinds:
        try:
            converted = _convert(value, kind)
            break
        except TypeError:
            continue
    else:
        expected = " or ".join(_type_name(kind) for kind in kinds)
        raise UserError(f"{key}: found {redacted(value)} ({type(value).__name__}), expected {expected}")
    elements = converted if isinstance(converted, tuple) else (converted,)
    for element in elements:
        if element is None:
            continue
        if "range" in metadata and element not in metadata["range"]:
            raise UserError(f"{key}: found {redacted(element)}, expected a number {metadata['range']}")
        if "names" in metadata and element not in tuple(metadata["names"]()):
            names = tuple(metadata["names"]())
            raise UserError(f"{key}: found {redacted(element)}, expected one of {', '.join(names)}; {nearest(element, names)}")
    return converted


class Settings:
    """The base of the frozen settings: fields are keys, annotations are types."""

    @classmethod
    def from_config(cls, config: Readable) -> Self:
        """Read every field from a config.

        Args:
            config: RecBole's Config or a dict.

        Raises:
            UserError: a key is missing, or its value has the wrong type or lies out of range.
        """
        kinds = typing.get_type_hints(cls)
        values = {}
        for setting in fields(cls):  # type: ignore[arg-type]
            if setting.name not in config:
                raise UserError(f"{setting.name}: no value found; it needs a default in properties/ or a value in the config")
            kind = kinds[setting.name]
            options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
            values[setting.name] = check_value(setting.name, config[setting.name], options, setting.metadata)
        return cls(**values)
