"""One run from configuration to result: data, model, training, evaluation, and the files that tell about it."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import recbole.trainer.trainer
from recbole.utils import calculate_valid_score, init_logger, init_seed

from recbole_llara.checkpoint.resume import completed_request, folder_to_resume, resume_command
from recbole_llara.checkpoint.run_folder import RunFolder, check_writable
from recbole_llara.checkpoint.training_state import TrainingStates
from recbole_llara.config.models import is_llm_recommender
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import EvaluationSettings
from recbole_llara.data.dataset import PreparedData, prepare_data
from recbole_llara.evaluator.result import build_result
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model
from recbole_llara.model.weights import has_other_prompts
from recbole_llara.trainer import get_trainer
from recbole_llara.trainer.stock import train_stock
from recbole_llara.utils.compat import make_folders, prepare_cpu, silence_harmless_warnings
from recbole_llara.utils.errors import Stopped
from recbole_llara.utils.processes import Processes, processes_of
from recbole_llara.utils.protocols import HasResultFields

BEST = "checkpoint"  # the best checkpoint's name in the run's folder


def run_recbole_llara(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train a model, evaluate it on the test rows' candidates, and write the run's folder.

    Args:
        model: one of our models or a RecBole sequential one.
        dataset: ml-100k, or a folder of ``data_path``.
        config_file_list: YAML files.
        config_dict: values over those of the files.
        argv: ``--key=value`` arguments over all others.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result``, and the
        paths ``run_dir``, ``result_file``, ``cases_file`` and ``checkpoint``.

    Raises:
        UserError: the configuration or the data cannot be used; the message says which key to change.
    """
    silence_harmless_warnings()
    prepare_cpu()
    request = completed_request(model, dataset, config_dict, argv, config_file_list)
    config = RunConfig(request.model, request.dataset, config_file_list, request.keys, argv)
    check_writable(config["checkpoint_dir"])
    processes = processes_of(config)
    init_seed(config["seed"], config["reproducibility"])
    with _logging(config, processes):
        logger = logging.getLogger()
        logger.info(str(config))
        for note in config.notes:
            logger.info(note)
        if config["dataset_warning"]:
            logger.warning(f"dataset {config['dataset']}: {config['dataset_warning']}")
        if is_llm_recommender(config["model"]):
            return _run(config, logger, processes)
        if processes.count > 1:
            logger.info(f"{config['model']} is trained by process 0 alone, the other {processes.count - 1} wait")
        return processes.from_main(lambda: _run(config, logger, Processes()))


def _run(config: RunConfig, logger: logging.Logger, processes: Processes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    resumed = processes.from_main(lambda: folder_to_resume(config))
    with _timed(timings, "data"):
        data = prepare_data(config, None if resumed is None else TrainingStates(resumed.path).numbering())
    init_seed(config["seed"], config["reproducibility"])
    with _timed(timings, "model"):
        model = build_model(config, data, train_stock)
    logger.info(str(model))
    with _opened(resumed, config, processes) as folder:
        trainer = get_trainer(config, model)
        # RecBole names the file by the minute, in the folder of all runs.
        trainer.saved_model_file = str(folder.path / Path(trainer.saved_model_file).with_stem(BEST).name)
        if resumed is not None:
            trainer.resume_checkpoint(folder.path)
        return _train_and_measure(config, data, trainer, folder, timings, logger, processes)


@contextmanager
def _opened(resumed: RunFolder | None, config: RunConfig, processes: Processes) -> Iterator[RunFolder]:
    """The run's folder, held by process 0 as long as the run lives."""
    folder = resumed or processes.from_main(lambda: RunFolder.create(config["checkpoint_dir"], config.final_config_dict))
    with folder.held() if processes.is_main else nullcontext():
        if processes.is_main and resumed is None:
            folder.write_request(config["model"], config["dataset"], config.external_config_dict)
            folder.write_config(config.final_config_dict)
        try:
            yield folder
        except KeyboardInterrupt as stop:
            if str(stop) or not is_llm_recommender(config["model"]):
                raise
            number = stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT
            command = resume_command(folder.path, config.external_config_dict)
            raise Stopped(number, f"stopped; {command} goes on from the last state") from None


def _train_and_measure(
    config: RunConfig,
    data: PreparedData,
    trainer: Any,
    folder: RunFolder,
    timings: dict[str, float],
    logger: logging.Logger,
    processes: Processes,
) -> dict[str, Any]:
    """All that a run does once everything is ready; returns what ``run_recbole_llara`` returns."""
    best_valid_score, best_valid_result = _train(config, data, trainer, timings)
    with _timed(timings, "evaluation"):
        test_result = trainer.evaluate(
            data.test_data, load_best_model=True, model_file=config["checkpoint"], show_progress=bool(config["show_progress"])
        )
    timings["evaluation_rows_per_second"] = round(len(trainer.last_cases.correct) / timings["evaluation_seconds"], 1)
    if is_llm_recommender(config["model"]):
        _add_training_times(trainer, timings)
    metrics = {"valid": best_valid_result or {}, "test": test_result}
    facts = trainer.model.result_fields() if isinstance(trainer.model, HasResultFields) else {}
    facts = {**facts, **_trained_on_other_rows(config, trainer.model, logger)}
    if config["full_rank"]:
        full_rank, full_rank_records = _measure_full_rank(config, data, trainer, logger)
        facts = {**facts, "full_rank": full_rank}
    else:
        full_rank_records = None
    paths = processes.from_main(lambda: _write(config, data, trainer, folder, metrics, timings, facts, full_rank_records))
    logger.info(f"best valid: {dict(best_valid_result or {})}")
    logger.info(f"test result: {dict(test_result)}")
    logger.info(f"written: {folder.path}")
    return {
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        **paths,
    }


def _trained_on_other_rows(config: RunConfig, model: Any, logger: logging.Logger) -> dict[str, Any]:
    """Tell of given weights that were trained on other interactions than this run's training rows, or under other prompts.

    Returns:
        for ``result.json``, the keys that named them; nothing where no weights were given.
    """
    trained_on = {"checkpoint": model.trained_on} if config["checkpoint"] else {}
    if isinstance(model, LLMRecommender) and config["rec_checkpoint"] and model.recommender is not None:
        trained_on["rec_checkpoint"] = model.recommender.trained_on
    if not trained_on:
        return {}
    others = [key for key, digest in trained_on.items() if digest is not None and digest != model.training_digest]
    for key in others:
        logger.warning(
            f"{key}: {config[key]} was trained on other interactions than the training rows of this run; test rows may be among "
            "them, and HitRatio@1 may be too high. Train it under this run's data, protocol and filters."
        )
    other_prompts = {"trained_under_other_prompts": has_other_prompts(model)} if isinstance(model, LLMRecommender) else {}
    return {"trained_on_other_rows": others, **other_prompts}


def _add_training_times(trainer: Any, timings: dict[str, float]) -> None:
    """The speed of a training, and the time that earlier processes spent on it."""
    if "training_seconds" in timings:
        timings["training_seconds"] = round(timings["training_seconds"] + trainer.seconds_before, 3)
    if trainer.progress.seconds_trained:
        timings["training_rows_per_second"] = round(trainer.progress.rows_trained / trainer.progress.seconds_trained, 1)


def _train(
    config: RunConfig, data: PreparedData, trainer: Any, timings: dict[str, float]
) -> tuple[float, Mapping[str, float] | None]:
    """Train, or with ``checkpoint`` only measure it on the validation rows; returns RecBole's best score and result."""
    show_progress = bool(config["show_progress"])
    if config["checkpoint"] is None:
        with _timed(timings, "training"):
            return trainer.fit(data.train_data, data.valid_data, saved=True, show_progress=show_progress)
    trainer.eval_collector.data_collect(data.train_data)
    result = trainer.evaluate(
        data.valid_data, load_best_model=True, model_file=config["checkpoint"], show_progress=show_progress
    )
    return calculate_valid_score(result, trainer.valid_metric), result


def _write(
    config: RunConfig,
    data: PreparedData,
    trainer: Any,
    folder: RunFolder,
    metrics: Mapping[str, Mapping[str, float]],
    timings: Mapping[str, float],
    facts: Mapping[str, Any],
    full_rank_records: list[dict[str, Any]] | None,
) -> dict[str, str]:
    """Write ``cases.jsonl`` and ``result.json``; returns the paths of all that the run wrote."""
    cases, dataset = trainer.last_cases, data.dataset
    item_tokens = dataset.field2id_token[dataset.iid_field]
    titles = item_tokens if data.catalogue is None else data.catalogue.titles
    records = cases.records(dataset.field2id_token[dataset.uid_field], item_tokens, titles)
    cases_file = folder.write_records("cases.jsonl", records)
    if is_llm_recommender(config["model"]) and trainer.progress.training_log:
        folder.write_records("training.jsonl", trainer.progress.training_log)
    if full_rank_records is not None:
        folder.write_records("full_rank.jsonl", full_rank_records)
    result = build_result(
        config.final_config_dict,
        correct=cases.correct,
        valid=cases.valid,
        outcomes=cases.outcome_counts,
        candidate_sha256=data.candidate_sha256,
        metrics=metrics,
        timings=timings,
        fields=facts,
        best_epoch=trainer.best_epoch,
    )
    result_file = folder.write_result(result, config["result_file"])
    TrainingStates(folder.path).remove()  # only now: until the result is written the run may have to go on
    return {
        "run_dir": str(folder.path),
        "result_file": str(result_file),
        "cases_file": str(cases_file),
        "checkpoint": str(config["checkpoint"] or trainer.saved_model_file),
    }


def _measure_full_rank(
    config: RunConfig, data: PreparedData, trainer: Any, logger: logging.Logger
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rank the whole catalogue for the test rows, all processes together; returns the metrics and a record a row."""
    from recbole_llara.serving.full_rank import full_rank_records, full_rank_result, rank_test_rows
    from recbole_llara.serving.loaded import loaded_run

    settings = EvaluationSettings.from_config(config)
    run = loaded_run(config, data, trainer.model)
    ranks = rank_test_rows(run, settings.retrieve_k, max(settings.topk), trainer.processes)
    result = full_rank_result(ranks, settings.topk)
    for name in ("retriever", "reranker"):
        shares = {metric: round(values["share"], 4) for metric, values in result[name].items()}
        logger.info(f"whole catalogue, {name}: {shares}")
    return result, full_rank_records(ranks, data.dataset.field2id_token[data.dataset.iid_field])


class _NoBoard:
    """A TensorBoard writer for processes that write nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values, **keys: None


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Note the seconds a stage took."""
    started = perf_counter()
    yield
    timings[f"{stage}_seconds"] = round(perf_counter() - started, 3)


@contextmanager
def _logging(config: RunConfig, processes: Processes) -> Iterator[None]:
    """RecBole's log on the screen and in ``log/``, for this run only, from process 0; the others tell of errors alone.

    Where the program has set up logging itself, RecBole's ``basicConfig`` adds nothing and nothing is taken away.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    make_folders(config["model"], config["checkpoint_dir"])
    if processes.is_main:
        init_logger(config)
        for handler in root.handlers:
            if isinstance(handler, logging.FileHandler) and handler not in before:
                handler.stream.reconfigure(encoding="utf-8")  # RecBole opens its log in the locale's encoding
    else:
        logging.basicConfig(level=logging.ERROR)
        recbole.trainer.trainer.get_tensorboard = lambda logger: _NoBoard()
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
            handler.close()
