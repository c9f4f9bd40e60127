"""How long a study will take, from a few optimiser steps of its own systems on this machine, before anything else is trained.

A small run trains a system on few rows, over a recommender that has learned nothing, in a folder that is removed. What its rows took
is multiplied by the rows that the system will train on and answer. How many epochs early stopping leaves, and how many rows a
protocol gives, is guessed; once systems are finished, what they really took corrects the rest (``StudyRuns.seconds_left``).
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from recbole_llara.config.models import is_llm_recommender
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer.trainer import get_trainer
from recbole_llara.utils.random_state import own_random_state

LLM_STEPS, STOCK_STEPS = 2, 20  # optimiser steps of a small run
LLM_ROWS = 4  # of such a step at most: an LLM of 135 million parameters takes seconds for each on a CPU
ANSWERS = 4  # rows that it answers
WORTH = 20  # a small run is made for work at least so many times as large
EPOCHS_TO_BEST = 8  # of a stock model that stops early: SASRec on ml-100k has its best epoch there
USERS_TO_A_ROW = {"leave_one_out": 1}  # of a validation or test row; the papers' protocol gives a tenth of the users one
OTHERWISE = 10


@dataclass(frozen=True)
class Work:
    """What an arm has to do."""

    training_rows: int = 0  # over all epochs
    answers: int = 0  # to validation and test rows

    @property
    def passes(self) -> int:
        """Passes of a row through the model; its backward pass costs two of them."""
        return 3 * self.training_rows + self.answers


@dataclass(frozen=True)
class Speed:
    """What a small run took."""

    seconds_a_row: float
    seconds_an_answer: float

    def seconds(self, work: Work) -> float:
        """How long so much work takes."""
        return self.seconds_a_row * work.training_rows + self.seconds_an_answer * work.answers


def work_of(config: RunConfig, is_trained: bool) -> Work:
    """What a run will do, as far as its keys and its files tell."""
    rows, users = _size_of_data(config)
    epochs = config["epochs"] if is_trained else 0
    if not is_llm_recommender(config["model"]) and config["eval_step"]:
        epochs = min(epochs, EPOCHS_TO_BEST + config["stopping_step"])
    questions = max(1, users // USERS_TO_A_ROW.get(config["protocol"], OTHERWISE))
    questions = min(questions, config["max_eval_rows"] or questions)
    validations = epochs // config["eval_step"] if config["eval_step"] else 0
    return Work(
        epochs * min(rows, config["max_train_rows"] or rows), questions * (1 + validations + bool(config["keep_valid_cases"]))
    )


def is_worth_it(config: RunConfig, work: Work) -> bool:
    """Whether an arm trains for so much longer than a small run that one is made."""
    return work.training_rows >= WORTH * _small_rows(config)


def speed_of(config: RunConfig, keys: Mapping[str, Any]) -> Speed:
    """Time a small run of a system.

    Args:
        config: of the system.
        keys: from which it was made.
    """
    with TemporaryDirectory() as folder, _silent(), own_random_state(config["seed"], config["reproducibility"]):
        small = {**keys, "checkpoint_dir": folder, "max_train_rows": _small_rows(config), "max_eval_rows": ANSWERS, "epochs": 1}
        small |= {"train_batch_size": _step_rows(config), "eval_step": 0, "show_progress": False, "state": "ERROR"}
        if is_llm_recommender(config["model"]):
            return _speed_of_llm(config["model"], config["dataset"], small)
        return _speed_of_stock(RunConfig(config["model"], config["dataset"], config_dict=small))


def _speed_of_llm(model: str, dataset: str, keys: Mapping[str, Any]) -> Speed:
    """From a run; its recommender is trained for no epoch, and it has one stage."""
    small = {
        "rec_epochs": 0,
        "rec_eval_step": 0,
        "strategy": "direct",
        "fusion": "none",
        "full_rank": False,
        "keep_valid_cases": False,
    }
    written = run_recbole_llara(model, dataset, config_dict={**keys, **small})
    timings = json.loads(Path(written["result_file"]).read_text(encoding="utf-8"))["timings"]
    return Speed(1 / timings["training_rows_per_second"], 1 / timings["evaluation_rows_per_second"])


def _speed_of_stock(config: RunConfig) -> Speed:
    """From an epoch after a first step; that a stock model answers takes next to nothing."""
    data = prepare_data(config)
    trainer = get_trainer(config, build_model(config, data))
    batches = iter(data.train_data)
    trainer._train_epoch(islice(batches, 1), 0)
    started = perf_counter()
    trainer._train_epoch(batches, 0)
    return Speed((perf_counter() - started) / max(1, len(data.dataset) - config["train_batch_size"]), 0.0)


def _step_rows(config: RunConfig) -> int:
    batch = config["train_batch_size"]
    return min(LLM_ROWS, batch) if is_llm_recommender(config["model"]) else batch


def _small_rows(config: RunConfig) -> int:
    return (LLM_STEPS if is_llm_recommender(config["model"]) else STOCK_STEPS) * _step_rows(config)


def _size_of_data(config: RunConfig) -> tuple[int, int]:
    """How many interactions the files hold, and of how many users."""
    rows, users = 0, set()
    for path in sorted(Path(config["data_path"]).glob("*.inter")):
        with path.open("rb") as file:
            names = [name.split(b":")[0].decode("utf-8", "replace") for name in next(file, b"").split(b"\t")]
            column = names.index(config["USER_ID_FIELD"]) if config["USER_ID_FIELD"] in names else 0
            for line in file:
                rows += 1
                users.add(line.split(b"\t", column + 1)[column])
    return rows, len(users)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is logged: the system's own run says it all again."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
