"""What is searched: a model's keys and their ranges, checked before anything is run; and the next draw from them.

A parameter file is RecBole's: a line for each key, ``learning_rate loguniform -8,0``, read without evaluating anything. A draw
comes in order, by chance, or by what the earlier trials scored; no combination is drawn twice. It depends on the seed, the
trial's number and the trials before it, and on nothing that a process remembers: a killed search resumes with the same draws.
"""

import argparse
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

from recbole_llara.config.keys import QUESTION_KEYS, with_effect
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.validation import check_name
from recbole_llara.config.yaml_files import PROPERTIES, parse_arguments, parse_value, plain, read_yaml
from recbole_llara.data.numbering import data_digest
from recbole_llara.utils import __version__
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.hashing import facts_digest, json_ready

FILES = PROPERTIES / "search"
CHOICE, UNIFORM, QUNIFORM, LOGUNIFORM = KINDS = "choice", "uniform", "quniform", "loguniform"
DRAWS = 100  # until one is new; then the first that is left is taken
# optuna's 10 would leave a search of a dozen trials to chance.
CHANCE_FIRST = 5
EXHAUSTIVE = "exhaustive"
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed),
    "bayes": lambda seed: TPESampler(n_startup_trials=CHANCE_FIRST, constant_liar=True, seed=seed),
}
ALGORITHMS = (EXHAUSTIVE, *SAMPLERS)
LOG_LIMIT = 700  # exp of more is no float
MAX_EVALS = 10  # of RecBole's run_hyper.py
KEYS_OF_TRIALS = ("resume", "result_file")  # every trial has its own
COMMENT = re.compile(r"(^|\s)#.*$")


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
    return sorted(path.stem for path in FILES.glob("*.hyper"))


def read_parameters(name: str | Path) -> tuple[Parameter, ...]:
    """Read a parameter file, by its path or its name in ``properties/search``; a mistake is told with its line."""
    path = Path(name) if Path(name).is_file() else FILES / f"{name}.hyper"
    if not path.is_file():
        found = nearest(str(name), known_files())
        raise UserError(f"params_file: found no file {str(name)!r}; write one, or of those that ship, {found}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"params_file: {path} cannot be read: {error}") from error
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(lines, 1):
        if not (text := COMMENT.sub("", line).strip()):
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
    check_name(f"{key}: kind", kind, KINDS)
    try:
        return Parameter(key, kind, *(_choice(values) if kind == CHOICE else _range(kind, values)))
    except UserError as error:
        raise UserError(f"{key} {kind}: {error}") from None


def _choice(text: str) -> tuple[BaseDistribution, tuple[str, ...]]:
    """The values of a list; a text among them that reads as a value is one, as ``'[64,64]'`` in RecBole's files."""
    found = parse_value(text)
    if not isinstance(found, list) or not found:
        raise UserError(f"found {text!r}, expected a list such as [64,96,128]")
    texts = tuple(_json(parse_value(value) if isinstance(value, str) else value) for value in found)
    if twice := sorted({one for one in texts if texts.count(one) > 1}):
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


def _range(kind: str, text: str) -> tuple[BaseDistribution, tuple[int | float, ...] | None]:
    """Numbers between two bounds: all, or LOW, LOW + Q, ... up to HIGH, whole ones where all three are."""
    form = "LOW,HIGH,Q" if kind == QUNIFORM else "LOW,HIGH"
    found: Any = parse_value(f"[{text}]")
    is_right = isinstance(found, list) and len(found) == form.count(",") + 1
    if not is_right or not all(type(number) in (int, float) and math.isfinite(number) for number in found):
        raise UserError(f"found {text!r}, expected numbers {form}")
    low, high, *steps = found
    if low >= high:
        raise UserError(f"found {low} to {high}, expected the lower bound first")
    if kind == UNIFORM:
        return FloatDistribution(low, high), None
    if kind == LOGUNIFORM:  # RecBole's bounds, which are hyperopt's
        if max(abs(low), abs(high)) > LOG_LIMIT:
            raise UserError(f"found {text!r}, expected the natural logarithms of the bounds, such as -8,0 for 0.000335 to 1")
        return FloatDistribution(math.exp(low), math.exp(high), log=True), None
    (step,) = steps
    if step <= 0 or step > high - low:
        raise UserError(f"found steps of {step} from {low} to {high}, expected a step above 0 and within the bounds")
    if all(isinstance(number, int) for number in found):
        whole = tuple(range(low, high + 1, step))
        return IntDistribution(low, whole[-1], step=step), whole
    first, last, exact_step = (Decimal(str(number)) for number in found)  # 0.1 + 0.2 is 0.3
    options = tuple(float(first + number * exact_step) for number in range(int((last - first) / exact_step) + 1))
    return FloatDistribution(low, options[-1], step=step), options


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


@dataclass(frozen=True)
class Search:
    """A search, as a command asks for it."""

    model: str
    dataset: str
    fixed: Mapping[str, Any]  # the keys that all trials share, as files and command line gave them
    parameters: tuple[Parameter, ...]
    algo: str  # of ``ALGORITHMS``
    max_evals: int  # trials in all, with those of earlier calls
    folder: Path  # of trials and report
    valid_metric: str  # what is optimised, on the validation rows
    direction: str  # optuna's word for which values of it are better: maximize or minimize
    seed: int  # of the draws
    facts: Mapping[str, Any]  # all that a trial's score depends on except its own values: equal facts mean the same search


def read_command(arguments: argparse.Namespace, keys: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Search:
    """What a command line asks for, checked with each value of a choice and both ends of each range.

    Args:
        arguments: the named ones. Model and dataset may stand in a config file instead.
        keys: ``--key=value`` for all trials, over the keys of the config files.
        defaults: keys under those of the config files.
    """
    if arguments.params_file is None:
        raise UserError(f"params_file: found none, expected a file or one of {', '.join(known_files())}")
    files, given = (arguments.config_files or "").split(), parse_arguments(keys)
    fixed = {**(defaults or {}), **{key: value for path in files for key, value in read_yaml(path).items()}, **given}
    model, dataset = arguments.model or fixed.get("model"), arguments.dataset or fixed.get("dataset")
    parameters, algo = read_parameters(arguments.params_file), arguments.algo
    check_name("algo", algo, ALGORITHMS)
    endless = [f"{parameter.key} {parameter.kind}" for parameter in parameters if parameter.kind != CHOICE]
    if algo == EXHAUSTIVE and endless:
        raise UserError(
            f"algo: exhaustive goes through choices only, found {', '.join(endless)}; write choice [...], or take "
            "--algo=random or --algo=bayes"
        )
    _check_keys(parameters, given, fixed)
    first = {parameter.key: parameter.probes[0] for parameter in parameters}
    others = [{**first, parameter.key: value} for parameter in parameters for value in parameter.probes[1:]]
    configs = []
    for values in (first, *others):
        try:
            configs.append(RunConfig(model, dataset, files, plain(values), keys))
        except UserError as error:
            raise UserError(f"with {values_text(values)}: {error}") from error
    if len({(config["valid_metric"], bool(config["valid_metric_bigger"])) for config in configs}) > 1:
        raise UserError("valid_metric differs among the values that are searched; give --valid_metric=NAME")
    count = count_of(parameters)
    wanted = arguments.max_evals if arguments.max_evals is not None else count if algo == EXHAUSTIVE else MAX_EVALS
    if wanted < 1:
        raise UserError(f"max_evals: found {wanted}, expected a whole number from 1")
    config = configs[0]
    fixed = {key: value for key, value in fixed.items() if key not in {"model", "dataset", *first}}
    facts = {"model": config["model"], "dataset": config["dataset"], "data": data_digest(config)}
    facts["keys"] = with_effect(without_secrets(fixed))
    facts["parameters"] = [f"{parameter.key} {parameter.distribution}" for parameter in parameters]
    facts = json_ready({**facts, "algo": algo, "version": __version__})
    name = f"{config['model']}-{config['dataset']}-{algo}-{facts_digest(facts)[:8]}"
    return Search(
        model=config["model"],
        dataset=config["dataset"],
        fixed=fixed,
        parameters=parameters,
        algo=algo,
        max_evals=wanted if count is None else min(wanted, count),
        folder=Path(arguments.output or Path(config["checkpoint_dir"]) / "search" / name),
        valid_metric=config["valid_metric"],
        direction="maximize" if config["valid_metric_bigger"] else "minimize",
        seed=config["seed"],
        facts=facts,
    )


def value_text(value: Any) -> str:
    """A searched value, to be read."""
    return f"{value:.4g}" if type(value) is float else str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """A trial's values on one line."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in values.items())


def _check_keys(parameters: Sequence[Parameter], given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse keys under which scores are no comparison, keys that are searched and given, and keys of single runs."""
    for parameter in parameters:
        if parameter.key in QUESTION_KEYS:
            raise UserError(
                f"params_file: {parameter.key} says what is asked, how it is measured or where files lie: trials under two "
                "values of it cannot be compared; leave it out, or run two searches"
            )
        if parameter.key in given:
            raise UserError(f"{parameter.key} is searched and given on the command line; leave it out of one of the two")
    for key in KEYS_OF_TRIALS:
        if fixed.get(key) is not None:
            raise UserError(
                f"{key}: found {fixed[key]!r}, but every trial has its own; leave it out; the same command resumes the search"
            )


def propose(search: Search, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """Choose the next trial: key -> optuna's value; None where every combination has been tried.

    Args:
        search: exhaustive (the last line of the file changes fastest), random or bayes (the tree-structured Parzen estimator).
        trials: those before, in their order; one that is being run counts as a bad one, so that others look elsewhere.
    """
    parameters = search.parameters

    def identity(drawn: Mapping[str, Any]) -> str:
        return json.dumps(values_of(parameters, drawn))

    def by_sampler() -> Iterator[dict[str, Any]]:
        own_seed = int(np.random.SeedSequence((search.seed, len(trials))).generate_state(1)[0])
        copy = optuna.create_study(direction=search.direction, sampler=SAMPLERS[search.algo](own_seed))
        copy.add_trials(trials)
        for _ in range(DRAWS):
            yield copy.ask(space_of(parameters)).params

    def in_order() -> Iterator[dict[str, Any]]:
        for combination in itertools.product(*(parameter.options for parameter in parameters)):
            yield dict(zip([parameter.key for parameter in parameters], combination, strict=True))

    tried = {identity(trial.params) for trial in trials}
    draws = [] if search.algo == EXHAUSTIVE else by_sampler()
    rest = [] if count_of(parameters) is None else in_order()
    return next((drawn for drawn in itertools.chain(draws, rest) if identity(drawn) not in tried), None)
