"""RecBole's parameter files: a line a key, ``learning_rate loguniform -8,0``, read without evaluating anything."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from recbole_llara.config.properties import PROPERTIES
from recbole_llara.config.yaml_files import parse_value
from recbole_llara.utils.errors import UserError, nearest

FILES = PROPERTIES / "search"
ENDING = ".hyper"
CHOICE, UNIFORM, QUNIFORM, LOGUNIFORM = "choice", "uniform", "quniform", "loguniform"
_LOG_LIMIT = 700  # exp of more is no float
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True)
class Parameter:
    """A key and what it may be.

    Args:
        key: of the configuration.
        kind: choice, uniform, quniform or loguniform.
        distribution: optuna's. The values of a choice are JSON texts there, since optuna keeps no lists.
    """

    key: str
    kind: str
    distribution: BaseDistribution

    def value_of(self, drawn: Any) -> Any:
        """What the configuration is given for what optuna has drawn."""
        if self.kind == CHOICE:
            return json.loads(drawn)
        if isinstance(self.distribution, FloatDistribution) and self.distribution.step is not None:
            low, step = _exact(self.distribution.low), _exact(self.distribution.step)
            return float(low + round((_exact(drawn) - low) / step) * step)
        return drawn

    @property
    def options(self) -> tuple[Any, ...] | None:
        """All that can be drawn, in the order of the file; None where there is no end."""
        space = self.distribution
        if isinstance(space, CategoricalDistribution):
            return space.choices
        if isinstance(space, IntDistribution):
            return tuple(range(space.low, space.high + 1, space.step))
        if space.step is None:
            return None
        low, step = _exact(space.low), _exact(space.step)
        return tuple(float(low + number * step) for number in range(int((_exact(space.high) - low) / step) + 1))

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values, as the configuration is given them, by which a mistake shows: each of a choice, both ends of a range."""
        drawn = self.options if self.kind == CHOICE else (self.distribution.low, self.distribution.high)
        return tuple(self.value_of(one) for one in drawn)

    def __str__(self) -> str:
        if self.kind == CHOICE:
            return f"{self.key}: one of {', '.join(self.options)}"
        step = f" in steps of {self.distribution.step:g}" if self.kind == QUNIFORM else ""
        return f"{self.key}: {self.kind}, {self.distribution.low:g} to {self.distribution.high:g}{step}"


def known_files() -> list[str]:
    """The names of the parameter files that ship with the package."""
    return sorted(path.stem for path in FILES.glob(f"*{ENDING}"))


def read_parameters(name: str | Path) -> tuple[Parameter, ...]:
    """Read a parameter file.

    Args:
        name: a path, or the name of a file of ``properties/search``.

    Returns:
        its parameters in their order.

    Raises:
        UserError: no such file, or a line that is no parameter; the message has its number.
    """
    path = Path(name) if Path(name).is_file() else FILES / f"{name}{ENDING}"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        found = nearest(str(name), known_files())
        raise UserError(f"params_file: found no file {str(name)!r}; write one, or of those that ship, {found}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"params_file: {path} cannot be read: {error}") from error
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(lines, 1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        try:
            parameter = _parameter(text)
            if parameter.key in parameters:
                raise UserError(f"{parameter.key} stands twice")
        except UserError as error:
            raise UserError(f"params_file {path}, line {number}: {error}") from None
        parameters[parameter.key] = parameter
    if not parameters:
        raise UserError(f"params_file {path}: found no parameters, expected lines such as 'learning_rate loguniform -8,0'")
    return tuple(parameters.values())


def _parameter(text: str) -> Parameter:
    words = text.split(maxsplit=2)
    if len(words) < 3:
        raise UserError(f"found {text!r}, expected a key, a kind and its values, such as 'dropout_prob uniform 0.1,0.5'")
    key, kind, values = words
    if kind not in KINDS:
        raise UserError(f"{key}: found the kind {kind!r}; {nearest(kind, KINDS)}")
    try:
        return Parameter(key, kind, KINDS[kind](values))
    except UserError as error:
        raise UserError(f"{key} {kind}: {error}") from None


def _choice(text: str) -> CategoricalDistribution:
    """The values of a list; a text among them that reads as a value is one, as ``'[64,64]'`` in RecBole's files."""
    found = parse_value(text)
    if not isinstance(found, list) or not found:
        raise UserError(f"found {text!r}, expected a list such as [64,96,128]")
    values = [parse_value(value) if isinstance(value, str) else value for value in found]
    texts = [_json(value) for value in values]
    twice = sorted({one for one in texts if texts.count(one) > 1})
    if twice:
        raise UserError(f"found {', '.join(twice)} twice, expected each value once")
    return CategoricalDistribution(texts)


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = ""
    if not text or json.loads(text) != value:
        raise UserError(f"found the value {value!r}, expected numbers, texts, True, False, None, or lists of them")
    return text


def _uniform(text: str) -> FloatDistribution:
    low, high = _numbers(text, "LOW,HIGH")
    _check_order(low, high)
    return FloatDistribution(low, high)


def _loguniform(text: str) -> FloatDistribution:
    """RecBole's bounds, which are hyperopt's: natural logarithms."""
    low, high = _numbers(text, "LOW,HIGH")
    _check_order(low, high)
    if max(abs(low), abs(high)) > _LOG_LIMIT:
        raise UserError(f"found {text!r}, expected the natural logarithms of the bounds, such as -8,0 for 0.000335 to 1")
    return FloatDistribution(math.exp(low), math.exp(high), log=True)


def _quniform(text: str) -> IntDistribution | FloatDistribution:
    """LOW, LOW + Q, ... up to HIGH; whole numbers where all three are."""
    low, high, step = _numbers(text, "LOW,HIGH,Q")
    _check_order(low, high)
    if step <= 0 or step > high - low:
        raise UserError(f"found steps of {step} from {low} to {high}, expected a step above 0 and within the bounds")
    if all(isinstance(number, int) for number in (low, high, step)):
        return IntDistribution(low, low + (high - low) // step * step, step=step)
    top = _exact(low) + (_exact(high) - _exact(low)) // _exact(step) * _exact(step)
    return FloatDistribution(low, float(top), step=step)


def _numbers(text: str, form: str) -> list[int | float]:
    found: Any = parse_value(f"[{text}]")
    is_right = isinstance(found, list) and len(found) == form.count(",") + 1
    if not is_right or not all(type(number) in (int, float) and math.isfinite(number) for number in found):
        raise UserError(f"found {text!r}, expected numbers {form}")
    return found


def _check_order(low: float, high: float) -> None:
    if low >= high:
        raise UserError(f"found {low} to {high}, expected the lower bound first")


def _exact(number: float) -> Decimal:
    """A number as it is written: steps of 0.1 add up."""
    return Decimal(str(number))


KINDS: Mapping[str, Callable[[str], BaseDistribution]] = {
    CHOICE: _choice,
    UNIFORM: _uniform,
    QUNIFORM: _quniform,
    LOGUNIFORM: _loguniform,
}


def values_of(parameters: Sequence[Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration is given for a trial.

    Args:
        parameters: of the search.
        drawn: key -> what optuna has drawn.
    """
    return {parameter.key: parameter.value_of(drawn[parameter.key]) for parameter in parameters}
