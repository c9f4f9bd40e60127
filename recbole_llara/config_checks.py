"""Checks of names and values that RecBole's Config would let through or refuse without saying what to change."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metrics_dict

from recbole_llara.errors import UserError, nearest
from recbole_llara.properties_path import PROPERTIES
from recbole_llara.settings import EvaluationSettings

PACKAGED_DATASET = "ml-100k"  # lies in the RecBole package
_NAME = re.compile(r"\w[\w.+-]*")
_NUMBER = r"\s*([-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf))\s*"
_INTERVAL = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}[\])]")


def checked_dataset(name: str) -> str:
    """Return a dataset's name if it can only be the name of one folder.

    Raises:
        UserError: the name would lead elsewhere, such as ``../secret``.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"dataset: found {name!r}, expected a folder's name of letters, digits and . _ + -; its parent is the key data_path"
        )
    return name


def checked_protocol(name: Any) -> str:
    """Return a protocol's name if ``properties/protocol`` has it.

    Raises:
        UserError: it has not; the message names the nearest.
    """
    known = sorted(path.stem for path in (PROPERTIES / "protocol").glob("*.yaml"))
    if name not in known:
        raise UserError(f"protocol: found {name!r}, expected one of {', '.join(known)}; {nearest(name, known)}")
    return name


def check_dataset_files(dataset: str, folder: str | Path, benchmark: list[str] | None) -> None:
    """Refuse a dataset whose interactions are not there.

    Args:
        dataset: its name.
        folder: where its atomic files should lie.
        benchmark: suffixes of pre-split files (RecBole's ``benchmark_filename``), or None.

    Raises:
        UserError: a file is missing; the message lists the datasets that are there.
    """
    folder = Path(folder)
    wanted = [f"{dataset}.{part}.inter" for part in benchmark or ()] or [f"{dataset}.inter"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not missing:
        return
    own = sorted(path.name for path in folder.glob("*.inter"))
    if own:
        raise UserError(
            f"dataset: {str(folder)!r} holds {', '.join(own)}, expected {', '.join(missing)}; protocol windows reads "
            "ready-made splits, the other protocols one file"
        )
    parent = folder.parent
    there = [path.name for path in parent.iterdir() if any(path.glob("*.inter"))] if parent.is_dir() else []
    raise UserError(
        f"dataset: found {dataset!r}, expected {PACKAGED_DATASET} or a folder with {missing[0]!r} in data_path "
        f"{str(parent)!r}; {nearest(dataset, [PACKAGED_DATASET, *there])}"
    )


def check_intervals(config: Mapping[str, Any]) -> None:
    """Refuse filters that are no intervals: RecBole takes the text apart itself, and only warns of what makes no sense.

    Raises:
        UserError: user_inter_num_interval or item_inter_num_interval is no interval such as ``[5,inf)``, or val_interval no
            mapping of columns to intervals, joined by ``;``, or to lists of values.
    """
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        if config[key] is not None:
            _check_interval(key, str(config[key]))
    filters = config["val_interval"]
    if filters is not None and not isinstance(filters, dict):
        raise UserError(f"val_interval: found {filters!r}, expected columns and intervals, such as {{'rating': '[3,inf)'}}")
    for column, allowed in (filters or {}).items():
        if not isinstance(allowed, list):
            for interval in str(allowed).split(";"):
                _check_interval(f"val_interval of {column}", interval)


def _check_interval(key: str, text: str) -> None:
    match = _INTERVAL.fullmatch(text.strip())
    if match is None or float(match[1]) > float(match[2]):
        raise UserError(f"{key}: found {text!r}, expected an interval such as [5,inf) or (0,10]")


def check_metrics(config: Mapping[str, Any]) -> None:
    """Refuse metrics that are unknown, or a ``valid_metric`` that evaluation would not yield.

    Raises:
        UserError: a metric is unknown, or ``valid_metric`` is none of ``metrics`` at one of ``topk``.
    """
    settings = EvaluationSettings.from_config(config)
    if not settings.metrics or not settings.topk:
        raise UserError(
            f"metrics and topk: found {list(settings.metrics)} and {list(settings.topk)}, expected at least one each"
        )
    for metric in settings.metrics:
        if metric.lower() not in metrics_dict:
            raise UserError(f"metrics: found {metric!r}; {nearest(metric, metrics_dict)}")
    watched = [
        f"{metric}@{k}" if issubclass(metrics_dict[metric.lower()], TopkMetric) else metric
        for metric in settings.metrics
        for k in settings.topk
    ]
    if settings.valid_metric.lower() not in [name.lower() for name in watched]:
        raise UserError(
            f"valid_metric: found {settings.valid_metric!r}, expected one of {', '.join(dict.fromkeys(watched))} "
            f"(from metrics, topk and decoding: {settings.decoding})"
        )
