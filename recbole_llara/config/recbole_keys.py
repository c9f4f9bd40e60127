"""RecBole's own keys, declared as ours are: RecBole takes what it is given and stumbles over it later, or never says a word.

``RunConfig`` reads them once all layers are laid, before RecBole looks at a value. The keys of RecBole's models are checked by
what their files in RecBole give as defaults.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, create_model, model_validator

from recbole_llara.config.settings import EACH, NEVER, PATH, SHARED, VALUE
from recbole_llara.config.validation import Count, Natural, NotNegative, Settings, check_name, check_value, key, one_of
from recbole_llara.utils.errors import UserError

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_GPU = r"(?:\d+|(?:GPU|MIG)-[\w/-]+)"
_GPUS = re.compile(rf"(?:{_GPU}(?:,{_GPU})*)?")
_NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_INTERVAL = re.compile(rf"\s*[\[(]\s*(?P<low>{_NUMBER})\s*,\s*(?P<high>{_NUMBER})\s*[\])]\s*")


class EnvironmentSettings(Settings):
    """Devices, folders, and code of the user's own."""

    plugins: str | tuple[str, ...] | None = key(NEVER, SHARED)
    gpu_id: int | str | tuple[int, ...] = key(VALUE, SHARED, has_effect=False)
    use_gpu: bool = key(VALUE, SHARED, has_effect=False)
    worker: Natural = key(VALUE, SHARED)
    state: str = key(VALUE, SHARED, has_effect=False)
    reproducibility: bool = key(VALUE, SHARED)
    data_path: str = key(PATH, SHARED)
    show_progress: bool = key(VALUE, SHARED, has_effect=False)
    log_wandb: bool = key(NEVER, SHARED, has_effect=False)
    wandb_project: str = key(NEVER, has_effect=False)
    shuffle: bool = key(VALUE, SHARED)
    # RecBole pickles to these and unpickles from them, and reads further keys from config files.
    save_dataset: bool = key(NEVER, SHARED)
    dataset_save_path: Any = key(NEVER, SHARED, is_optional=True)
    save_dataloaders: bool = key(NEVER, SHARED)
    dataloaders_save_path: Any = key(NEVER, SHARED, is_optional=True)
    config_file: Any = key(NEVER, SHARED, is_optional=True)
    config_files: Any = key(NEVER, is_question=True, is_optional=True)
    model: Any = key(VALUE, is_question=True, is_optional=True)
    dataset: Any = key(VALUE, is_question=True, is_optional=True)

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        gpus = self.gpu_id if isinstance(self.gpu_id, tuple) else (self.gpu_id,)
        if not _GPUS.fullmatch(",".join(map(str, gpus))):
            raise self.wrong("gpu_id", "numbers of GPUs such as 0 or 0,1; without a GPU give --use_gpu=False")
        if self.state.lower() not in LOG_LEVELS:
            raise self.wrong("state", f"one of {', '.join(LOG_LEVELS)}, how much is logged")
        return self


class LearningSettings(Settings):
    """RecBole's trainer."""

    learner: str = key(VALUE, EACH, names=one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"))
    clip_grad_norm: dict | None = key(VALUE, EACH)
    loss_decimal_place: Natural = key(VALUE, EACH)
    enable_amp: bool = key(VALUE, EACH)
    enable_scaler: bool = key(VALUE)
    require_pow: bool = key(VALUE)
    repeatable: bool = key(VALUE, SHARED)
    transform: str | None = key(VALUE, EACH, is_answering=False)
    train_neg_sample_args: dict | None = key(VALUE, EACH)
    valid_metric_bigger: Any = key(VALUE, EACH, is_question=True, is_optional=True)


# Atomic files: how they are read, and which of their columns and rows are kept. None names a file outside the dataset's folder.
_COLUMNS: dict[Any, str] = {
    str: "field_separator seq_separator USER_ID_FIELD TIME_FIELD ITEM_LIST_LENGTH_FIELD",
    bool: "filter_inter_by_user_or_item",
    bool | None: "normalize_all",
    tuple[str, ...]: "numerical_features",
    tuple[str, ...] | None: "alias_of_user_id normalize_field",
    str | tuple[str, ...] | None: "additional_feat_suffix",
    dict | None: "load_col unload_col unused_col val_interval seq_len threshold preload_weight discretization",
    # All but the first two belong to models and files that no run has, and are never read.
    Any: "user_inter_num_interval item_inter_num_interval RATING_FIELD LABEL_FIELD NEG_PREFIX POSITION_FIELD "
    "HEAD_ENTITY_ID_FIELD TAIL_ENTITY_ID_FIELD RELATION_ID_FIELD ENTITY_ID_FIELD alias_of_entity_id alias_of_relation_id "
    "entity_kg_num_interval relation_kg_num_interval kg_reverse_r",
}
_FIELDS = {
    name: (kind, key(VALUE, SHARED, is_optional=kind is Any)) for kind, names in _COLUMNS.items() for name in names.split()
}


class ColumnSettings(create_model("ColumnSettings", __base__=Settings, **_FIELDS)):
    """The keys of ``_COLUMNS``, and those of which more is to be said."""

    encoding: str | None = key(VALUE, SHARED, is_optional=True)
    rm_dup_inter: str | None = key(VALUE, SHARED, names=one_of("first", "last"))
    token_num_threshold: Any = key(VALUE, is_optional=True)
    tail_ratio: Any = key(VALUE, is_optional=True)

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if len(self.field_separator) != 1:
            raise self.wrong("field_separator", "one character, the tab of atomic files")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise self.wrong("encoding", "the name of an encoding such as utf-8 or latin-1") from None
        for name in ("load_col", "unload_col", "unused_col"):
            check_column_lists(name, getattr(self, name))
        for name in ("user_inter_num_interval", "item_inter_num_interval"):
            _check_interval(name, getattr(self, name))
        for field, interval in (self.val_interval or {}).items():
            if not isinstance(interval, list) or len(interval) == 2:
                _check_interval(f"val_interval.{field}", interval, ", or a list of values")
        return self


class NegativeSettings(Settings):
    """``train_neg_sample_args``."""

    distribution: str | None = key(VALUE, names=one_of("uniform", "popularity", "none"), is_optional=True)
    sample_num: Count = key(VALUE, is_optional=True)
    alpha: NotNegative = key(VALUE, is_optional=True)
    dynamic: bool = key(VALUE, is_optional=True)
    candidate_num: Natural = key(VALUE, is_optional=True)


RECBOLES = (EnvironmentSettings, LearningSettings, ColumnSettings)  # where each key of RecBole is declared

# Hyper-parameters of RecBole's models: a key's name -> its range; those that are names.
_RANGES: dict[str, Any] = {
    r"(hidden|embedding|inner|interest|prototype|kernel)_size|n_layers|num_layers|n_heads|block_num|nv|nh": Field(ge=1),
    r"(\w+_)?dropout_prob|item_dropout|sess_dropout": Field(ge=0, lt=1),
    r"(mask|ft)_ratio": Field(ge=0, le=1),
    r"reg_weight": Field(ge=0),
    r"layer_norm_eps|initializer_range": Field(gt=0),
}
_NAMES = {
    "loss_type": ("CE", "BPR"),
    "hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid"),
    "pooling_mode": ("max", "mean", "sum"),
}


def check_column_lists(name: str, value: Any) -> None:
    """Refuse, as the value of a key, what is no mapping from a file's suffix to the names of its columns."""
    if not isinstance(value, dict | None):
        raise UserError(f"{name}: found {value!r}, expected dict or None, such as {{inter: [user_id, item_id, timestamp]}}")
    for suffix, names in (value or {}).items():
        is_list = isinstance(names, list | tuple) and all(isinstance(column, str) for column in names)
        if not is_list and names not in ("*", None):
            raise UserError(f"{name}.{suffix}: found {names!r}, expected a list of columns")


def _check_interval(name: str, value: Any, other: str = "") -> None:
    """Refuse what RecBole cannot read as intervals of numbers, such as ``[5,inf)`` or ``[1,3];(7,9]``; None is none."""
    intervals = [_INTERVAL.fullmatch(part) for part in str(value).split(";")]
    if value is not None and not all(found and float(found["low"]) <= float(found["high"]) for found in intervals):
        raise UserError(f"{name}: found {value!r}, expected an interval such as [5,inf) or (0,1]{other}")


def check_negatives(values: Mapping[str, Any] | None, loss_type: str | None) -> None:
    """Refuse a ``train_neg_sample_args`` over which RecBole would stumble; ``loss_type`` None = the model leaves no choice."""
    for name in values or ():
        check_name("train_neg_sample_args", name, NegativeSettings.model_fields)
    if values is not None:
        try:
            NegativeSettings.from_config(values)
        except UserError as error:
            raise UserError(f"train_neg_sample_args.{error}") from None
    if loss_type == "CE" and values is not None:
        raise UserError(
            f"train_neg_sample_args: found {values!r}, expected None: loss_type CE compares with all items; "
            "leave it out, or give --loss_type=BPR"
        )
    if loss_type == "BPR" and values is None:
        raise UserError(
            "train_neg_sample_args: found None, expected such as {distribution: uniform}: loss_type BPR draws negatives"
        )


def check_hyper_parameters(given: Mapping[str, Any], defaults: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse values that a RecBole model cannot be built with: of another type than the default, out of range or unknown.

    Args:
        given: by the user.
        defaults: RecBole's and ours.
        keys: those of the model.
    """
    keys = frozenset(keys)
    for name in sorted(name for name in keys & given.keys() if defaults.get(name) is not None):
        default, kind = defaults[name], type(defaults[name])
        if isinstance(default, list):
            kind = tuple[type(default[0]) if default else Any, ...]
        limits = [limit for pattern, limit in _RANGES.items() if re.fullmatch(pattern, name)]
        if limits and isinstance(default, int | float):
            kind = Annotated[kind, limits[0]]
        check_value(name, given[name], kind)
        if name in _NAMES:
            check_name(name, given[name], _NAMES[name])
    if {"hidden_size", "n_heads"} <= keys:
        width, heads = ({**defaults, **given}[name] for name in ("hidden_size", "n_heads"))
        if width % heads:
            raise UserError(
                f"hidden_size: found {width}, expected a multiple of {heads}, the attention heads; change it or n_heads"
            )
