"""Running a search: its trials are kept by optuna in an SQLite file, and none is run twice.

A trial is entered as running before it begins, and the process that runs it holds its lock: a running trial whose lock is free
was killed, and is run again under its number. A trial's score is its ``best_valid_score``. Test rows choose no trial, and no
score on them is kept in optuna's file.
"""

import math
from datetime import datetime
from statistics import fmean
from time import perf_counter
from typing import Any

import optuna
import torch
from filelock import AcquireReturnProxy, FileLock
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from recbole_llara.checkpoint.run_folder import check_writable
from recbole_llara.experiments.runner import Plan, run_model, take_lock
from recbole_llara.experiments.search_definition import Search, Trial, plain, values_text
from recbole_llara.experiments.search_report import write_trials
from recbole_llara.experiments.search_space import propose, space_of, values_of
from recbole_llara.utils.digests import json_ready
from recbole_llara.utils.errors import Diverged, UserError

FILE, NAME, FACTS = "trials.sqlite", "search", "facts"
OUTCOME = "outcome"  # the attribute of a finished trial

Run = tuple[int, dict[str, Any]]


class SearchTrials(Plan):
    """The trials of a search; a run is a trial's number and its values.

    Args:
        search: what is searched.

    Raises:
        UserError: the folder holds another search, or cannot be written.
    """

    kind = "Search"
    reuse_hint = ""

    def __init__(self, search: Search) -> None:
        self.search, self.count = search, search.max_evals
        check_writable(search.folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._lock = FileLock(search.folder / f".{FILE}.lock")
        with self._lock:
            self._storage = RDBStorage(f"sqlite:///{(search.folder / FILE).resolve()}")
            self._study = optuna.create_study(
                storage=self._storage, study_name=NAME, direction=search.direction, load_if_exists=True
            )
            self._check_facts()

    def claim(self) -> tuple[Run, AcquireReturnProxy] | None:
        search = self.search
        with self._lock:
            trials = self._trials()
            for trial in trials:  # first those that a killed process was running
                if not trial.state.is_finished() and (lock := self._take_lock(trial.number)):
                    return (trial.number, values_of(search.parameters, trial.params)), lock
            if (number := len(trials)) >= self.count:
                return None
            drawn = propose(search.parameters, trials, search.algo, search.seed, search.direction)
            if drawn is None or (lock := self._take_lock(number)) is None:
                return None
            space = space_of(search.parameters)
            self._study.add_trial(create_trial(state=TrialState.RUNNING, params=drawn, distributions=space))
            return (number, values_of(search.parameters, drawn)), lock

    def perform(self, run: Run) -> Trial:
        number, values = run
        started = perf_counter()
        try:
            result = run_model(self.search.model, self.search.dataset, plain({**self.search.fixed, **values}))
            score = float(result["best_valid_score"])
            if not math.isfinite(score):
                raise Diverged(f"best_valid_score is {score}, expected a number; is eval_step 0, or above epochs?")
        except UserError as error:
            raise UserError(f"trial {number}, {values_text(values)}: {error}") from error
        except (Diverged, torch.OutOfMemoryError) as error:  # the search goes on
            return Trial(number, values, None, round(perf_counter() - started, 1), {}, error=str(error))
        seconds, valid = round(perf_counter() - started, 1), json_ready(result["best_valid_result"] or {})
        return Trial(number, values, score, seconds, valid, result["run_dir"], result["result_file"])

    def keep(self, run: Run, trial: Trial) -> None:
        outcome = {key: value for key, value in vars(trial).items() if key not in ("number", "values", "score")}
        with self._lock:
            study_id = self._storage.get_study_id_from_name(NAME)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self._storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
            state = TrialState.FAIL if trial.score is None else TrialState.COMPLETE
            self._study.tell(trial.number, trial.score, state)
            write_trials(self.search, self.finished())

    def finished(self) -> list[Trial]:
        return [
            Trial(trial.number, values_of(self.search.parameters, trial.params), trial.value, **trial.user_attrs[OUTCOME])
            for trial in self._trials()
            if trial.state.is_finished()
        ]

    def is_over(self) -> bool:
        return all(trial.state.is_finished() for trial in self._trials())

    def seconds_left(self) -> float | None:
        finished = self.finished()
        return fmean(trial.seconds for trial in finished) * (self.count - len(finished)) if finished else None

    def describe(self, run: Run) -> str:
        return f"trial {run[0]}: {values_text(run[1])}"

    def verdict(self, trial: Trial) -> str:
        score = f"FAILED: {trial.error}" if trial.score is None else f"{self.search.valid_metric} {trial.score:.4f}"
        return f"{score}, {trial.seconds:.0f} s"

    def _take_lock(self, number: int) -> AcquireReturnProxy | None:
        return take_lock(self.search.folder / f".trial-{number}.lock")

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _check_facts(self) -> None:
        """Refuse to go on with a search of other facts."""
        here, there = self.search.facts, self._study.user_attrs.get(FACTS)
        if there is None:
            self._study.set_user_attr(FACTS, here)
            self._study.set_user_attr("began", datetime.now().isoformat(timespec="seconds"))
        elif there != here:
            differing = [key for key in here if here[key] != there.get(key)]
            lines = "; ".join(f"{key}: {there.get(key)} there, {here[key]} here" for key in differing)
            raise UserError(f"output: {self.search.folder} holds another search: {lines}; choose another folder")
