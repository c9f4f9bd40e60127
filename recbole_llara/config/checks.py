"""Checks of names and values that RecBole's Config would let through or refuse without saying what to change."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metric_types, metrics_dict
from recbole.utils import EvaluatorType

from recbole_llara.config.models import recommenders
from recbole_llara.config.settings import EvaluationSettings, ids_file, vectors_file
from recbole_llara.config.yaml_files import PROPERTIES
from recbole_llara.utils.errors import UserError, nearest

PACKAGED_DATASET = "ml-100k"  # lies in the RecBole package
_NAME = re.compile(r"\w[\w.+-]*")


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


def checked_recommender(rec_model: Any) -> str:
    """The name of a recommender that can be frozen: a stock one, or one that ``register_model`` added.

    Raises:
        UserError: it is not one.
    """
    if not isinstance(rec_model, str) or rec_model not in recommenders():
        hint = nearest(str(rec_model), recommenders())
        raise UserError(f"rec_model: found {rec_model!r}, expected a RecBole sequential model or a registered one; {hint}")
    return rec_model


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
        if metric_types[metric.lower()] is not EvaluatorType.RANKING:
            raise UserError(
                f"metrics: found {metric!r}, expected ranking metrics such as Hit, NDCG, MRR: candidates are ranked"
            )
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


def check_topk(topk: list[int], candidate_num: Any, is_given: bool) -> None:
    """Refuse a place that no candidate can have, where somebody asks for it: every valid answer would be a hit there.

    Our own defaults pass: they are the same for all candidate_num.

    Raises:
        UserError: one of ``topk`` is above ``candidate_num``.
    """
    if is_given and isinstance(candidate_num, int) and max(topk) > candidate_num:
        raise UserError(
            f"topk: found {max(topk)}, expected at most candidate_num ({candidate_num}): there is no further place among the "
            "candidates; lower topk or raise candidate_num"
        )


def check_titles(config: Any) -> None:
    """Refuse a run without titles, for a model that reads them.

    Raises:
        UserError: no ``title_field``.
    """
    if not config["title_field"]:
        dataset = config["dataset"]
        raise UserError(
            f"title_field: found {config['title_field']!r}, expected a column of titles in {dataset}.item, which {config['model']} "
            f"reads: set title_field on the command line, in a config file or in properties/dataset/{dataset}.yaml"
        )


def check_paths(config: Mapping[str, Any]) -> None:
    """Refuse files that are not there, and places where nothing can be written, before a run has cost anything.

    Checkpoints are looked at where they are read, before anything is trained.

    Raises:
        UserError: ``candidate_file``, ``item_embeddings``, ``checkpoint_dir`` or ``result_file``.
    """
    value = config["candidate_file"]
    if value is not None and not (isinstance(value, str | Path) and Path(value).is_file()):
        raise UserError(f"candidate_file: found {str(value)!r}, which is not there; expected a file of candidate sets")
    vectors = vectors_file(config.get("item_embeddings"))
    for path in () if vectors is None else (vectors, ids_file(vectors)):
        if not path.is_file():
            raise UserError(
                f"item_embeddings: found no file {str(path)!r}, expected a table of vectors and beside it a text file of their item "
                "ids, one a line"
            )
    _check_writable("checkpoint_dir", config["checkpoint_dir"], is_folder=True)
    if config["result_file"] is not None:
        _check_writable("result_file", config["result_file"], is_folder=False)


def _check_writable(key: str, value: Any, is_folder: bool) -> None:
    expected = "a folder, made if need be" if is_folder else "a file, whose folder is made if need be"
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(f"{key}: found {value!r} ({type(value).__name__}), expected str: {expected}")
    path = Path(value)
    is_other = path.exists() and path.is_dir() != is_folder
    nearest_there = next(parent for parent in path.absolute().parents if parent.exists())
    if is_other or not nearest_there.is_dir():
        found = "a folder" if is_other and not is_folder else "a file, or below one"
        raise UserError(f"{key}: found {value!r}, which is {found}; expected {expected}")
