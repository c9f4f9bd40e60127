"""What is searched: a model's keys and their ranges, checked before anything is run."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.config.keys import WITHOUT_EFFECT, question_keys
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.yaml_files import PlainText, parse_arguments, read_yaml
from recbole_llara.data.numbering import data_digest
from recbole_llara.experiments.search.parameters import CHOICE, Parameter, read_parameters
from recbole_llara.experiments.search.sampling import ALGORITHMS, EXHAUSTIVE, count_of
from recbole_llara.utils.digests import json_ready
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.version import __version__

MAX_EVALS = 10  # of RecBole's run_hyper.py
# A trial has these of its own.
OF_TRIALS = ("resume", "result_file")


@dataclass(frozen=True)
class Search:
    """A search, as a command asks for it.

    Args:
        model: of every trial.
        dataset: of every trial.
        fixed: the keys that all trials share, as files and command line gave them.
        parameters: what is searched.
        algo: exhaustive, random or bayes.
        max_evals: trials in all, those of earlier calls among them.
        folder: where trials and report are kept.
        valid_metric: what is optimised, on the validation rows.
        is_bigger_better: of ``valid_metric``.
        seed: of the draws.
        data: digest of the dataset's files.
    """

    model: str
    dataset: str
    fixed: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    algo: str
    max_evals: int
    folder: Path
    valid_metric: str
    is_bigger_better: bool
    seed: int
    data: str

    @property
    def direction(self) -> str:
        """Optuna's word for which scores are better."""
        return "maximize" if self.is_bigger_better else "minimize"

    @property
    def facts(self) -> dict[str, Any]:
        """All that a trial's score depends on but its own values; two searches of the same facts are one."""
        return _facts(self.model, self.dataset, self.fixed, self.parameters, self.algo, self.data)

    def keys_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The ``config_dict`` of a trial."""
        return plain({**self.fixed, **values})

    def best_config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a configuration file that runs a trial again; keys without effect on it and secrets are left out."""
        keys = {key: value for key, value in {**self.fixed, **values}.items() if key not in WITHOUT_EFFECT}
        return json_ready(without_secrets({"model": self.model, "dataset": self.dataset, **keys}))


def define(
    model: str | None,
    dataset: str | None,
    params_file: str | Path,
    *,
    algo: str = EXHAUSTIVE,
    max_evals: int | None = None,
    config_files: Sequence[str | Path] = (),
    argv: Sequence[str] = (),
    output: str | Path | None = None,
) -> Search:
    """Read what is to be searched, and refuse what cannot be run.

    Args:
        model: None = the key ``model`` of a config file.
        dataset: None = the key ``dataset`` of a config file.
        params_file: a path, or the name of a file of ``properties/search``.
        algo: exhaustive, random or bayes.
        max_evals: trials in all; None = every combination where exhaustive, else ``MAX_EVALS``.
        config_files: YAML files, later ones over earlier ones.
        argv: ``--key=value`` arguments over those of the files.
        output: the search's folder; None = one below ``checkpoint_dir/search`` that the facts name.

    Raises:
        UserError: an argument, the file, a key or a value cannot be used.
    """
    fixed = _given(config_files, argv)
    model, dataset = model or fixed.get("model"), dataset or fixed.get("dataset")
    parameters = read_parameters(params_file)
    _check_algo(algo, parameters)
    _check_keys(parameters, parse_arguments(argv), fixed)
    searched = {"model", "dataset", *(parameter.key for parameter in parameters)}
    fixed = {key: value for key, value in fixed.items() if key not in searched}
    config = _checked(model, dataset, config_files, argv, parameters)
    data = data_digest(config)
    place = _place(config, algo, _facts(config["model"], config["dataset"], fixed, parameters, algo, data))
    return Search(
        model=config["model"],
        dataset=config["dataset"],
        fixed=fixed,
        parameters=parameters,
        algo=algo,
        max_evals=_wanted(parameters, algo, max_evals),
        folder=place if output is None else Path(output),
        valid_metric=config["valid_metric"],
        is_bigger_better=bool(config["valid_metric_bigger"]),
        seed=config["seed"],
        data=data,
    )


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were parsed once: a quoted "1" must not become a number now."""
    return {key: PlainText(value) if isinstance(value, str) else value for key, value in values.items()}


def spoken_values(values: Mapping[str, Any]) -> str:
    """A trial's values on one line."""
    return ", ".join(f"{key}={value:.4g}" if type(value) is float else f"{key}={value}" for key, value in values.items())


def _given(config_files: Sequence[str | Path], argv: Sequence[str]) -> dict[str, Any]:
    """All keys of files and command line."""
    given: dict[str, Any] = {}
    for path in config_files:
        given |= read_yaml(path)
    return given | parse_arguments(argv)


def _place(config: RunConfig, algo: str, facts: Mapping[str, Any]) -> Path:
    """The folder of a search that was given none."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(config["checkpoint_dir"]) / "search" / f"{config['model']}-{config['dataset']}-{algo}-{digest[:8]}"


def _facts(
    model: Any, dataset: Any, fixed: Mapping[str, Any], parameters: Sequence[Parameter], algo: str, data: str
) -> dict[str, Any]:
    keys = {key: value for key, value in without_secrets(fixed).items() if key not in WITHOUT_EFFECT}
    searched = [f"{parameter.key} {parameter.distribution}" for parameter in parameters]
    facts = {"model": model, "dataset": dataset, "data": data, "keys": keys, "parameters": searched, "algo": algo}
    return json_ready({**facts, "version": __version__})


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
    for key in OF_TRIALS:
        if fixed.get(key) is not None:
            raise UserError(
                f"{key}: found {fixed[key]!r}, but every trial has its own; leave it out, the search goes on by itself"
            )


def _checked(
    model: str | None,
    dataset: str | None,
    config_files: Sequence[str | Path],
    argv: Sequence[str],
    parameters: Sequence[Parameter],
) -> RunConfig:
    """Build the configuration of each probe; returns the first one."""
    configs = []
    for values in _probes(parameters):
        try:
            configs.append(RunConfig(model, dataset, config_files, plain(values), argv))
        except UserError as error:
            raise UserError(f"with {spoken_values(values)}: {error}") from error
    if len({(config["valid_metric"], bool(config["valid_metric_bigger"])) for config in configs}) > 1:
        raise UserError("valid_metric differs among the values that are searched; give --valid_metric=NAME")
    return configs[0]


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
