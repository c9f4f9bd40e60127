"""RecBole's own keys as checked values: RecBole takes what it is given and stumbles over it later, or never says a word.

``RunConfig`` calls ``check_recbole_keys`` once all layers are laid, before RecBole looks at a value.
"""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llara.config.checked import Settings, one_of, within
from recbole_llara.utils.errors import UserError, nearest

LARGEST_SEED = 2**32 - 1  # numpy's
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_GPU = r"(?:\d+|(?:GPU|MIG)-[\w/-]+)"
_GPUS = re.compile(rf"(?:{_GPU}(?:,{_GPU})*)?")
_NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_INTERVAL = re.compile(rf"\s*[\[(]\s*(?P<low>{_NUMBER})\s*,\s*(?P<high>{_NUMBER})\s*[\])]\s*")


@dataclass(frozen=True)
class EnvironmentSettings(Settings):
    """Devices, seeds and folders."""

    gpu_id: int | str | tuple[int, ...]
    use_gpu: bool
    worker: int = within(0)
    seed: int = within(0, LARGEST_SEED)
    state: str
    reproducibility: bool
    data_path: str
    checkpoint_dir: str
    show_progress: bool
    save_dataset: bool
    save_dataloaders: bool
    log_wandb: bool
    wandb_project: str
    shuffle: bool

    def __post_init__(self) -> None:
        gpus = self.gpu_id if isinstance(self.gpu_id, tuple) else (self.gpu_id,)
        if not _GPUS.fullmatch(",".join(map(str, gpus))):
            raise UserError(
                f"gpu_id: found {self.gpu_id!r}, expected numbers of GPUs such as 0 or 0,1; without a GPU give --use_gpu=False"
            )
        if self.state.lower() not in LOG_LEVELS:
            raise UserError(f"state: found {self.state!r}, expected one of {', '.join(LOG_LEVELS)}, how much is logged")


@dataclass(frozen=True)
class LearningSettings(Settings):
    """RecBole's trainer."""

    learner: str = one_of("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
    clip_grad_norm: dict | None
    loss_decimal_place: int = within(0)
    enable_amp: bool
    enable_scaler: bool
    require_pow: bool
    repeatable: bool
    transform: str | None
    train_neg_sample_args: dict | None
    eval_args: dict


@dataclass(frozen=True)
class ColumnSettings(Settings):
    """Atomic files: how they are read, and which of their columns and rows are kept."""

    field_separator: str
    seq_separator: str
    USER_ID_FIELD: str
    ITEM_ID_FIELD: str
    TIME_FIELD: str
    ITEM_LIST_LENGTH_FIELD: str
    LIST_SUFFIX: str
    load_col: dict | None
    unload_col: dict | None
    unused_col: dict | None
    additional_feat_suffix: str | tuple[str, ...] | None
    rm_dup_inter: str | None = one_of("first", "last")
    val_interval: dict | None
    filter_inter_by_user_or_item: bool
    alias_of_user_id: tuple[str, ...] | None
    alias_of_item_id: tuple[str, ...] | None
    seq_len: dict | None
    threshold: dict | None
    preload_weight: dict | None
    normalize_field: tuple[str, ...] | None
    normalize_all: bool | None
    numerical_features: tuple[str, ...]
    discretization: dict | None

    def __post_init__(self) -> None:
        if len(self.field_separator) != 1:
            raise UserError(f"field_separator: found {self.field_separator!r}, expected one character, the tab of atomic files")
        for key in ("load_col", "unload_col", "unused_col"):
            check_column_lists(key, getattr(self, key))


@dataclass(frozen=True)
class NegativeSettings(Settings):
    """``train_neg_sample_args``."""

    distribution: str | None = one_of("uniform", "popularity", "none")
    sample_num: int = within(1)
    alpha: float = within(0)
    dynamic: bool
    candidate_num: int = within(0)


_NEGATIVES = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}  # RecBole's
_EVAL_ARGS = ("split", "group_by", "order", "mode")


def check_recbole_keys(config: Mapping[str, Any], model_class: type) -> None:
    """Refuse values of RecBole's keys that it would stumble over, or pass by.

    Args:
        config: all layers, before RecBole has filled in anything.
        model_class: of the run.

    Raises:
        UserError: a value of the wrong kind or out of range.
    """
    for settings in (EnvironmentSettings, LearningSettings, ColumnSettings):
        settings.from_config(config)
    _check_encoding(config.get("encoding"))
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        check_interval(key, config[key])
    for field, interval in (config["val_interval"] or {}).items():
        if not isinstance(interval, list) or len(interval) == 2:
            check_interval(f"val_interval.{field}", interval, "a list of values")
    _check_eval_args(config["eval_args"])
    _check_negatives(config["train_neg_sample_args"], config.get("loss_type"), hasattr(model_class, "input_type"))


def check_column_lists(key: str, value: Any) -> None:
    """Refuse what is no mapping from a file's suffix to the names of its columns.

    Raises:
        UserError: it is not.
    """
    if value is None:
        return
    if not isinstance(value, dict):
        raise UserError(f"{key}: found {value!r}, expected dict or None, such as {{inter: [user_id, item_id, timestamp]}}")
    for suffix, names in value.items():
        is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not is_list and names not in ("*", None):
            raise UserError(f"{key}.{suffix}: found {names!r}, expected a list of columns")


def check_interval(key: str, value: Any, other: str = "") -> None:
    """Refuse what RecBole cannot read as intervals of numbers, such as ``[5,inf)`` or ``[1,3];(7,9]``.

    Args:
        key: for the message.
        value: None is no interval, and fine.
        other: what else the key may hold, for the message.

    Raises:
        UserError: it cannot.
    """
    if value is None:
        return
    intervals = [_INTERVAL.fullmatch(part) for part in str(value).split(";")]
    if not all(interval and float(interval["low"]) <= float(interval["high"]) for interval in intervals):
        expected = f"an interval such as [5,inf) or (0,1]{f', or {other}' if other else ''}"
        raise UserError(f"{key}: found {value!r}, expected {expected}")


def _check_encoding(encoding: Any) -> None:
    if encoding is None:
        return
    try:
        codecs.lookup(encoding)
    except (LookupError, TypeError):
        raise UserError(f"encoding: found {encoding!r}, expected the name of an encoding such as utf-8 or latin-1") from None


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    for key in eval_args:
        if key not in _EVAL_ARGS:
            raise UserError(f"eval_args: found {key!r}, expected {', '.join(_EVAL_ARGS)}; {nearest(key, _EVAL_ARGS)}")
    split = eval_args.get("split")
    (mode, how), *others = split.items() if isinstance(split, dict) and split else [(None, None)]
    is_last = mode == "LS" and how == "valid_and_test"
    is_ratio = mode in ("RS", "TS") and isinstance(how, list) and len(how) == 3
    if others or not (is_last or (is_ratio and all(isinstance(share, int | float) and share > 0 for share in how))):
        raise UserError(f"eval_args.split: found {split!r}, expected {{LS: valid_and_test}} or {{RS: [0.8, 0.1, 0.1]}}")


def _check_negatives(values: Mapping[str, Any] | None, loss_type: str | None, is_settled: bool) -> None:
    """``train_neg_sample_args`` itself, and against the loss of models that can have either (``is_settled``: cannot)."""
    if values is not None:
        for key in values:
            if key not in _NEGATIVES:
                raise UserError(f"train_neg_sample_args: found {key!r}; {nearest(key, _NEGATIVES)}")
        try:
            NegativeSettings.from_config({**_NEGATIVES, **values})
        except UserError as error:
            raise UserError(f"train_neg_sample_args.{error}") from None
    if is_settled or loss_type is None:
        return
    if loss_type == "CE" and values is not None:
        raise UserError(
            f"train_neg_sample_args: found {values!r}, expected None: loss_type CE compares with all items; "
            "leave it out, or give --loss_type=BPR"
        )
    if loss_type == "BPR" and values is None:
        raise UserError(
            "train_neg_sample_args: found None, expected such as {distribution: uniform}: loss_type BPR draws negatives"
        )
