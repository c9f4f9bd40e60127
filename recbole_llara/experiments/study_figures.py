"""A study's figures: HitRatio@1 with its interval, ValidRatio, training curves, RSLLM's radar."""

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recbole_llara.experiments.report import COLOURS, styled
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_summary import Summary

SMOOTH = 20  # optimiser steps in the moving mean of a loss


def draw(study: Study, summaries: Sequence[Summary]) -> dict[str, go.Figure]:
    """The figures that a study asks for, by file name; those that would be empty are left out."""
    drawn: dict[str, go.Figure] = {}
    for summary in summaries:
        if summary.systems:
            for kind in study.figures:
                figure = PER_DATASET[kind](summary) if kind in PER_DATASET else None
                if figure is not None:
                    drawn[f"{kind}-{summary.dataset}"] = figure
    if "radar" in study.figures:
        for title, names in study.radars.items():
            figure = radar(title, names, summaries)
            if figure is not None:
                drawn[f"radar-{title}"] = figure
    return drawn


def bars(summary: Summary) -> go.Figure:
    """HitRatio@1 of every system with its interval, each seed as a dot, a paper's number as a diamond."""
    names = [system.name for system in summary.systems]
    hits = [system.hit for system in summary.systems]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=hits,
        orientation="h",
        name="here, 95 % interval",
        marker_color=COLOURS[0],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [system.interval.high - system.hit for system in summary.systems],
            "arrayminus": [system.hit - system.interval.low for system in summary.systems],
            "color": "#333",
        },
    )
    if max(len(system.hits) for system in summary.systems) > 1:
        points = [(hit, system.name) for system in summary.systems for hit in system.hits]
        x, y = zip(*points, strict=True)
        figure.add_scatter(x=x, y=y, mode="markers", name="each seed", marker={"color": "#111", "size": 6})
    for number, column in enumerate(dict.fromkeys(name for system in summary.systems for name in system.published)):
        points = [(system.published[column].hit, system.name) for system in summary.systems if column in system.published]
        x, y = zip(*points, strict=True)
        symbol, colour = ("diamond-open", "square-open", "circle-open")[number % 3], COLOURS[(3 + number) % len(COLOURS)]
        marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2}}
        figure.add_scatter(x=x, y=y, mode="markers", name=column, marker=marker)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="HitRatio@1", rangemode="tozero")
    return styled(figure, f"HitRatio@1 on {summary.dataset} (n = {summary.n})", 150 + 34 * len(names))


def validity(summary: Summary) -> go.Figure:
    """ValidRatio against HitRatio@1; a legend names the points, since many lie at ValidRatio 1."""
    figure = go.Figure()
    for number, system in enumerate(summary.systems):
        valid = system.mean("validratio")
        if valid is not None:
            symbol = ("circle", "diamond", "square", "triangle-up")[number % 4]
            marker = {"size": 13, "color": COLOURS[number % len(COLOURS)], "symbol": symbol, "opacity": 0.75}
            figure.add_scatter(x=[system.hit], y=[valid], mode="markers", name=system.name, marker=marker)
    figure.update_xaxes(title="HitRatio@1", rangemode="tozero")
    figure.update_yaxes(title="ValidRatio", range=[-0.03, 1.05])
    return styled(figure, f"ValidRatio and HitRatio@1 on {summary.dataset}", 460)


def curves(summary: Summary) -> go.Figure | None:
    """The first seed's loss, validation HitRatio@1 and, where a curriculum moves it, probability of the hard task, by step."""
    logs = {system.name: system.runs[0].training_log() for system in summary.systems}
    steps = {name: found for name, log in logs.items() if (found := [record for record in log if "loss" in record])}
    if not steps:
        return None
    titles = ["Loss, mean of 20 steps", "HitRatio@1 on the validation rows"]
    if any(record["hard_probability"] < 1 for records in steps.values() for record in records):
        titles.append("Probability of the hard task")
    rows = len(titles)
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.24 / rows, subplot_titles=titles)
    for number, (name, records) in enumerate(steps.items()):
        x = [record["step"] for record in records]
        line = {"color": COLOURS[number % len(COLOURS)], "width": 1.6}
        group = {"name": name, "legendgroup": name, "line": line}
        figure.add_scatter(x=x, y=_smooth([record["loss"] for record in records]), mode="lines", row=1, col=1, **group)
        group["showlegend"] = False
        epochs = [record for record in logs[name] if "valid" in record]
        valid = {"x": [record["step"] for record in epochs], "y": [record["valid"].get("hit@1") for record in epochs]}
        figure.add_scatter(**valid, mode="lines+markers", row=2, col=1, **group)
        if rows > 2:
            probability = [record["hard_probability"] for record in records]
            figure.add_scatter(x=x, y=probability, mode="lines", row=3, col=1, **group)
            figure.update_yaxes(range=[-0.05, 1.05], row=3, col=1)
    figure.update_xaxes(title="optimiser step", row=rows, col=1)
    return styled(figure, f"Training on {summary.dataset}", 180 + 195 * rows)


def radar(title: str, names: Sequence[str], summaries: Sequence[Summary]) -> go.Figure | None:
    """RSLLM's radar: HitRatio@1 and ValidRatio of every dataset; with one dataset HitRatio@1 among valid answers besides."""
    figure = go.Figure()
    for name in names:
        axes: dict[str, float] = {}
        for summary in summaries:
            system = summary.system(name)
            if system is None:
                continue
            axes[f"{summary.dataset}<br>HitRatio@1"] = system.hit
            axes[f"{summary.dataset}<br>ValidRatio"] = system.mean("validratio") or 0.0
            if len(summaries) == 1:
                among = [run.result["hit_among_valid"] or 0.0 for run in system.runs]
                axes[f"{summary.dataset}<br>HitRatio@1<br>among valid"] = float(np.mean(among))
        if axes:
            around, values = [*axes, next(iter(axes))], [*axes.values(), next(iter(axes.values()))]
            figure.add_scatterpolar(theta=around, r=values, name=name, mode="lines+markers")
    if not figure.data:
        return None
    figure.update_polars(radialaxis={"range": [0, 1.12], "tickvals": [0.25, 0.5, 0.75, 1.0], "angle": 45, "tickangle": 45})
    return styled(figure, f"Over {title}", 520)


PER_DATASET: dict[str, Callable[[Summary], go.Figure | None]] = {"bars": bars, "validity": validity, "curves": curves}


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean of the last ``SMOOTH`` values, of fewer at the beginning."""
    sums = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTH, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
