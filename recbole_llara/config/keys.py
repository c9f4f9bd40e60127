"""Which keys exist, and what is so of each: sets made out of the declarations and of what the files of models name.

RecBole swallows an unknown key; here a typo is an error that names the nearest known key.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import recbole

from recbole_llara.config.models import MODELS, model_defaults, recbole_base, registered_defaults, stock_models
from recbole_llara.config.recbole_keys import RECBOLES
from recbole_llara.config.settings import COMMON, OURS, declared
from recbole_llara.config.validation import FromRun, Scope
from recbole_llara.config.yaml_files import read_yaml
from recbole_llara.utils.errors import UserError, nearest

RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"
REC_PREFIX = "rec_"

# Every key but the hyper-parameters of RecBole's models.
DECLARED = declared(*RECBOLES, *OURS)
# Keys that say where a run computes and writes, what is shown of it and how often it is saved.
WITHOUT_EFFECT = frozenset({"device", *(key for key, facts in DECLARED.items() if not facts.has_effect)})
# Keys whose values hold for an LLM and for its frozen recommender: data, candidates, folders, device, seed.
SHARED_KEYS = frozenset(key for key, facts in DECLARED.items() if facts.scope is Scope.SHARED)
# Keys that say what is asked, how answers are measured and where: scores under two values of one are no comparison.
QUESTION_KEYS = WITHOUT_EFFECT | {key for key, facts in DECLARED.items() if facts.is_question}
# Hyper-parameters of RecBole's models that only training reads.
_OF_LEARNING = {
    *("loss_type", "initializer_range", "reg_weight", "reg_loss_ratio", "joint_train", "lmd", "lmd_sem"),
    *("dropout_prob", "dropout_probs", "hidden_dropout_prob", "attn_dropout_prob", "sess_dropout", "item_dropout"),
    *("mask_ratio", "ft_ratio"),
}

# Former keys and values, refused with those of today.
_OLD_KEYS = {
    "test_prompt": "it is called eval_template now",
    "split_protocol": "protocol decides the split now: llara, leave_one_out or windows",
}
# Names that other programs give to what has another name here.
_OTHERS_KEYS = {
    "device": "use_gpu and gpu_id choose the device",
    "no_cuda": "give use_gpu=False",
    "lr": "it is called learning_rate here",
    "batch_size": "it is called train_batch_size here, and eval_batch_size in evaluation",
    "num_epochs": "it is called epochs here",
    "model_name_or_path": "it is called llm_path here",
}
_OLD_VALUES = {
    "described": "called textual_with_dsr now",
    "described_hybrid": "called hybrid_with_dsr now",
    "described_behavioural": "called behavioural_with_dsr now",
    "full_rank": "a key now: give --protocol=leave_one_out --full_rank=True",
}


def with_effect(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values on which a result depends."""
    return {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}


@cache
def _stock_keys(model: str) -> frozenset[str]:
    """Keys that RecBole's file of a model names."""
    path = RECBOLE_PROPERTIES / "model" / f"{model}.yaml"
    return frozenset(read_yaml(path)) if path.is_file() else frozenset()


def model_keys(model: str, inner: str | None = None) -> frozenset[str]:
    """Keys that RecBole's file of a model and ours name; those of ``inner``, a recommender within it, count as its own."""
    within = frozenset() if inner is None else model_keys(inner)
    return _stock_keys(recbole_base(model)) | model_defaults(model).keys() | within


def own_keys(model: str) -> frozenset[str]:
    """Keys of one of our models, or of a registered one, that not every run knows and none of RecBole's models has."""
    if model not in MODELS:
        return frozenset()
    others = frozenset(declared(*RECBOLES, *COMMON)).union(*map(_stock_keys, stock_models()))
    return frozenset(model_defaults(model)) - others


def from_run(key: str) -> FromRun:
    """Whether the folder of a run can set a key; one with the prefix ``rec_`` is as it is without, an unknown one is NEVER."""
    inner = key.removeprefix(REC_PREFIX)
    for name in (key, inner):
        if name in DECLARED:
            return DECLARED[name].from_run
        if any(name in _stock_keys(model) for model in stock_models()):
            return FromRun.VALUE
    # A text of a registered model may be a path or worse; whether a number is one is checked by ``check_hyper_parameters``.
    return FromRun.VALUE if isinstance(registered_defaults().get(inner), int | float) else FromRun.NEVER


def answering_keys(model: str, inner: str | None = None) -> frozenset[str]:
    """Those of ``model_keys`` on which a trained model's answers depend: under other values its weights are another model."""
    # How an endpoint is reached is the caller's, and may hold secrets.
    left_out = {key for key, facts in DECLARED.items() if not facts.is_answering or facts.from_run is FromRun.NEVER}
    return model_keys(model, inner) - _OF_LEARNING - left_out


def recommender_keys(rec_model: str) -> frozenset[str]:
    """Keys that a frozen recommender takes with the prefix ``rec_``, without the prefix."""
    return model_keys(rec_model) | {key for key, facts in DECLARED.items() if facts.scope is Scope.EACH}


def known_keys(model: str, rec_model: str | None, inner: str | None = None) -> frozenset[str]:
    """Every key that a run of ``model`` may be given.

    Args:
        model: its name.
        rec_model: the name of the frozen recommender, whose keys count with the prefix ``rec_``; None = there is none.
        inner: as for ``model_keys``.
    """
    prefixed = () if rec_model is None else [REC_PREFIX + key for key in recommender_keys(rec_model)]
    return model_keys(model, inner).union(declared(*RECBOLES, *COMMON), prefixed)


def refuse_old_names(given: Mapping[str, Any]) -> None:
    """Refuse keys and values by their former names; the message has the name of today."""
    for key, value in given.items():
        if key in _OLD_KEYS:
            raise UserError(f"unknown key {key!r}: {_OLD_KEYS[key]}")
        if (key.endswith("representation") or key == "protocol") and isinstance(value, str) and value in _OLD_VALUES:
            raise UserError(f"{key}: found {value!r}, which is {_OLD_VALUES[value]}")


def check_keys(sources: Mapping[str, str], known: frozenset[str]) -> None:
    """Refuse unknown keys; the message names all of them, each with its nearest known ones.

    Args:
        sources: key -> where it was given, such as ``command line``.
        known: every key that is right.
    """
    wrong = []
    for key in (key for key in sources if key not in known):
        near = nearest(key, known)
        near = near if near.startswith("did you mean") else "no known key is near; the keys stand in properties/*.yaml"
        hint = _OTHERS_KEYS.get(key, near)
        wrong.append(f"unknown key {key!r} ({sources[key]}): {hint}")
    if wrong:
        raise UserError("; ".join(wrong))
