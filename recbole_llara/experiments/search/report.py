"""A search's folder: ``best.yaml``, ``trials.csv``, ``report.md``, ``search.html`` and ``figures/``.

Trials are told by what they score on the validation rows. What the best one scores on the test rows is read from its run
when all is over, and told once: it has chosen nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from recbole_llara.checkpoint.run_folder import write_atomically
from recbole_llara.evaluator.report import markdown_table
from recbole_llara.experiments.search.definition import Search
from recbole_llara.experiments.search.figure import draw
from recbole_llara.experiments.search.trial import Trial, best_of
from recbole_llara.experiments.study.figures import write_pngs

BEST, TRIALS, REPORT, PAGE = "best.yaml", "trials.csv", "report.md", "search.html"
FAILED = "failed"


def write_best(search: Search, trials: Sequence[Trial]) -> None:
    """Write ``best.yaml`` and ``trials.csv`` as they stand.

    Args:
        search: what is searched.
        trials: that are finished.
    """
    best = best_of(search, trials)
    if best is not None:
        config = search.best_config(best.values)
        head = f"# Trial {best.number} of {len(trials)}: {search.valid_metric} {best.score} on the validation rows.\n"
        text = head + yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        write_atomically(search.folder / BEST, lambda file: file.write(text))
    table = trial_table(trials).to_csv(index=False, lineterminator="\n")
    write_atomically(search.folder / TRIALS, lambda file: file.write(table))


def write_report(search: Search, trials: Sequence[Trial]) -> str:
    """Write everything that a search tells.

    Args:
        search: what was searched.
        trials: all that are finished.

    Returns:
        What to print: the report and where the rest lies.
    """
    write_best(search, trials)
    text = markdown(search, trials)
    write_atomically(search.folder / REPORT, lambda file: file.write(text))
    figure = draw(search, trials)
    page = figure.to_html(config={"responsive": True, "displaylogo": False})
    write_atomically(search.folder / PAGE, lambda file: file.write(page))
    missing = write_pngs({"search": figure}, search.folder / "figures")
    lines = [text, f"written: {search.folder}/{PAGE}, {REPORT}, {TRIALS}" + (f", {BEST}" if best_of(search, trials) else "")]
    return "\n".join([*lines, missing] if missing is not None else lines) + "\n"


def trial_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row a trial: number, score, each searched key, time, the metrics of the validation rows, the run's folder, the error."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"trial": trial.number, "score": trial.score, **trial.values, "seconds": trial.seconds}
        row |= {f"valid_{name}": value for name, value in trial.valid.items()}
        rows.append(row | {"run_dir": trial.run_dir, "error": trial.error})
    return pd.DataFrame(rows)


def markdown(search: Search, trials: Sequence[Trial]) -> str:
    """The report: the best trial, then all of them, best first."""
    failed = sum(trial.score is None for trial in trials)
    lines = [
        f"# {search.model} on {search.dataset}: {search.algo} search",
        "",
        f"{len(trials)} trials, {failed} of them failed; {search.valid_metric} on the validation rows is what chooses.",
        "",
        *(f"- {parameter}" for parameter in search.parameters),
        "",
        *_best_lines(search, trials),
        *_table_lines(search, trials),
    ]
    return "\n".join(lines) + "\n"


def _best_lines(search: Search, trials: Sequence[Trial]) -> list[str]:
    best = best_of(search, trials)
    if best is None:
        return ["No trial came to a score.", ""]
    run = [f"`python run_recbole_llara.py --config_files={search.folder / BEST}` runs it again.", ""]
    lines = [f"Best: trial {best.number}, {search.valid_metric} {best.score:.4f}; {best.run_dir}", ""]
    test = _test_metrics(best)
    if test:
        told = ", ".join(f"{name} {value}" for name, value in test.items())
        lines += [f"On the test rows, looked at for this trial alone and after it was chosen: {told}", ""]
    return lines + run


def _test_metrics(best: Trial) -> dict[str, float]:
    """What the best trial's run has measured on the test rows; nothing where its folder has gone."""
    file = Path(best.result_file or "")
    return json.loads(file.read_text(encoding="utf-8"))["metrics"]["test"] if file.is_file() else {}


def _table_lines(search: Search, trials: Sequence[Trial]) -> list[str]:
    keys = [parameter.key for parameter in search.parameters]
    sign = -1 if search.is_bigger_better else 1
    ranked = sorted(trials, key=lambda one: (one.score is None, sign * (one.score or 0.0), one.number))
    rows = []
    for trial in ranked:
        score = f"{FAILED}: {trial.error}" if trial.score is None else f"{trial.score:.4f}"
        cells = [str(trial.number), score, *(_cell(trial.values[key]) for key in keys), f"{trial.seconds:.0f}"]
        rows.append([" ".join(cell.split()) for cell in cells])
    return [markdown_table(["trial", search.valid_metric, *keys, "seconds"], rows)]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if type(value) is float else str(value)
