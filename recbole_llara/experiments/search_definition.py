"""What is searched: a model's keys and their ranges, checked before anything is run."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_llara.config.keys import WITHOUT_EFFECT, question_keys
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.yaml_files import PlainText, parse_arguments, read_yaml
from recbole_llara.data.numbering import data_digest
from recbole_llara.experiments.search_space import (
    ALGORITHMS,
    CHOICE,
    EXHAUSTIVE,
    Parameter,
    count_of,
    known_files,
    read_parameters,
)
from recbole_llara.utils.digests import facts_digest, json_ready
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.version import __version__

MAX_EVALS = 10  # of RecBole's run_hyper.py
KEYS_OF_TRIALS = ("resume", "result_file")  # every trial has its own


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
    data: str  # digest of the dataset's files

    @property
    def facts(self) -> dict[str, Any]:
        """All that a trial's score depends on except its own values: equal facts mean the same search."""
        keys = {key: value for key, value in without_secrets(self.fixed).items() if key not in WITHOUT_EFFECT}
        searched = [f"{parameter.key} {parameter.distribution}" for parameter in self.parameters]
        facts = {"model": self.model, "dataset": self.dataset, "data": self.data, "keys": keys, "parameters": searched}
        return json_ready({**facts, "algo": self.algo, "version": __version__})

    def best_config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a configuration file that runs a trial again; keys without effect on it and secrets are left out."""
        keys = {key: value for key, value in {**self.fixed, **values}.items() if key not in WITHOUT_EFFECT}
        return json_ready(without_secrets({"model": self.model, "dataset": self.dataset, **keys}))


@dataclass(frozen=True)
class Trial:
    """A finished trial; where it failed, it has an error and no score."""

    number: int  # from 0
    values: dict[str, Any]  # of the searched keys
    score: float | None  # ``best_valid_score``
    seconds: float
    valid: dict[str, float]  # RecBole's metrics of the validation rows
    run_dir: str | None = None
    result_file: str | None = None
    error: str | None = None


def ranked(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """The trials, best first; those that failed come last, and of equals the first comes first."""
    sign = -1 if search.direction == "maximize" else 1
    return sorted(trials, key=lambda trial: (trial.score is None, sign * (trial.score or 0.0), trial.number))


def best_of(search: Search, trials: Sequence[Trial]) -> Trial | None:
    """The trial of the best score; None where all failed."""
    return next((trial for trial in ranked(search, trials) if trial.score is not None), None)


def read_command(arguments: argparse.Namespace, keys: Sequence[str]) -> Search:
    """What a command line asks for; what cannot be run is refused.

    Args:
        arguments: the named ones. Model and dataset may stand in a config file instead.
        keys: ``--key=value`` for all trials, over the keys of the config files.

    Raises:
        UserError: an argument, the parameter file, a key or a value cannot be used.
    """
    if arguments.params_file is None:
        raise UserError(f"params_file: found none, expected a file or one of {', '.join(known_files())}")
    files, given = (arguments.config_files or "").split(), parse_arguments(keys)
    fixed = {key: value for path in files for key, value in read_yaml(path).items()} | given
    model, dataset = arguments.model or fixed.get("model"), arguments.dataset or fixed.get("dataset")
    parameters, algo = read_parameters(arguments.params_file), arguments.algo
    _check_algo(algo, parameters)
    _check_keys(parameters, given, fixed)
    configs = []
    for values in _probes(parameters):
        try:
            configs.append(RunConfig(model, dataset, files, plain(values), keys))
        except UserError as error:
            raise UserError(f"with {values_text(values)}: {error}") from error
    if len({(config["valid_metric"], bool(config["valid_metric_bigger"])) for config in configs}) > 1:
        raise UserError("valid_metric differs among the values that are searched; give --valid_metric=NAME")
    config, searched = configs[0], {"model", "dataset", *(parameter.key for parameter in parameters)}
    search = Search(
        model=config["model"],
        dataset=config["dataset"],
        fixed={key: value for key, value in fixed.items() if key not in searched},
        parameters=parameters,
        algo=algo,
        max_evals=_wanted(parameters, algo, arguments.max_evals),
        folder=Path(arguments.output or ""),
        valid_metric=config["valid_metric"],
        direction="maximize" if config["valid_metric_bigger"] else "minimize",
        seed=config["seed"],
        data=data_digest(config),
    )
    if arguments.output is not None:
        return search
    name = f"{search.model}-{search.dataset}-{algo}-{facts_digest(search.facts)[:8]}"
    return replace(search, folder=Path(config["checkpoint_dir"]) / "search" / name)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were parsed once: a quoted "1" must not become a number now."""
    return {key: PlainText(value) if isinstance(value, str) else value for key, value in values.items()}


def value_text(value: Any) -> str:
    """A searched value, to be read."""
    return f"{value:.4g}" if type(value) is float else str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """A trial's values on one line."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in values.items())


def _check_algo(algo: str, parameters: Sequence[Parameter]) -> None:
    if algo not in ALGORITHMS:
        raise UserError(f"algo: found {algo!r}; {nearest(algo, ALGORITHMS)}")
    endless = [f"{parameter.key} {parameter.kind}" for parameter in parameters if parameter.kind != CHOICE]
    if algo == EXHAUSTIVE and endless:
        raise UserError(
            f"algo: exhaustive goes through choices only, found {', '.join(endless)}; write choice [...], or take "
            "--algo=random or --algo=bayes"
        )


def _check_keys(parameters: Sequence[Parameter], given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse keys under which scores are no comparison, and keys that are searched and given."""
    for parameter in parameters:
        if parameter.key in question_keys():
            raise UserError(
                f"params_file: {parameter.key} says what is asked, how it is measured or where files lie: trials under two "
                "values of it cannot be compared; leave it out, or run two searches"
            )
        if parameter.key in given:
            raise UserError(f"{parameter.key} is searched and given on the command line; leave it out of one of the two")
    for key in KEYS_OF_TRIALS:
        if fixed.get(key) is not None:
            raise UserError(
                f"{key}: found {fixed[key]!r}, but every trial has its own; leave it out, the search goes on by itself"
            )


def _probes(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Every value of a choice and every end of a range, the other parameters at their first."""
    first = {parameter.key: parameter.probes[0] for parameter in parameters}
    yield first
    for parameter in parameters:
        for value in parameter.probes[1:]:
            yield {**first, parameter.key: value}


def _wanted(parameters: Sequence[Parameter], algo: str, max_evals: int | None) -> int:
    """How many trials there are to be: no more than there are combinations."""
    count = count_of(parameters)
    wanted = max_evals if max_evals is not None else MAX_EVALS
    if wanted < 1:
        raise UserError(f"max_evals: found {wanted}, expected a whole number from 1")
    if count is None:
        return wanted
    return count if algo == EXHAUSTIVE and max_evals is None else min(wanted, count)
