"""One run from configuration to result: data, model, training, evaluation, and the files that tell about it."""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

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
from recbole_llara.utils.errors import Stopped
from recbole_llara.utils.process_setup import own_environment
from recbole_llara.utils.processes import Processes, processes_of
from recbole_llara.utils.protocols import HasResultFields
from recbole_llara.utils.random_state import own_random_state

BEST = "checkpoint"  # the best checkpoint's name in the run's folder


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
        paths ``run_dir``, ``result_file``, ``cases_file`` and ``checkpoint``.

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
    timings: dict[str, float] = {}
    resumed = processes.from_main(lambda: folder_to_resume(config))
    with _timed(timings, "data"):
        data = prepare_data(config, None if resumed is None else TrainingStates(resumed.path).numbering())
    init_seed(config["seed"], config["reproducibility"])
    with _timed(timings, "model"):
        model = build_model(config, data, train_stock)
    logger = logging.getLogger()
    logger.info(str(model))
    with _opened(resumed, config, processes) as folder:
        trainer = get_trainer(config, model)
        # RecBole names the file by the minute, in the folder of all runs.
        trainer.saved_model_file = str(folder.path / Path(trainer.saved_model_file).with_stem(BEST).name)
        if resumed is not None:
            trainer.resume_checkpoint(folder.path)
        run = _Run(config, data, trainer, folder, timings)
        best_valid_score, best_valid_result = run.train()
        test_result = run.evaluate()
        fields, full_rank_records = run.result_fields(), None
        if config["full_rank"]:
            fields["full_rank"], full_rank_records = run.rank_catalogue()
        metrics = {"valid": best_valid_result or {}, "test": test_result}
        paths = processes.from_main(lambda: run.write(metrics, fields, full_rank_records))
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


@dataclass(frozen=True)
class _Run:
    """One run, once everything is ready; its methods are called in their order."""

    config: RunConfig
    data: PreparedData
    trainer: Any
    folder: RunFolder
    timings: dict[str, float] = field(default_factory=dict)

    def train(self) -> tuple[float, Mapping[str, float] | None]:
        """Train, or with ``checkpoint`` only measure it on the validation rows; returns RecBole's best score and result."""
        data, trainer, checkpoint = self.data, self.trainer, self.config["checkpoint"]
        if checkpoint is None:
            with _timed(self.timings, "training"):
                return trainer.fit(data.train_data, data.valid_data, saved=True, show_progress=self._show_progress)
        trainer.eval_collector.data_collect(data.train_data)
        result = trainer.evaluate(data.valid_data, model_file=checkpoint, show_progress=self._show_progress)
        return calculate_valid_score(result, trainer.valid_metric), result

    def evaluate(self) -> Mapping[str, float]:
        """Measure the best checkpoint on the test rows; note how fast everything was."""
        trainer, timings = self.trainer, self.timings
        with _timed(timings, "evaluation"):
            result = trainer.evaluate(
                self.data.test_data, model_file=self.config["checkpoint"], show_progress=self._show_progress
            )
        timings["evaluation_rows_per_second"] = round(len(trainer.last_cases.correct) / timings["evaluation_seconds"], 1)
        if is_llm_recommender(self.config["model"]):
            if "training_seconds" in timings:  # earlier processes spent time on it too
                timings["training_seconds"] = round(timings["training_seconds"] + trainer.seconds_before, 3)
            if trainer.progress.seconds_trained:
                speed = trainer.progress.rows_trained / trainer.progress.seconds_trained
                timings["training_rows_per_second"] = round(speed, 1)
        return result

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of the model; with a warning where given weights were trained on other interactions."""
        config, model = self.config, self.trainer.model
        fields = dict(model.result_fields()) if isinstance(model, HasResultFields) else {}
        trained_on = {"checkpoint": model.trained_on} if config["checkpoint"] else {}
        if isinstance(model, LLMRecommender) and config["rec_checkpoint"] and model.recommender is not None:
            trained_on["rec_checkpoint"] = model.recommender.trained_on
        if not trained_on:
            return fields
        others = [key for key, digest in trained_on.items() if digest is not None and digest != model.training_digest]
        for key in others:
            logging.getLogger().warning(
                f"{key}: {config[key]} was trained on other interactions than the training rows of this run; test rows may be among "
                "them, and HitRatio@1 may be too high. Train it under this run's data, protocol and filters."
            )
        fields["trained_on_other_rows"] = others
        if isinstance(model, LLMRecommender):
            fields["trained_under_other_prompts"] = has_other_prompts(model)
        return fields

    def rank_catalogue(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Rank the whole catalogue for the test rows, all processes together; returns the metrics and a record a row."""
        from recbole_llara.serving.full_rank import full_rank_records, full_rank_result, rank_test_rows
        from recbole_llara.serving.loaded import loaded_run

        settings, dataset = EvaluationSettings.from_config(self.config), self.data.dataset
        run = loaded_run(self.config, self.data, self.trainer.model)
        ranks = rank_test_rows(run, settings.retrieve_k, max(settings.topk), self.trainer.processes)
        result = full_rank_result(ranks, settings.topk)
        for name in ("retriever", "reranker"):
            shares = {metric: round(values["share"], 4) for metric, values in result[name].items()}
            logging.getLogger().info(f"whole catalogue, {name}: {shares}")
        return result, full_rank_records(ranks, dataset.field2id_token[dataset.iid_field])

    def write(
        self,
        metrics: Mapping[str, Mapping[str, float]],
        fields: Mapping[str, Any],
        full_rank_records: list[dict[str, Any]] | None,
    ) -> dict[str, str]:
        """Write ``cases.jsonl``, ``result.json`` and the like; returns the paths of all that the run wrote."""
        config, dataset, trainer, folder = self.config, self.data.dataset, self.trainer, self.folder
        cases, item_ids = trainer.last_cases, dataset.field2id_token[dataset.iid_field]
        titles = item_ids if self.data.catalogue is None else self.data.catalogue.titles
        records = cases.records(dataset.field2id_token[dataset.uid_field], item_ids, titles)
        cases_file = folder.write_records("cases.jsonl", records)
        if is_llm_recommender(config["model"]) and trainer.progress.training_log:
            folder.write_records("training.jsonl", trainer.progress.training_log)
        if full_rank_records is not None:
            folder.write_records("full_rank.jsonl", full_rank_records)
        result = build_result(
            config.final_config_dict,
            cases,
            candidate_sha256=self.data.candidate_sha256,
            metrics=metrics,
            timings=self.timings,
            fields=fields,
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

    @property
    def _show_progress(self) -> bool:
        return bool(self.config["show_progress"])


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
        Path("log", config["model"]).mkdir(parents=True, exist_ok=True)  # RecBole itself fails where two runs make it at once
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
