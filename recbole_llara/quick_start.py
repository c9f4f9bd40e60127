"""One run from configuration to result: data, model, training, evaluation, and the files that tell about it."""

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from recbole.utils import calculate_valid_score, init_logger, init_seed

from recbole_llara.checkpoint.run_folder import (
    PROMPTS,
    RECOMMENDER,
    RunFolder,
    check_writable,
    completed_request,
    folder_to_resume,
    resume_command,
)
from recbole_llara.checkpoint.training_state import TrainingStates
from recbole_llara.config.models import is_llm_recommender
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import NO_FUSION, EvaluationSettings
from recbole_llara.data.dataset import PreparedData, prepare_data
from recbole_llara.data.statistics import data_statistics
from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.result import build_result
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model
from recbole_llara.model.weights import has_other_prompts
from recbole_llara.recommender.frozen import Recommender, keep_beside
from recbole_llara.serving.full_rank import full_rank_records, full_rank_result, rank_test_rows
from recbole_llara.serving.fused import fuse_run
from recbole_llara.serving.loaded import LoadedRun
from recbole_llara.trainer.trainer import get_trainer
from recbole_llara.utils.errors import Stopped, UserError, signal_of
from recbole_llara.utils.hashing import json_ready
from recbole_llara.utils.process_setup import own_environment
from recbole_llara.utils.processes import Processes, processes_of
from recbole_llara.utils.random_state import own_random_state

BEST = "checkpoint"  # the best checkpoint's name in the run's folder
CASES = {"test": ("cases_file", "cases.jsonl"), "valid": ("valid_cases_file", "valid_cases.jsonl")}  # split -> path's key, file


@runtime_checkable
class HasResultFields(Protocol):
    """A model that adds fields of its own to ``result.json``."""

    def result_fields(self) -> dict[str, Any]:
        """``llm``, ``rec_model`` and ``decoding`` where it has them, and whatever else belongs there."""


@own_environment()
def run_recbole_llara(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train a model, evaluate it on the test rows' candidates, and write the run's folder.

    The process is left as it was found: generators, log handlers and the like are put back. ``utils.process_setup`` has what the
    command line does to its process for speed; a program that wants it calls it first.

    Args:
        model: one of our models or a RecBole sequential one.
        dataset: ml-100k, or a folder of ``data_path``.
        config_file_list: YAML files.
        config_dict: values over those of the files.
        argv: ``--key=value`` arguments over all others.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and ``test_result``, and the
        paths ``run_dir``, ``result_file`` and ``checkpoint``, and ``cases_file`` and ``valid_cases_file`` where they were asked for.

    Raises:
        UserError: the configuration or the data cannot be used; the message says which key to change.
    """
    request = completed_request(model, dataset, config_dict, argv, config_file_list)
    config = RunConfig(request.model, request.dataset, config_file_list, request.keys, argv)
    check_writable(config["checkpoint_dir"])
    processes = processes_of(config)
    with own_random_state(config["seed"], config["reproducibility"]), _logging(config, processes):
        logger = logging.getLogger()
        logger.info(str(config))
        for note in config.notes:
            logger.info(note)
        if config["dataset_warning"]:
            logger.warning(f"dataset {config['dataset']}: {config['dataset_warning']}")
        if is_llm_recommender(config["model"]):
            return _run(config, processes)
        if processes.count > 1:
            logger.info(f"{config['model']} is trained by process 0 alone, the other {processes.count - 1} wait")
        return processes.from_main(lambda: _run(config, Processes()))


def _run(config: RunConfig, processes: Processes) -> dict[str, Any]:
    """Data, model, training, evaluation, files; returns what ``run_recbole_llara`` returns."""
    logger, show_progress = logging.getLogger(), bool(config["show_progress"])
    timings: dict[str, float] = {}
    resumed = processes.from_main(lambda: folder_to_resume(config))
    with _timed(timings, "data"):
        data = prepare_data(config, None if resumed is None else TrainingStates(resumed.path).numbering())
    init_seed(config["seed"], config["reproducibility"])
    with _timed(timings, "model"):
        model = build_model(config, data)
        # Before anything is trained: a recommender that cannot be had is told now.
        run = LoadedRun(config, data, model) if config["full_rank"] or _is_fused(config) else None
    logger.info(str(model))
    with _opened(resumed, config, processes) as folder:
        trainer = get_trainer(config, model)
        # RecBole names the file by the minute, in the folder of all runs.
        trainer.saved_model_file = str(folder.path / Path(trainer.saved_model_file).with_stem(BEST).name)
        if resumed is not None:
            trainer.resume_checkpoint(folder.path)
        answered: dict[str, EvaluatedCases] = {}  # by split, under the weights that are kept
        if checkpoint := config["checkpoint"]:
            trainer.eval_collector.data_collect(data.train_data)
            valid_result = trainer.evaluate(data.valid_data, model_file=checkpoint, show_progress=show_progress)
            valid_score, answered["valid"] = calculate_valid_score(valid_result, trainer.valid_metric), trainer.last_cases
        else:
            with _timed(timings, "training"):
                valid_score, valid_result = trainer.fit(data.train_data, data.valid_data, show_progress=show_progress)
        with _timed(timings, "evaluation"):
            test_result = trainer.evaluate(data.test_data, model_file=checkpoint, show_progress=show_progress)
        _note_speed(timings, trainer)
        answered["test"] = trainer.last_cases
        fields, ranks = _result_fields(config, model, run), None
        if "valid" not in answered and (_is_fused(config) or config["keep_valid_cases"]):
            # What was answered in training was not answered by the best weights.
            trainer.evaluate(data.valid_data, load_best_model=False, show_progress=show_progress)
            answered["valid"] = trainer.last_cases
        if _is_fused(config):
            with _timed(timings, "fusion"):
                fused = processes.from_main(lambda: fuse_run(run, trainer, answered))
            run.fusion, answered, fields["fusion"] = fused.fusion, fused.cases, fused.result_fields()
            valid_result, test_result = fused.metrics["valid"], fused.metrics["test"]
            valid_score = calculate_valid_score(valid_result, trainer.valid_metric)
            logger.info(f"{fused.fusion.name}: {json_ready(fused.fusion.result_fields())}")
        if config["full_rank"]:
            fields["full_rank"], ranks = _rank_catalogue(config, run, trainer.processes)
        if is_llm_recommender(config["model"]):
            processes.from_main(lambda: _keep_what_was_read(folder, config, _recommender_of(model, run)))
        if isinstance(model, LLMRecommender) and trainer.progress.rows_trained:
            fields["training"] = {"rows": trainer.progress.rows_trained, "steps": trainer.progress.all_steps}
        told = {"metrics": {"valid": valid_result or {}, "test": test_result}, "timings": timings, "fields": fields}
        paths = processes.from_main(lambda: _write(config, data, trainer, folder, answered, ranks, told))
        logger.info(f"best valid: {json_ready(valid_result or {})}")
        logger.info(f"test result: {json_ready(test_result)}")
        logger.info(f"written: {folder.path}")
    return {
        "best_valid_score": valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": valid_result,
        "test_result": test_result,
        **paths,
    }


@contextmanager
def _opened(resumed: RunFolder | None, config: RunConfig, processes: Processes) -> Iterator[RunFolder]:
    """The run's folder, held by process 0 as long as the run lives."""
    folder = resumed or processes.from_main(lambda: RunFolder.create(config["checkpoint_dir"], config.final_config_dict))
    with folder.held() if processes.is_main else nullcontext():
        if processes.is_main and resumed is None:
            folder.write_request(config)
            folder.write_config(config.final_config_dict)
        try:
            yield folder
        except KeyboardInterrupt as stop:
            if str(stop) or not is_llm_recommender(config["model"]):
                raise
            command = resume_command(folder.path, config.external_config_dict)
            raise Stopped(signal_of(stop), f"stopped; {command} resumes from the last state") from None


def _note_speed(timings: dict[str, float], trainer: Any) -> None:
    timings["evaluation_rows_per_second"] = round(len(trainer.last_cases.correct) / timings["evaluation_seconds"], 1)
    if isinstance(trainer.model, LLMRecommender):
        if "training_seconds" in timings:  # earlier processes spent time on it too
            timings["training_seconds"] = round(timings["training_seconds"] + trainer.seconds_before, 3)
        if seconds := trainer.progress.seconds_trained:
            timings["training_rows_per_second"] = round(trainer.progress.rows_trained / seconds, 1)


def _is_fused(config: RunConfig) -> bool:
    return is_llm_recommender(config["model"]) and config["fusion"] != NO_FUSION


def _recommender_of(model: Any, run: LoadedRun | None) -> Recommender | None:
    """Whose embeddings an LLM's prompts show, or else what proposes items to it; None where the run had neither."""
    return getattr(model, "recommender", None) or (None if run is None else run.recommender)


def _keep_what_was_read(folder: RunFolder, config: RunConfig, recommender: Recommender | None) -> None:
    """Put the recommender and the prompts of a run into its folder, so that it answers wherever that is brought."""
    if recommender is not None:
        keep_beside(recommender, folder.path / RECOMMENDER)
    if config["prompt_file"]:
        shutil.copyfile(Path(config["prompt_file"]).expanduser(), folder.path / PROMPTS)


def _result_fields(config: RunConfig, model: Any, run: LoadedRun | None) -> dict[str, Any]:
    """What ``result.json`` tells of the model; with a warning where given weights were trained on other interactions."""
    fields = dict(model.result_fields()) if isinstance(model, HasResultFields) else {}
    is_llm = isinstance(model, LLMRecommender)
    recommender = _recommender_of(model, run) if is_llm else None
    if recommender is not None and model.recommender is None:
        # No prompt shows what it knows; it proposes, or its scores are added.
        fields |= {"recommender": recommender.result_fields()} | ({"rec_model": recommender.model} if _is_fused(config) else {})
    recommender = recommender or (model.proposing if is_llm else None)
    trained_on = {"checkpoint": model.trained_on} if config["checkpoint"] else {}
    if config["rec_checkpoint"] and recommender is not None:
        trained_on["rec_checkpoint"] = recommender.trained_on
    if not trained_on:
        return fields
    others = [key for key, digest in trained_on.items() if digest not in (None, model.training_digest)]
    for key in others:
        logging.getLogger().warning(
            f"{key}: {config[key]} was trained on other interactions than the training rows of this run; test rows may be among "
            "them, and HitRatio@1 may be too high. Train it under this run's data, protocol and filters."
        )
    fields["trained_on_other_rows"] = others
    return {**fields, "trained_under_other_prompts": has_other_prompts(model)} if is_llm else fields


def _rank_catalogue(config: RunConfig, run: LoadedRun, processes: Processes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rank the whole catalogue for the test rows, all processes together; returns the metrics and a record a row."""
    settings, dataset = EvaluationSettings.from_config(config), run.data.dataset
    run.model.eval()
    ranks = rank_test_rows(run, settings.retrieve_k, max(settings.topk), processes)
    result = full_rank_result(ranks, settings.topk)
    for name in ("retriever", "reranker"):
        shares = {metric: round(values["share"], 4) for metric, values in result[name].items()}
        logging.getLogger().info(f"whole catalogue, {name}: {shares}")
    return result, full_rank_records(ranks, dataset.field2id_token[dataset.iid_field])


def _write(
    config: RunConfig,
    data: PreparedData,
    trainer: Any,
    folder: RunFolder,
    answered: Mapping[str, EvaluatedCases],
    ranks: list[dict[str, Any]] | None,
    told: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Write ``cases.jsonl``, ``result.json`` and the like; returns the paths of all that the run wrote.

    Args:
        answered: the rows of ``test``, and of other splits.
        ranks: a record a row where the catalogue was ranked.
        told: ``metrics``, ``timings`` and ``fields`` of the result.
    """
    dataset = data.dataset
    items = dataset.field2id_token[dataset.iid_field]
    titles = items if data.catalogue is None else data.catalogue.titles
    cases_files = {}
    kept = [split for split, key in (("test", "keep_cases"), ("valid", "keep_valid_cases")) if config[key]]
    for split in kept:
        key, name = CASES[split]
        records = answered[split].records(dataset.field2id_token[dataset.uid_field], items, titles, dataset.training_counts)
        cases_files[key] = str(folder.write_records(name, records))
    if isinstance(trainer.model, LLMRecommender) and trainer.progress.training_log:
        folder.write_records("training.jsonl", trainer.progress.training_log)
    if ranks is not None:
        folder.write_records("full_rank.jsonl", ranks)
    told = {**told, "fields": {"data": data_statistics(data).as_json(), **told["fields"]}}
    result = build_result(
        config.final_config_dict,
        answered["test"],
        candidate_sha256=data.candidate_sha256,
        best_epoch=trainer.best_epoch,
        **told,
    )
    result_file = folder.write_result(result, config["result_file"])
    TrainingStates(folder.path).remove()  # only now: until the result is written the run may have to go on
    return {
        "run_dir": str(folder.path),
        "result_file": str(result_file),
        **cases_files,
        "checkpoint": str(config["checkpoint"] or trainer.saved_model_file),
    }


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
    handlers, level, streams = list(root.handlers), root.level, (sys.stdout, sys.stderr)
    if processes.is_main:
        for folder in (Path("log", config["model"]), Path("log_tensorboard")):
            try:
                folder.mkdir(parents=True, exist_ok=True)  # RecBole itself fails where two runs make it at once
            except OSError as error:
                raise UserError(
                    f"{folder.parts[0]}: RecBole writes into this folder of the working folder {Path.cwd()}, but it cannot be made "
                    f"({error.strerror}); move away what is in its place, or run elsewhere"
                ) from error
        init_logger(config)
        for handler in root.handlers:
            if isinstance(handler, logging.FileHandler) and handler not in handlers:
                handler.stream.reconfigure(encoding="utf-8")  # RecBole opens its log in the locale's encoding
    else:
        logging.basicConfig(level=logging.ERROR)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        sys.stdout, sys.stderr = streams  # which RecBole's logger has wrapped
