"""Running a search: trials one after another or in several processes, kept by optuna in an SQLite file, none twice.

A trial is entered as running before it begins, and the process that runs it holds its lock. A lock ends with its process,
however that ends: a running trial whose lock is free was killed, and is run again under its number. What a trial scores is
its ``best_valid_score``. No trial is chosen, and nothing is kept in optuna's file, by what it scores on the test rows.
"""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import perf_counter, sleep
from typing import Any

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from recbole_llara.checkpoint.run_folder import check_writable
from recbole_llara.config.models import is_llm_recommender
from recbole_llara.experiments.search.definition import Search, spoken_values
from recbole_llara.experiments.search.parameters import values_of
from recbole_llara.experiments.search.report import write_best
from recbole_llara.experiments.search.sampling import propose, space_of
from recbole_llara.experiments.search.trial import Trial
from recbole_llara.experiments.study.progress import Progress
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.digests import json_ready
from recbole_llara.utils.errors import Diverged, Stopped, UserError

FILE, NAME, FACTS = "trials.sqlite", "search", "facts"
LOOK_AGAIN = 0.5  # seconds, while other processes run all trials that are left
OUTCOME = "outcome"  # the attribute of a finished trial


class SearchRun:
    """A search as it is being run by this process, alone or beside others.

    Args:
        search: what is searched.

    Raises:
        UserError: the folder holds another search, or cannot be written.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        check_writable(search.folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._lock = FileLock(search.folder / f".{FILE}.lock")
        with self._lock:
            self._storage = RDBStorage(f"sqlite:///{(search.folder / FILE).resolve()}")
            self._study = optuna.create_study(
                storage=self._storage, study_name=NAME, direction=search.direction, load_if_exists=True
            )
            self._check_facts()

    def run(self) -> None:
        """Run trials until there are as many as wanted.

        Raises:
            UserError: a trial's keys cannot be used together.
            Stopped: by a signal; it says how to go on.
        """
        progress = Progress(self.search.max_evals, "Search")
        try:
            while True:
                with self._next() as found:
                    if found is None:
                        return
                    number, values = found
                    progress.done = len(self.finished())
                    progress.begin(f"trial {number}: {spoken_values(values)}", self._seconds_left())
                    self._finish(self._attempt(number, values), progress)
        except KeyboardInterrupt as stop:
            number = stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT
            done = f"{len(self.finished())} of {self.search.max_evals} trials are finished"
            raise Stopped(number, f"stopped; {done}, the same command goes on with the rest") from None

    def finished(self) -> list[Trial]:
        """All trials that came to an end, whichever process ran them, by number."""
        return [self._trial(trial) for trial in self._trials() if trial.state.is_finished()]

    # --- which trial is next -------------------------------------------------------------------

    @contextmanager
    def _next(self) -> Iterator[tuple[int, dict[str, Any]] | None]:
        """A trial and its values, under its lock; None when no more are wanted. Waits while others run the last ones."""
        while True:
            with self._lock:
                trials = self._trials()
                held = next((found for trial in trials if (found := self._abandoned(trial))), None) or self._new(trials)
                is_over = held is None and all(trial.state.is_finished() for trial in trials)
            if is_over:
                yield None
                return
            if held is not None:
                number, lock = held
                with lock:
                    yield number, self._values(self._trials()[number])
                return
            sleep(LOOK_AGAIN)

    def _abandoned(self, trial: FrozenTrial) -> tuple[int, Any] | None:
        """A trial that a killed process was running, and its lock, now held."""
        if trial.state.is_finished():
            return None
        lock = self._held(trial.number)
        return None if lock is None else (trial.number, lock)

    def _new(self, trials: Sequence[FrozenTrial]) -> tuple[int, Any] | None:
        """A trial that was not there before, entered as running, and its lock; None where no more are wanted."""
        search = self.search
        if len(trials) >= search.max_evals:
            return None
        drawn = propose(search.parameters, trials, search.algo, search.seed, search.direction)
        if drawn is None:
            return None
        lock = self._held(len(trials))
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=drawn, distributions=space_of(search.parameters)))
        return len(trials), lock

    def _held(self, number: int) -> Any | None:
        """The lock of a trial; None where another process has it."""
        try:
            return FileLock(self.search.folder / f".trial-{number}.lock").acquire(timeout=0)
        except Timeout:
            return None

    # --- one trial -----------------------------------------------------------------------------

    def _attempt(self, number: int, values: Mapping[str, Any]) -> Trial:
        """Run a trial; one that diverges or wants more memory than there is has failed, and the search goes on."""
        search, started = self.search, perf_counter()
        keys = search.keys_of(values)
        if is_llm_recommender(search.model) and not keys.get("checkpoint"):  # one that was killed goes on from its last state
            keys["resume"] = "auto"
        try:
            result = run_recbole_llara(model=search.model, dataset=search.dataset, config_dict=keys)
            score = float(result["best_valid_score"])
            if not math.isfinite(score):
                raise Diverged(f"best_valid_score is {score}, expected a number; is eval_step 0, or above epochs?")
        except UserError as error:
            raise UserError(f"trial {number}, {spoken_values(values)}: {error}") from error
        except (Diverged, torch.OutOfMemoryError) as error:
            return Trial(number, dict(values), None, round(perf_counter() - started, 1), {}, error=str(error))
        seconds, valid = round(perf_counter() - started, 1), json_ready(result["best_valid_result"] or {})
        return Trial(number, dict(values), score, seconds, valid, result["run_dir"], result["result_file"])

    def _finish(self, trial: Trial, progress: Progress) -> None:
        outcome = {key: value for key, value in vars(trial).items() if key not in ("number", "values", "score")}
        with self._lock:
            study_id = self._storage.get_study_id_from_name(NAME)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self._storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
            state = TrialState.FAIL if trial.score is None else TrialState.COMPLETE
            self._study.tell(trial.number, trial.score, state)
            write_best(self.search, trials := self.finished())
            progress.done = len(trials) - 1
        verdict = f"FAILED: {trial.error}" if trial.score is None else f"{self.search.valid_metric} {trial.score:.4f}"
        progress.end(f"trial {trial.number}", f"{verdict}, {trial.seconds:.0f} s")

    def _seconds_left(self) -> float | None:
        """What the trials that are left take one after another, by the mean of the finished; None where there is none."""
        finished = self.finished()
        if not finished:
            return None
        mean = sum(trial.seconds for trial in finished) / len(finished)
        return mean * (self.search.max_evals - len(finished))

    # --- what is kept --------------------------------------------------------------------------

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _values(self, trial: FrozenTrial) -> dict[str, Any]:
        return values_of(self.search.parameters, trial.params)

    def _trial(self, trial: FrozenTrial) -> Trial:
        return Trial(trial.number, self._values(trial), trial.value, **trial.user_attrs[OUTCOME])

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
