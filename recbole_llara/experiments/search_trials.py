"""A search as it runs and what it tells: its trials are kept by optuna in an SQLite file, and none is run twice.

A trial is entered as running before it begins, and the process that runs it holds its lock: a running trial whose lock is free
was killed, and is run again under its number. A trial's score is its ``best_valid_score``. Test rows choose no trial, and no
score on them is kept in optuna's file: those of the best trial are read from its run when all are finished, and reported once.
"""

import json
import math
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

import optuna
import pandas as pd
import plotly.graph_objects as go
import torch
import yaml
from filelock import AcquireReturnProxy, FileLock
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import plot_optimization_history, plot_slice

from recbole_llara.checkpoint.run_folder import check_writable
from recbole_llara.config.keys import with_effect
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.yaml_files import plain
from recbole_llara.experiments.report import Report, csv_text, styled, write_report
from recbole_llara.experiments.runner import Plan, run_model
from recbole_llara.experiments.search_definition import Search, propose, space_of, value_text, values_of, values_text
from recbole_llara.utils.atomic import take_lock, write_text
from recbole_llara.utils.errors import Diverged, UserError, differences
from recbole_llara.utils.hashing import json_ready

FILE, NAME, FACTS = "trials.sqlite", "search", "facts"
OUTCOME = "outcome"  # the attribute of a finished trial
BEST = "best.yaml"


class Run(NamedTuple):
    """A trial that is to be run."""

    number: int  # from 0
    values: dict[str, Any]  # of the searched keys

    def __str__(self) -> str:
        return f"trial {self.number}: {values_text(self.values)}"


@dataclass(frozen=True)
class Trial:
    """A finished trial; where it failed, it has an error and no score."""

    number: int  # from 0
    values: dict[str, Any]  # of the searched keys
    score: float | None  # ``best_valid_score``
    seconds: float
    valid: dict[str, float]  # RecBole's metrics of the validation rows
    run_dir: str | None = None
    result_file: str | None = None
    error: str | None = None


class SearchTrials(Plan):
    """The trials of a search; ``UserError`` where the folder holds another search, or cannot be written."""

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
                    return Run(trial.number, values_of(search.parameters, trial.params)), lock
            if (number := len(trials)) >= self.count:
                return None
            drawn = propose(search, trials)
            if drawn is None or (lock := self._take_lock(number)) is None:
                return None
            space = space_of(search.parameters)
            self._study.add_trial(create_trial(state=TrialState.RUNNING, params=drawn, distributions=space))
            return Run(number, values_of(search.parameters, drawn)), lock

    def perform(self, run: Run) -> str:
        trial = self._run(run)
        outcome = {key: value for key, value in vars(trial).items() if key not in ("number", "values", "score")}
        with self._lock:
            study_id = self._storage.get_study_id_from_name(NAME)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            self._storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
            state = TrialState.FAIL if trial.score is None else TrialState.COMPLETE
            self._study.tell(trial.number, trial.score, state)
            for name, text in self._files(self.finished()).items():
                write_text(self.search.folder / name, text)
        score = f"FAILED: {trial.error}" if trial.score is None else f"{self.search.valid_metric} {trial.score:.4f}"
        return f"{score}, {trial.seconds:.0f} s"

    def _run(self, run: Run) -> Trial:
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

    def best(self) -> Trial | None:
        """The trial of the best score, of equals the first; None where all failed."""
        return next((trial for trial in self._ranked() if trial.score is not None), None)

    def report(self) -> str:
        """Write ``report.md``, ``search.html``, ``trials.csv``, ``best.yaml`` and ``figures/``; returns what to print."""
        search, trials, best = self.search, self.finished(), self.best()
        failed = sum(trial.score is None for trial in trials)
        told = f"{len(trials)} trials, {failed} of them failed; trials are compared by {search.valid_metric}"
        blocks = [f"{told} on the validation rows.", [str(parameter) for parameter in search.parameters]]
        if best is None:
            blocks.append("No trial came to a score.")
        else:
            blocks.append(f"Best: trial {best.number}, {search.valid_metric} {best.score:.4f}; {best.run_dir}")
            if (file := Path(best.result_file or "")).is_file():
                test = json.loads(file.read_text(encoding="utf-8"))["metrics"]["test"]
                metrics = ", ".join(f"{name} {value}" for name, value in test.items())
                blocks.append(f"On the test rows, read for this trial alone and after it was chosen: {metrics}")
            blocks.append(f"`recbole-llara --config_files={search.folder / BEST}` runs it again.")
        rows = []
        for trial in self._ranked():
            score = f"failed: {trial.error}" if trial.score is None else f"{trial.score:.4f}"
            cells = [str(trial.number), score, *map(value_text, trial.values.values()), f"{trial.seconds:.0f}"]
            rows.append([" ".join(cell.split()) for cell in cells])
        keys = [parameter.key for parameter in search.parameters]
        blocks.append({"Trials": pd.DataFrame(rows, columns=["trial", search.valid_metric, *keys, "seconds"])})
        report = Report(f"{search.model} on {search.dataset}: {search.algo} search", blocks, self.draw())
        return write_report(report, search.folder, "search.html", self._files(trials))

    def draw(self) -> dict[str, go.Figure]:
        """optuna's figures: each trial's score with the best so far, failed ones as crosses; and each key against the score."""
        search, trials = self.search, self.finished()
        labels = {
            trial.number: "<br>".join([f"trial {trial.number}", *(f"{key} {value}" for key, value in trial.values.items())])
            + (f"<br>{trial.error}" if trial.error else "")
            for trial in trials
        }
        history = plot_optimization_history(self._study, target_name=search.valid_metric)
        keys = plot_slice(self._study, target_name=search.valid_metric)
        if failed := [trial.number for trial in trials if trial.score is None]:
            floor = min((trial.score for trial in trials if trial.score is not None), default=0.0)
            history.add_scatter(x=failed, y=[floor] * len(failed), mode="markers", name="failed", marker={"symbol": "x"})
        for trace in history.select_traces({"mode": "markers"}):
            trace.text = [labels[number] for number in trace.x or ()]
        for trace in keys.select_traces():
            trace.text = [labels[number] for number in trace.marker.color or ()]
            trace.x = [literal_eval(x) if isinstance(x, str) else x for x in trace.x]  # optuna shows a choice by its repr
        for axis in keys.select_xaxes({"type": "category"}):
            axis.categoryarray = [literal_eval(choice) for choice in axis.categoryarray]
        title = f"Search of {search.model} on {search.dataset}, {search.algo}"
        return {"history": styled(history, title, 420), "keys": styled(keys, f"{title}: each key", 420)}

    def _files(self, trials: Sequence[Trial]) -> dict[str, str]:
        """The trials as CSV, and the best of them as a configuration file that runs it again."""
        rows = [
            {"trial": trial.number, "score": trial.score, **trial.values, "seconds": trial.seconds}
            | {f"valid_{name}": value for name, value in trial.valid.items()}
            | {"run_dir": trial.run_dir, "error": trial.error}
            for trial in trials
        ]
        files, search = {"trials.csv": csv_text(rows)}, self.search
        if (best := self.best()) is not None:
            head = f"# Trial {best.number} of {len(trials)}: {search.valid_metric} {best.score} on the validation rows.\n"
            keys = {"model": search.model, "dataset": search.dataset, **with_effect({**search.fixed, **best.values})}
            content = json_ready(without_secrets(keys))
            files[BEST] = head + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        return files

    def _ranked(self) -> list[Trial]:
        """The finished trials, best first; those that failed come last, and of equals the first comes first."""
        sign = -1 if self.search.direction == "maximize" else 1
        return sorted(self.finished(), key=lambda trial: (trial.score is None, sign * (trial.score or 0.0), trial.number))

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
            differing = "; ".join(differences(there, here))
            raise UserError(f"output: {self.search.folder} holds another search: {differing}; choose another folder")
