"""What a search draws from, and the next draw.

A parameter file is RecBole's: a line for each key, ``learning_rate loguniform -8,0``, read without evaluating anything. A draw
comes in order, by chance, or by what the earlier trials scored; no combination is drawn twice. It depends on the seed, the
trial's number and the trials before it, and on nothing that a process remembers: a killed search resumes with the same draws.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from recbole_llara.config.yaml_files import PROPERTIES, parse_value
from recbole_llara.utils.errors import UserError, nearest

FILES = PROPERTIES / "search"
ENDING = ".hyper"
CHOICE, UNIFORM, QUNIFORM, LOGUNIFORM = "choice", "uniform", "quniform", "loguniform"
DRAWS = 100  # until one is new; then the first that is left is taken
# optuna's 10 would leave a search of a dozen trials to chance.
CHANCE_FIRST = 5
EXHAUSTIVE = "exhaustive"
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed),
    "bayes": lambda seed: TPESampler(n_startup_trials=CHANCE_FIRST, constant_liar=True, seed=seed),
}
ALGORITHMS = (EXHAUSTIVE, *SAMPLERS)
_LOG_LIMIT = 700  # exp of more is no float
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True)
class Parameter:
    """A key and its possible values."""

    key: str  # of the configuration
    kind: str  # of ``KINDS``
    distribution: BaseDistribution  # optuna's; it has the values of a choice as JSON texts, since optuna keeps no lists
    options: tuple[Any, ...] | None = None  # all that can be drawn, in the order of the file; None where there is no end

    def value_of(self, drawn: Any) -> Any:
        """What the configuration is given for what optuna has drawn; steps of 0.1 give the numbers as one writes them."""
        if self.kind == QUNIFORM:
            return self.options[round((drawn - self.distribution.low) / self.distribution.step)]
        return json.loads(drawn) if self.kind == CHOICE else drawn

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
        if not (text := _COMMENT.sub("", line).strip()):
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
        return Parameter(key, kind, *KINDS[kind](values))
    except UserError as error:
        raise UserError(f"{key} {kind}: {error}") from None


def _choice(text: str) -> tuple[BaseDistribution, tuple[str, ...]]:
    """The values of a list; a text among them that reads as a value is one, as ``'[64,64]'`` in RecBole's files."""
    found = parse_value(text)
    if not isinstance(found, list) or not found:
        raise UserError(f"found {text!r}, expected a list such as [64,96,128]")
    texts = tuple(_json(parse_value(value) if isinstance(value, str) else value) for value in found)
    twice = sorted({one for one in texts if texts.count(one) > 1})
    if twice:
        raise UserError(f"found {', '.join(twice)} twice, expected each value once")
    return CategoricalDistribution(texts), texts


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = ""
    if not text or json.loads(text) != value:
        raise UserError(f"found the value {value!r}, expected numbers, texts, True, False, None, or lists of them")
    return text


def _uniform(text: str) -> tuple[BaseDistribution]:
    return (FloatDistribution(*_bounds(text, "LOW,HIGH")),)


def _loguniform(text: str) -> tuple[BaseDistribution]:
    """RecBole's bounds, which are hyperopt's: natural logarithms."""
    low, high = _bounds(text, "LOW,HIGH")
    if max(abs(low), abs(high)) > _LOG_LIMIT:
        raise UserError(f"found {text!r}, expected the natural logarithms of the bounds, such as -8,0 for 0.000335 to 1")
    return (FloatDistribution(math.exp(low), math.exp(high), log=True),)


def _quniform(text: str) -> tuple[BaseDistribution, tuple[int | float, ...]]:
    """LOW, LOW + Q, ... up to HIGH; whole numbers where all three are."""
    low, high, step = _bounds(text, "LOW,HIGH,Q")
    if step <= 0 or step > high - low:
        raise UserError(f"found steps of {step} from {low} to {high}, expected a step above 0 and within the bounds")
    if all(isinstance(number, int) for number in (low, high, step)):
        whole = tuple(range(low, high + 1, step))
        return IntDistribution(low, whole[-1], step=step), whole
    first, last, exact_step = (Decimal(str(number)) for number in (low, high, step))  # 0.1 + 0.2 is 0.3
    options = tuple(float(first + number * exact_step) for number in range(int((last - first) / exact_step) + 1))
    return FloatDistribution(low, options[-1], step=step), options


def _bounds(text: str, form: str) -> list[int | float]:
    found: Any = parse_value(f"[{text}]")
    is_right = isinstance(found, list) and len(found) == form.count(",") + 1
    if not is_right or not all(type(number) in (int, float) and math.isfinite(number) for number in found):
        raise UserError(f"found {text!r}, expected numbers {form}")
    if found[0] >= found[1]:
        raise UserError(f"found {found[0]} to {found[1]}, expected the lower bound first")
    return found


# Kind -> optuna's distribution and, where there is an end, all that can be drawn.
KINDS: Mapping[str, Callable[[str], tuple[Any, ...]]] = {
    CHOICE: _choice,
    UNIFORM: _uniform,
    QUNIFORM: _quniform,
    LOGUNIFORM: _loguniform,
}


def values_of(parameters: Sequence[Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's values for what optuna has drawn."""
    return {parameter.key: parameter.value_of(drawn[parameter.key]) for parameter in parameters}


def space_of(parameters: Sequence[Parameter]) -> dict[str, BaseDistribution]:
    """The parameters as optuna takes them."""
    return {parameter.key: parameter.distribution for parameter in parameters}


def count_of(parameters: Sequence[Parameter]) -> int | None:
    """How many combinations there are; None where there is no end."""
    options = [parameter.options for parameter in parameters]
    return None if None in options else math.prod(map(len, options))


def propose(
    parameters: Sequence[Parameter], trials: Sequence[FrozenTrial], algo: str, seed: int, direction: str
) -> dict[str, Any] | None:
    """Choose the next trial.

    Args:
        parameters: of the search.
        trials: those before, in their order; one that is being run counts as a bad one, so that others look elsewhere.
        algo: exhaustive (the last line of the file changes fastest), random or bayes (the tree-structured Parzen estimator).
        seed: of the search.
        direction: ``maximize`` or ``minimize``.

    Returns:
        key -> optuna's value; None where every combination has been tried.
    """

    def identity(drawn: Mapping[str, Any]) -> str:
        return json.dumps(values_of(parameters, drawn))

    def by_sampler() -> Iterator[dict[str, Any]]:
        own_seed = int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0])
        copy = optuna.create_study(direction=direction, sampler=SAMPLERS[algo](own_seed))
        copy.add_trials(trials)
        for _ in range(DRAWS):
            yield copy.ask(space_of(parameters)).params

    def in_order() -> Iterator[dict[str, Any]]:
        for combination in itertools.product(*(parameter.options for parameter in parameters)):
            yield dict(zip([parameter.key for parameter in parameters], combination, strict=True))

    tried = {identity(trial.params) for trial in trials}
    draws = [] if algo == EXHAUSTIVE else by_sampler()
    rest = [] if count_of(parameters) is None else in_order()
    return next((drawn for drawn in itertools.chain(draws, rest) if identity(drawn) not in tried), None)
