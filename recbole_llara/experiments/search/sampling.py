"""Which values a trial is run with: one after another, by chance, or by what the earlier ones have scored; none twice.

A trial's draw depends on the seed, its number and the trials before it, and on nothing that a process remembers: a search
that was killed draws on as if it had not been.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from recbole_llara.experiments.search.parameters import Parameter, values_of

DRAWS = 100  # until one is new; then the first that is left is taken
# optuna's 10 would leave a search of a dozen trials to chance.
CHANCE_FIRST = 5
EXHAUSTIVE = "exhaustive"
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed),
    "bayes": lambda seed: TPESampler(n_startup_trials=CHANCE_FIRST, constant_liar=True, seed=seed),
}
ALGORITHMS = (EXHAUSTIVE, *SAMPLERS)


def count_of(parameters: Sequence[Parameter]) -> int | None:
    """How many combinations there are; None where there is no end."""
    options = [parameter.options for parameter in parameters]
    return None if None in options else math.prod(len(one) for one in options if one is not None)


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
    tried = {_identity(parameters, trial.params) for trial in trials}
    for drawn in itertools.chain(_draws(parameters, trials, algo, seed, direction), _in_order(parameters)):
        if _identity(parameters, drawn) not in tried:
            return drawn
    return None


def space_of(parameters: Sequence[Parameter]) -> dict[str, BaseDistribution]:
    """The parameters as optuna takes them."""
    return {parameter.key: parameter.distribution for parameter in parameters}


def _draws(
    parameters: Sequence[Parameter], trials: Sequence[FrozenTrial], algo: str, seed: int, direction: str
) -> Iterator[dict[str, Any]]:
    if algo == EXHAUSTIVE:
        return
    own_seed = int(np.random.SeedSequence((seed, len(trials))).generate_state(1)[0])
    copy = optuna.create_study(direction=direction, sampler=SAMPLERS[algo](own_seed))
    copy.add_trials(trials)
    for _ in range(DRAWS):
        yield copy.ask(space_of(parameters)).params


def _in_order(parameters: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    if count_of(parameters) is None:
        return
    for combination in itertools.product(*(parameter.options or () for parameter in parameters)):
        yield dict(zip([parameter.key for parameter in parameters], combination, strict=True))


def _identity(parameters: Sequence[Parameter], drawn: Mapping[str, Any]) -> str:
    return json.dumps(values_of(parameters, drawn))
