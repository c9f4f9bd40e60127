"""A study's figures: HitRatio@1 with its interval, ValidRatio, training curves, RSLLM's radar."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recbole_llara.experiments.report import COLOURS, styled
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_summary import Summary

SMOOTH = 20  # optimiser steps in the moving mean of a loss


def draw(study: Study, summaries: Sequence[Summary]) -> dict[str, go.Figure]:
    """The figures that a study asks for, by file name; those that would be empty are left out."""
    drawn: dict[str, go.Figure | None] = {}
    for summary in filter(lambda one: one.systems, summaries):
        drawn |= {f"{kind}-{summary.dataset}": PER_DATASET[kind](summary) for kind in study.figures if kind in PER_DATASET}
    if "radar" in study.figures:
        drawn |= {f"radar-{title}": radar(title, names, summaries) for title, names in study.radars.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def bars(summary: Summary) -> go.Figure:
    """HitRatio@1 of every system with its interval, each seed as a dot, a paper's number as a diamond."""
    systems = summary.systems
    hits = np.array([system.hit for system in systems.values()])
    above = [system.interval.high for system in systems.values()] - hits
    below = hits - [system.interval.low for system in systems.values()]
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": "#333"}
    figure = go.Figure()
    figure.add_bar(y=list(systems), x=hits, orientation="h", name="here, 95 % interval", marker_color=COLOURS[0], error_x=error)
    if max(len(system.hits) for system in systems.values()) > 1:
        seeds = pd.Series({name: system.hits for name, system in systems.items()}).explode()
        figure.add_scatter(x=seeds, y=seeds.index, mode="markers", name="each seed", marker={"color": "#111", "size": 6})
    for number, column in enumerate(summary.published):
        reported = {name: one.published[column].hit for name, one in systems.items() if column in one.published}
        symbol, colour = ("diamond-open", "square-open", "circle-open")[number % 3], COLOURS[(3 + number) % len(COLOURS)]
        marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2}}
        figure.add_scatter(x=list(reported.values()), y=list(reported), mode="markers", name=column, marker=marker)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="HitRatio@1", rangemode="tozero")
    return styled(figure, f"HitRatio@1 on {summary.dataset} (n = {summary.n})", 150 + 34 * len(systems))


def validity(summary: Summary) -> go.Figure:
    """ValidRatio against HitRatio@1; a legend names the points, since many lie at ValidRatio 1."""
    figure = go.Figure()
    for number, (name, system) in enumerate(summary.systems.items()):
        valid = system.mean("validratio")
        if valid is not None:
            symbol = ("circle", "diamond", "square", "triangle-up")[number % 4]
            marker = {"size": 13, "color": COLOURS[number % len(COLOURS)], "symbol": symbol, "opacity": 0.75}
            figure.add_scatter(x=[system.hit], y=[valid], mode="markers", name=name, marker=marker)
    figure.update_xaxes(title="HitRatio@1", rangemode="tozero")
    figure.update_yaxes(title="ValidRatio", range=[-0.03, 1.05])
    return styled(figure, f"ValidRatio and HitRatio@1 on {summary.dataset}", 460)


def curves(summary: Summary) -> go.Figure | None:
    """The first seed's loss, validation HitRatio@1 and, where a curriculum moves it, probability of the hard task, by step."""
    logs = {name: system.runs[0].training_log() for name, system in summary.systems.items()}
    steps = {name: pd.DataFrame(found) for name, log in logs.items() if (found := [one for one in log if "loss" in one])}
    if not steps:
        return None
    titles = ["Loss, mean of 20 steps", "HitRatio@1 on the validation rows"]
    if any((frame["hard_probability"] < 1).any() for frame in steps.values()):
        titles.append("Probability of the hard task")
    rows = len(titles)
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.24 / rows, subplot_titles=titles)
    for number, (name, frame) in enumerate(steps.items()):
        group = {"name": name, "legendgroup": name, "line": {"color": COLOURS[number % len(COLOURS)], "width": 1.6}, "col": 1}
        loss = frame["loss"].rolling(SMOOTH, min_periods=1).mean()
        figure.add_scatter(x=frame["step"], y=loss, mode="lines", row=1, **group)
        valid = [(one["step"], one["valid"].get("hit@1")) for one in logs[name] if "valid" in one]
        x, y = zip(*valid, strict=True) if valid else ([], [])
        figure.add_scatter(x=x, y=y, mode="lines+markers", row=2, showlegend=False, **group)
        if rows > 2:
            figure.add_scatter(x=frame["step"], y=frame["hard_probability"], mode="lines", row=3, showlegend=False, **group)
            figure.update_yaxes(range=[-0.05, 1.05], row=3, col=1)
    figure.update_xaxes(title="optimiser step", row=rows, col=1)
    return styled(figure, f"Training on {summary.dataset}", 180 + 195 * rows)


def radar(title: str, names: Sequence[str], summaries: Sequence[Summary]) -> go.Figure | None:
    """RSLLM's radar: HitRatio@1 and ValidRatio of every dataset; with one dataset HitRatio@1 among valid answers besides."""
    figure = go.Figure()
    for name in names:
        axes: dict[str, float] = {}
        for summary in summaries:
            if (system := summary.systems.get(name)) is None:
                continue
            axes[f"{summary.dataset}<br>HitRatio@1"] = system.hit
            axes[f"{summary.dataset}<br>ValidRatio"] = system.mean("validratio") or 0.0
            if len(summaries) == 1:
                among = [run.result["hit_among_valid"] or 0.0 for run in system.runs]
                axes[f"{summary.dataset}<br>HitRatio@1<br>among valid"] = float(np.mean(among))
        if axes:
            around, values = list(axes), list(axes.values())
            figure.add_scatterpolar(theta=around + around[:1], r=values + values[:1], name=name, mode="lines+markers")
    if not figure.data:
        return None
    figure.update_polars(radialaxis={"range": [0, 1.12], "tickvals": [0.25, 0.5, 0.75, 1.0], "angle": 45, "tickangle": 45})
    return styled(figure, f"Over {title}", 520)


PER_DATASET: dict[str, Callable[[Summary], go.Figure | None]] = {"bars": bars, "validity": validity, "curves": curves}
