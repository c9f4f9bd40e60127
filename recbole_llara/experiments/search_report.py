"""A search's report: ``best.yaml``, ``trials.csv``, ``report.md``, ``search.html`` and ``figures/``.

Trials are compared by their scores on the validation rows. The test metrics of the best one are read from its run when all
trials are finished, and reported once: they have chosen nothing.
"""

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import yaml
from plotly.subplots import make_subplots

from recbole_llara.experiments.report import COLOURS, Report, csv_text, styled, write_report
from recbole_llara.experiments.search_definition import Search, Trial, best_of, ranked, value_text
from recbole_llara.experiments.search_space import CHOICE, LOGUNIFORM
from recbole_llara.utils.atomic import write_text

BEST = "best.yaml"
COLUMNS = 2  # panels of the figure beside each other, below the history


def write_trials(search: Search, trials: Sequence[Trial]) -> None:
    """Write ``best.yaml`` and ``trials.csv`` from the finished trials."""
    for name, text in _files(search, trials).items():
        write_text(search.folder / name, text)


def write_search_report(search: Search, trials: Sequence[Trial]) -> str:
    """Write everything that a search tells, from all finished trials.

    Returns:
        What to print: the report, the best trial before all of them, and where the rest is.
    """
    failed = sum(trial.score is None for trial in trials)
    blocks = [
        f"{len(trials)} trials, {failed} of them failed; trials are compared by {search.valid_metric} on the validation rows.",
        [str(parameter) for parameter in search.parameters],
        *_best_lines(search, trials),
        {"Trials": _trials_table(search, trials)},
    ]
    report = Report(f"{search.model} on {search.dataset}: {search.algo} search", blocks, {"search": draw(search, trials)})
    return write_report(report, search.folder, "search.html", _files(search, trials))


def _best_lines(search: Search, trials: Sequence[Trial]) -> list[str]:
    best = best_of(search, trials)
    if best is None:
        return ["No trial came to a score."]
    lines = [f"Best: trial {best.number}, {search.valid_metric} {best.score:.4f}; {best.run_dir}"]
    if (file := Path(best.result_file or "")).is_file():
        test = json.loads(file.read_text(encoding="utf-8"))["metrics"]["test"]
        metrics = ", ".join(f"{name} {value}" for name, value in test.items())
        lines.append(f"On the test rows, read for this trial alone and after it was chosen: {metrics}")
    return [*lines, f"`python run_recbole_llara.py --config_files={search.folder / BEST}` runs it again."]


def _trials_table(search: Search, trials: Sequence[Trial]) -> pd.DataFrame:
    keys = [parameter.key for parameter in search.parameters]
    rows = []
    for trial in ranked(search, trials):
        score = f"failed: {trial.error}" if trial.score is None else f"{trial.score:.4f}"
        cells = [str(trial.number), score, *(value_text(trial.values[key]) for key in keys), f"{trial.seconds:.0f}"]
        rows.append([" ".join(cell.split()) for cell in cells])
    return pd.DataFrame(rows, columns=["trial", search.valid_metric, *keys, "seconds"])


def _files(search: Search, trials: Sequence[Trial]) -> dict[str, str]:
    """The trials as CSV, and the best of them as a configuration file."""
    rows = [
        {"trial": trial.number, "score": trial.score, **trial.values, "seconds": trial.seconds}
        | {f"valid_{name}": value for name, value in trial.valid.items()}
        | {"run_dir": trial.run_dir, "error": trial.error}
        for trial in trials
    ]
    files = {"trials.csv": csv_text(rows)}
    best = best_of(search, trials)
    if best is not None:
        head = f"# Trial {best.number} of {len(trials)}: {search.valid_metric} {best.score} on the validation rows.\n"
        files[BEST] = head + yaml.safe_dump(search.best_config(best.values), allow_unicode=True, sort_keys=False)
    return files


def draw(search: Search, trials: Sequence[Trial]) -> go.Figure:
    """The score of every trial with the best so far, and each searched key against the score; failed trials are crosses."""
    scored = [trial for trial in trials if trial.score is not None]
    failed = [trial for trial in trials if trial.score is None]
    columns = min(COLUMNS, len(search.parameters))
    rows = 1 + math.ceil(len(search.parameters) / columns)
    titles = [f"{search.valid_metric} on the validation rows, by trial", *(parameter.key for parameter in search.parameters)]
    specs = [[{"colspan": columns}, *[None] * (columns - 1)], *([{}] * columns for _ in range(rows - 1))]
    figure = make_subplots(rows=rows, cols=columns, specs=specs, subplot_titles=titles, vertical_spacing=0.2 / rows)

    numbers, scores, labels = [trial.number for trial in scored], [trial.score for trial in scored], list(map(_label, scored))
    points = {"y": scores, "text": labels, "mode": "markers"}
    figure.add_scatter(x=numbers, name="trial", marker={"color": COLOURS[0], "size": 8}, row=1, col=1, **points)
    best = list(accumulate(scores, max if search.direction == "maximize" else min))
    line = {"color": COLOURS[1], "shape": "hv", "width": 1.6}
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, row=1, col=1)
    if failed:
        x, floor, cross = (
            [one.number for one in failed],
            min(scores, default=0.0),
            {"symbol": "x", "color": COLOURS[3], "size": 8},
        )
        points_failed = {"y": [floor] * len(failed), "text": list(map(_label, failed)), "mode": "markers"}
        figure.add_scatter(x=x, name="failed", marker=cross, row=1, col=1, **points_failed)

    shades = {"color": numbers, "colorscale": "Blues", "cmin": -len(scored), "cmax": len(scored), "size": 8}
    for place, parameter in enumerate(search.parameters):
        values = [trial.values[parameter.key] for trial in scored]
        axis = {"type": "log" if parameter.kind == LOGUNIFORM else "linear"}
        if parameter.kind == CHOICE:
            values = [json.dumps(value, ensure_ascii=False) for value in values]
            axis = {"type": "category", "categoryorder": "array", "categoryarray": list(parameter.options)}
        where = {"row": 2 + place // columns, "col": 1 + place % columns}
        figure.add_scatter(x=values, marker=shades, showlegend=False, **points, **where)
        figure.update_xaxes(**axis, **where)
    return styled(figure, f"Search of {search.model} on {search.dataset}, {search.algo}", 160 + 260 * rows)


def _label(trial: Trial) -> str:
    lines = [f"trial {trial.number}", *(f"{key} {value}" for key, value in trial.values.items())]
    return "<br>".join([*lines, trial.error] if trial.error else lines)
