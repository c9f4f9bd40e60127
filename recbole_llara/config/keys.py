"""Which keys exist, and what is so of each: sets made out of the declarations and of what RecBole's files and ours name.

RecBole swallows an unknown key; here a typo is an error that names the nearest known key.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import recbole
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from recbole_llara.config.models import model_defaults, recbole_base, registered_defaults, stock_models
from recbole_llara.config.recbole_keys import OF_LEARNING, RECBOLES
from recbole_llara.config.settings import OURS, declared
from recbole_llara.config.validation import Declaration, FromRun, Scope, declaration
from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError, nearest

RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"
REC_PREFIX = "rec_"

# Every key but the hyper-parameters of RecBole's models.
DECLARED: dict[str, Declaration] = {name: declaration(field) for name, field in declared(*RECBOLES, *OURS).items()}
# Keys that say where a run computes and writes, what is shown of it and how often it is saved.
WITHOUT_EFFECT = frozenset({"device", *(key for key, facts in DECLARED.items() if not facts.has_effect)})
_OF_LEARNING = OF_LEARNING | {key for key, facts in DECLARED.items() if not facts.is_answering}
# Keys that RecBole's code reads and none of its lists or files names.
_UNLISTED = frozenset({"model", "dataset", "config_files", "encoding", "tail_ratio", "token_num_threshold"})

# Former names, refused with those of today.
OLD_KEYS = {
    "test_prompt": "it is called eval_template now",
    "split_protocol": "protocol decides the split now: llara, leave_one_out or windows",
}
OLD_REPRESENTATIONS = {
    "described": "textual_with_dsr",
    "described_hybrid": "hybrid_with_dsr",
    "described_behavioural": "behavioural_with_dsr",
}


@cache
def _file_keys(path: Path) -> frozenset[str]:
    return frozenset(read_yaml(path)) if path.is_file() else frozenset()


def _folder_keys(folder: str) -> frozenset[str]:
    return frozenset().union(*(_file_keys(path) for path in sorted((PROPERTIES / folder).glob("*.yaml"))))


def model_keys(model: str) -> frozenset[str]:
    """Keys that RecBole's file of a model and ours name."""
    return _file_keys(RECBOLE_PROPERTIES / "model" / f"{recbole_base(model)}.yaml") | model_defaults(model).keys()


@cache
def _hyper_parameters() -> frozenset[str]:
    """Keys that RecBole's files of its sequential models name."""
    return frozenset().union(*(_file_keys(RECBOLE_PROPERTIES / "model" / f"{name}.yaml") for name in stock_models()))


def from_run(key: str) -> FromRun:
    """Whether the folder of a run can set a key; one with the prefix ``rec_`` is as it is without, an unknown one is NEVER.

    Numbers of a registered model are values; its texts are the caller's to give.
    """
    for name in (key, key.removeprefix(REC_PREFIX)):
        if name in DECLARED:
            return DECLARED[name].from_run
        if name in _hyper_parameters():
            return FromRun.VALUE
    # A text of a registered model may be a path or worse; whether a number is one is checked by ``check_hyper_parameters``.
    is_number = isinstance(registered_defaults().get(key.removeprefix(REC_PREFIX)), int | float)
    return FromRun.VALUE if is_number else FromRun.NEVER


def answering_keys(model: str, inner: str | None = None) -> frozenset[str]:
    """Of a model's own keys those on which a trained one's answers depend: the same weights under other values are another model.

    Args:
        model: a stock model's name, or a baseline's of ours.
        inner: the name of a recommender that is part of the model.
    """
    within = frozenset() if inner is None else model_keys(inner)
    keys = (model_keys(model) | within) - _OF_LEARNING
    # How an endpoint is reached is the caller's, and may hold secrets.
    return keys - {key for key, facts in DECLARED.items() if facts.from_run is FromRun.NEVER}


def shared_keys() -> frozenset[str]:
    """Keys whose values hold for an LLM and for its frozen recommender: data, candidates, folders, device, seed."""
    return frozenset(key for key, facts in DECLARED.items() if facts.scope is Scope.SHARED)


def question_keys() -> frozenset[str]:
    """Keys that say what is asked, how answers are measured and where: scores under two values of one are no comparison."""
    return WITHOUT_EFFECT | {key for key, facts in DECLARED.items() if facts.is_question}


def recommender_keys(rec_model: str) -> frozenset[str]:
    """Keys that a frozen recommender takes with the prefix ``rec_``, without the prefix."""
    return model_keys(rec_model) | {key for key, facts in DECLARED.items() if facts.scope is Scope.EACH}


def known_keys(model: str, rec_model: str | None, inner: str | None = None) -> frozenset[str]:
    """Every key that a run of ``model`` may be given.

    Args:
        model: a model's name.
        rec_model: the name of the frozen recommender, whose keys count with the prefix ``rec_``; None = there is none.
        inner: the name of a recommender that is part of the model, whose keys count as its own.
    """
    files = (
        RECBOLE_PROPERTIES / "overall.yaml",
        *(RECBOLE_PROPERTIES / "dataset" / f"{name}.yaml" for name in ("sample", "ml-100k")),
    )
    recbole_keys = frozenset().union(
        general_arguments, training_arguments, evaluation_arguments, dataset_arguments, *map(_file_keys, files)
    )
    ours = frozenset().union(
        *(_file_keys(path) for path in sorted(PROPERTIES.glob("*.yaml"))),
        *(_folder_keys(folder) for folder in ("llm", "dataset", "protocol")),
    )
    prefixed = frozenset() if rec_model is None else frozenset(REC_PREFIX + key for key in recommender_keys(rec_model))
    within = frozenset() if inner is None else model_keys(inner)
    return recbole_keys | ours | model_keys(model) | within | prefixed | _UNLISTED


def refuse_old_names(given: Mapping[str, Any]) -> None:
    """Refuse keys and values by their former names.

    Args:
        given: keys and values of files, config dict and command line.

    Raises:
        UserError: the message has the name of today.
    """
    for key, value in given.items():
        if key in OLD_KEYS:
            raise UserError(f"unknown key {key!r}: {OLD_KEYS[key]}")
        if key.endswith("representation") and isinstance(value, str) and value in OLD_REPRESENTATIONS:
            raise UserError(f"{key}: found {value!r}, which is called {OLD_REPRESENTATIONS[value]} now")
        if key == "protocol" and value == "full_rank":
            raise UserError("protocol: found 'full_rank', which is a key now: give --protocol=leave_one_out --full_rank=True")


def check_keys(given: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse unknown keys.

    Args:
        given: key -> where it was given, such as ``command line``.
        known: every key that is right.

    Raises:
        UserError: at least one key is unknown; the message names all of them, each with its nearest known keys.
    """
    names = frozenset(known)
    wrong = [f"unknown key {key!r} ({source}): {_near_key(key, names)}" for key, source in given.items() if key not in names]
    if wrong:
        raise UserError("; ".join(wrong))


def _near_key(key: str, names: frozenset[str]) -> str:
    hint = nearest(key, names)
    return hint if hint.startswith("did you mean") else "no known key is near; the keys stand in properties/*.yaml"
