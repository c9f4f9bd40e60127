"""The keys of RecBole's own models, checked by what their files in RecBole give as defaults.

Each model has its own; what a value must be is told by the type of its default and, for names that many models share, by
the tables below.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_llara.config.checked import Range, check_value
from recbole_llara.utils.errors import UserError

# A key's name -> the numbers it may hold.
RANGES: tuple[tuple[str, Range], ...] = (
    (r"(hidden|embedding|inner|interest|prototype|kernel)_size|n_layers|num_layers|n_heads|block_num|nv|nh", Range(1)),
    (r"(\w+_)?dropout_prob|item_dropout|sess_dropout", Range(0, 1, open_high=True)),
    (r"(mask|ft)_ratio", Range(0, 1)),
    (r"reg_weight", Range(0)),
    (r"layer_norm_eps|initializer_range", Range(0, open_low=True)),
)
NAMES: dict[str, tuple[str, ...]] = {
    "loss_type": ("CE", "BPR"),
    "hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid"),
    "pooling_mode": ("max", "mean", "sum"),
}


def check_hyper_parameters(given: Mapping[str, Any], defaults: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse values that a RecBole model cannot be built with.

    Args:
        given: by the user.
        defaults: RecBole's and ours.
        keys: those of the model.

    Raises:
        UserError: a value of another type than its default, out of range or unknown, or heads that share no width evenly.
    """
    keys = frozenset(keys)
    for key in sorted(keys & given.keys()):
        default = defaults.get(key)
        if default is None:
            continue
        kind: Any = type(default)
        if isinstance(default, list):
            kind = tuple[type(default[0]) if default else Any, ...]
        metadata: dict[str, Any] = {"names": lambda key=key: NAMES[key]} if key in NAMES else {}
        for pattern, numbers in RANGES:
            if re.fullmatch(pattern, key) and isinstance(default, int | float):
                metadata = {"range": numbers}
        check_value(key, given[key], (kind,), metadata)
    if {"hidden_size", "n_heads"} <= keys:
        width, heads = ({**defaults, **given}[key] for key in ("hidden_size", "n_heads"))
        if width % heads:
            raise UserError(
                f"hidden_size: found {width}, expected a multiple of {heads}, the attention heads; change it or n_heads"
            )
