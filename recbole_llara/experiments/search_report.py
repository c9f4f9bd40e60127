"""A search's report: ``best.yaml``, ``trials.csv``, ``report.md``, ``search.html`` and ``figures/``.

Trials are compared by their scores on the validation rows. The test metrics of the best one are read from its run when all
trials are finished, and reported once: they have chosen nothing.
"""

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from plotly.subplots import make_subplots

from recbole_llara.experiments.report import COLOURS, Bullets, Report, Table, csv_text, styled, write_report
from recbole_llara.experiments.search_definition import Search, Trial, best_of
from recbole_llara.experiments.search_space import CHOICE, LOGUNIFORM, Parameter
from recbole_llara.utils.atomic import write_text

BEST, TRIALS, PAGE = "best.yaml", "trials.csv", "search.html"
COLUMNS = 2  # panels of the figure beside each other, below the history


def write_trials(search: Search, trials: Sequence[Trial]) -> None:
    """Write ``best.yaml`` and ``trials.csv`` from the finished trials."""
    for name, text in _files(search, trials).items():
        write_text(search.folder / name, text)


def write_search_report(search: Search, trials: Sequence[Trial]) -> str:
    """Write everything that a search tells.

    Args:
        search: what was searched.
        trials: all that are finished.

    Returns:
        What to print: the report and where the rest is.
    """
    return write_report(search_report(search, trials), search.folder, PAGE, _files(search, trials))


def search_report(search: Search, trials: Sequence[Trial]) -> Report:
    """What a search tells: the best trial, then all of them, best first."""
    failed = sum(trial.score is None for trial in trials)
    blocks = [
        f"{len(trials)} trials, {failed} of them failed; trials are compared by {search.valid_metric} on the validation rows.",
        Bullets([str(parameter) for parameter in search.parameters]),
        *_best_lines(search, trials),
        trials_table(search, trials),
    ]
    title = f"{search.model} on {search.dataset}: {search.algo} search"
    return Report(title, blocks, {"search": draw(search, trials)})


def trials_table(search: Search, trials: Sequence[Trial]) -> Table:
    """All trials, best first, failed ones last."""
    keys = [parameter.key for parameter in search.parameters]
    sign = -1 if search.is_bigger_better else 1
    rows = []
    for trial in sorted(trials, key=lambda one: (one.score is None, sign * (one.score or 0.0), one.number)):
        score = f"failed: {trial.error}" if trial.score is None else f"{trial.score:.4f}"
        cells = [str(trial.number), score, *(_cell(trial.values[key]) for key in keys), f"{trial.seconds:.0f}"]
        rows.append([" ".join(cell.split()) for cell in cells])
    return Table("Trials", ["trial", search.valid_metric, *keys, "seconds"], rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if type(value) is float else str(value)


def _best_lines(search: Search, trials: Sequence[Trial]) -> list[str]:
    best = best_of(search, trials)
    if best is None:
        return ["No trial came to a score."]
    lines = [f"Best: trial {best.number}, {search.valid_metric} {best.score:.4f}; {best.run_dir}"]
    if test := _test_metrics(best):
        metrics = ", ".join(f"{name} {value}" for name, value in test.items())
        lines.append(f"On the test rows, read for this trial alone and after it was chosen: {metrics}")
    return [*lines, f"`python run_recbole_llara.py --config_files={search.folder / BEST}` runs it again."]


def _test_metrics(best: Trial) -> dict[str, float]:
    """The best trial's metrics on the test rows; none where its folder is gone."""
    file = Path(best.result_file or "")
    return json.loads(file.read_text(encoding="utf-8"))["metrics"]["test"] if file.is_file() else {}


def _files(search: Search, trials: Sequence[Trial]) -> dict[str, str]:
    """The trials as CSV, and the best of them as a configuration file."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {"trial": trial.number, "score": trial.score, **trial.values, "seconds": trial.seconds}
        row |= {f"valid_{name}": value for name, value in trial.valid.items()}
        rows.append(row | {"run_dir": trial.run_dir, "error": trial.error})
    files = {TRIALS: csv_text(rows)}
    best = best_of(search, trials)
    if best is not None:
        head = f"# Trial {best.number} of {len(trials)}: {search.valid_metric} {best.score} on the validation rows.\n"
        files[BEST] = head + yaml.safe_dump(search.best_config(best.values), allow_unicode=True, sort_keys=False)
    return files


# --- the figure --------------------------------------------------------------------------------


def draw(search: Search, trials: Sequence[Trial]) -> go.Figure:
    """The score of every trial with the best so far, and each searched key against the score; failed trials are crosses."""
    scored = [trial for trial in trials if trial.score is not None]
    columns = min(COLUMNS, len(search.parameters))
    rows = 1 + math.ceil(len(search.parameters) / columns)
    titles = [f"{search.valid_metric} on the validation rows, by trial", *(parameter.key for parameter in search.parameters)]
    figure = make_subplots(
        rows=rows,
        cols=columns,
        specs=[[{"colspan": columns}, *[None] * (columns - 1)], *([{}] * columns for _ in range(rows - 1))],
        subplot_titles=titles,
        vertical_spacing=0.2 / rows,
    )
    _add_history(figure, search, scored, [trial for trial in trials if trial.score is None])
    for place, parameter in enumerate(search.parameters):
        _add_panel(figure, parameter, scored, row=2 + place // columns, col=1 + place % columns)
    return styled(figure, f"Search of {search.model} on {search.dataset}, {search.algo}", 160 + 260 * rows)


def _add_history(figure: go.Figure, search: Search, scored: Sequence[Trial], failed: Sequence[Trial]) -> None:
    numbers, scores = [trial.number for trial in scored], [trial.score for trial in scored]
    best = list(accumulate(scores, max if search.is_bigger_better else min))
    marker = {"color": COLOURS[0], "size": 8}
    texts = [_label(trial) for trial in scored]
    figure.add_scatter(x=numbers, y=scores, mode="markers", name="trial", marker=marker, text=texts, row=1, col=1)
    line = {"color": COLOURS[1], "shape": "hv", "width": 1.6}
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, row=1, col=1)
    if failed:
        cross = {"symbol": "x", "color": COLOURS[3], "size": 8}
        floor = [min(scores, default=0.0)] * len(failed)
        texts = [_label(trial) for trial in failed]
        x = [trial.number for trial in failed]
        figure.add_scatter(x=x, y=floor, mode="markers", name="failed", marker=cross, text=texts, row=1, col=1)


def _add_panel(figure: go.Figure, parameter: Parameter, scored: Sequence[Trial], row: int, col: int) -> None:
    values = [trial.values[parameter.key] for trial in scored]
    is_choice = parameter.kind == CHOICE
    figure.add_scatter(
        x=[json.dumps(value, ensure_ascii=False) for value in values] if is_choice else values,
        y=[trial.score for trial in scored],
        mode="markers",
        marker={
            "color": [trial.number for trial in scored],
            "colorscale": "Blues",
            "cmin": -len(scored),
            "cmax": len(scored),
            "size": 8,
        },
        text=[_label(trial) for trial in scored],
        showlegend=False,
        row=row,
        col=col,
    )
    axis: dict[str, Any] = {"type": "log" if parameter.kind == LOGUNIFORM else "linear"}
    if is_choice:
        axis = {"type": "category", "categoryorder": "array", "categoryarray": list(parameter.options or ())}
    figure.update_xaxes(**axis, row=row, col=col)


def _label(trial: Trial) -> str:
    lines = [f"trial {trial.number}", *(f"{key} {value}" for key, value in trial.values.items())]
    return "<br>".join([*lines, trial.error] if trial.error else lines)
