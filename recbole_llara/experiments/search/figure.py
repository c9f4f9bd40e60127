"""A search's figure: the score of every trial with the best so far, and each searched key against the score."""

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recbole_llara.experiments.search.definition import Search
from recbole_llara.experiments.search.parameters import CHOICE, LOGUNIFORM, Parameter
from recbole_llara.experiments.search.trial import Trial
from recbole_llara.experiments.study.figures import COLOURS, finished

COLUMNS = 2  # panels beside each other, below the history


def draw(search: Search, trials: Sequence[Trial]) -> go.Figure:
    """The figure.

    Args:
        search: what was searched.
        trials: that are finished; failed ones stand as crosses below the others.
    """
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
    return finished(figure, f"Search of {search.model} on {search.dataset}, {search.algo}", 160 + 260 * rows)


def _add_history(figure: go.Figure, search: Search, scored: Sequence[Trial], failed: Sequence[Trial]) -> None:
    numbers, scores = [trial.number for trial in scored], [trial.score for trial in scored]
    best = list(accumulate(scores, max if search.is_bigger_better else min))
    marker = {"color": COLOURS[0], "size": 8}
    texts = [_told(trial) for trial in scored]
    figure.add_scatter(x=numbers, y=scores, mode="markers", name="trial", marker=marker, text=texts, row=1, col=1)
    line = {"color": COLOURS[1], "shape": "hv", "width": 1.6}
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, row=1, col=1)
    if failed:
        cross = {"symbol": "x", "color": COLOURS[3], "size": 8}
        floor = [min(scores, default=0.0)] * len(failed)
        texts = [_told(trial) for trial in failed]
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
        text=[_told(trial) for trial in scored],
        showlegend=False,
        row=row,
        col=col,
    )
    axis: dict[str, Any] = {"type": "log" if parameter.kind == LOGUNIFORM else "linear"}
    if is_choice:
        axis = {"type": "category", "categoryorder": "array", "categoryarray": list(parameter.options or ())}
    figure.update_xaxes(**axis, row=row, col=col)


def _told(trial: Trial) -> str:
    lines = [f"trial {trial.number}", *(f"{key} {value}" for key, value in trial.values.items())]
    return "<br>".join([*lines, trial.error] if trial.error else lines)
