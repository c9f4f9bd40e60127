"""A study's report: tables to read, to print (LaTeX) and to compute with (CSV, JSON), figures, and case studies on the page."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from recbole_llara.evaluator.calibration import BINS, reliability
from recbole_llara.evaluator.report import ABSENT
from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.experiments.report import COLOURS, Block, Report, csv_text, styled, write_report
from recbole_llara.experiments.study_arms import Arm, FailedArm, Outcome
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_record import record_text, study_record
from recbole_llara.experiments.study_summary import CALIBRATION, METRICS, Summary, find_cases, summarise

POPULARITY_BANDS = (0, 6, 21)  # the least users of each
SMOOTH = 20  # optimiser steps in the moving mean of a loss


def write_study_report(study: Study, outcomes: Mapping[Arm, Outcome]) -> str:
    """Write a study's Markdown, page, LaTeX table, CSV files, ``study.json`` and figures; returns what to print."""
    summaries = summarise(study, outcomes)
    blocks: list[Block] = []
    cases: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        tables = {"Results": results_table(summary)} if summary.runs else {}
        if summary.comparisons:
            tables["Differences"] = comparisons_table(summary)
        if summary.runs:
            tables["By popularity of the target"] = popularity_table(summary)
        if summary.gains:
            tables["Whole catalogue"] = full_rank_table(summary)
        if summary.runs:
            tables["Time"] = time_table(summary)
        blocks += [f"## {summary.dataset}", tables, notes(study, summary)]
        if "cases" in study.figures:
            found = [find_cases(summary, pattern, seed=study.seeds[0]) for pattern in study.cases]
            cases[summary.dataset] = [one for one in found if one is not None]
    if study.notes:
        blocks += ["## What this says", list(study.notes)]
    files = {
        "table.tex": latex(study, summaries),
        "runs.csv": csv_text([_run_row(arm, outcome) for arm, outcome in outcomes.items()]),
        "comparisons.csv": csv_text([row for summary in summaries for row in summary.comparisons]),
        "study.json": record_text(study_record(study, summaries)),
    }
    text = write_report(Report(study.title, blocks, draw(study, summaries), cases), study.folder, "report.html", files)
    return (
        f"{text}each run's folder is named in runs.csv; its cases.jsonl has every test row, with what was shown and answered\n"
    )


def results_table(summary: Summary) -> pd.DataFrame:
    """The systems of one dataset: how many they got right, how sure that is, and what a paper reports."""
    systems, marks = summary.systems, _marks(summary)
    columns = {"HitRatio@1": _texts(systems["HitRatio@1"])}
    if systems["spread"].notna().any():
        columns[f"± over {max(map(len, summary.runs.values()))} seeds"] = _texts(systems["spread"])
    if systems["draw_spread"].notna().any():
        columns[f"± over {systems['draws'].max()} draws"] = _texts(systems["draw_spread"])
    columns["95 % interval"] = _texts(systems["low"], "{:.3f}") + " to " + _texts(systems["high"], "{:.3f}")
    columns |= {heading: _texts(systems[heading]) for heading in METRICS}
    columns |= {heading: _texts(systems[heading]) for heading in CALIBRATION if systems[heading].notna().any()}
    table = pd.DataFrame(columns).assign(n=str(summary.n))
    for column, results in summary.published.items():
        cells = pd.Series(ABSENT, index=systems.index)
        for name, result in results.items():
            valid = "" if result["valid"] is None else f" (valid {result['valid']:.4f})"
            cells[name] = f"{result['hit']:.4f}{valid}" + "".join(f" [{marks[text]}]" for text in result["differences"])
        table.insert(len(table.columns), column, cells, allow_duplicates=True)
    return table.rename_axis("System").reset_index()


def comparisons_table(summary: Summary) -> pd.DataFrame:
    """Which differences are more than noise."""
    found = pd.DataFrame(summary.comparisons)
    columns = {"Compared": found["one"] + " against " + found["other"], "difference": _texts(found["difference"], "{:+.4f}")}
    formats = {"only the first": ("only_one", "{}"), "only the second": ("only_other", "{}")}
    formats |= {"McNemar p": ("mcnemar_p", "{:.2g}"), "p (Holm)": ("mcnemar_holm", "{:.2g}")}
    if "t_p" in found:
        formats |= {"t-test over seeds p": ("t_p", "{:.2g}"), "p (Holm) ": ("t_holm", "{:.2g}")}
        formats |= {"t-test over rows p": ("rows_p", "{:.2g}"), "p (Holm)  ": ("rows_holm", "{:.2g}")}
    columns |= {heading: _texts(found[key], form) for heading, (key, form) in formats.items()}
    return pd.DataFrame({**columns, "verdict": found["verdict"]})


def popularity_table(summary: Summary) -> pd.DataFrame:
    """HitRatio@1 by how many users took the target in training, mean over seeds, with Wilson's interval over the rows."""
    cases = next(iter(summary.runs.values()))[0].cases()
    users = np.array([case["target_users"] for case in sorted(cases, key=lambda case: case["row"])])  # [n]
    columns = {}
    for first, end in pairwise([*POPULARITY_BANDS, None]):
        of_band = (users >= first) & (users < (np.inf if end is None else end))
        n, heading = int(of_band.sum()), f"{first} or more users" if end is None else f"{first} to {end - 1} users"
        told = {}
        for name, correct in summary.correct.items():
            hit = float(correct[:, of_band].mean()) if n else np.nan
            interval = wilson_interval(round(hit * n), n) if n else None
            told[name] = f"{hit:.3f} ({interval.low:.3f} to {interval.high:.3f})" if interval else ABSENT
        columns[f"{heading} (n = {n})"] = pd.Series(told)
    return pd.DataFrame(columns).rename_axis("System").reset_index()


def full_rank_table(summary: Summary) -> pd.DataFrame:
    """What systems make of their recommender's own list: Hit@K and NDCG@K, K the largest of ``topk``, means over seeds."""
    rows = []
    for name, gained in summary.gains.items():
        told = [run.result["full_rank"] for run in summary.runs[name]]
        proposed = fmean(of_seed["target_proposed"]["share"] for of_seed in told)
        row = {"System": name, f"target among the first {told[0]['retrieve_k']}": f"{proposed:.4f}"}
        for metric, gain in list(gained.items())[-2:]:
            heading = metric.replace("hit", "Hit").replace("ndcg", "NDCG")
            before, after = (fmean(of_seed[who][metric]["share"] for of_seed in told) for who in ("retriever", "reranker"))
            row |= {f"{heading} of the recommender": f"{before:.4f}", f"{heading} re-ranked": f"{after:.4f}"}
            interval = "" if gain["low"] is None else f" ({gain['low']:+.4f} to {gain['high']:+.4f})"
            row[f"{heading} gained (95 %)"] = f"{gain['mean']:+.4f}{interval}"
        rows.append(row)
    return pd.DataFrame(rows).fillna(ABSENT)


def time_table(summary: Summary) -> pd.DataFrame:
    """What the systems cost here: the first seed's training and evaluation."""
    headings = {"training_seconds": "training, s", "training_rows_per_second": "rows/s in training"}
    headings["evaluation_rows_per_second"] = "rows/s in evaluation"
    timings = pd.DataFrame([runs[0].result["timings"] for runs in summary.runs.values()], index=list(summary.runs))
    table = timings.reindex(columns=list(headings)).rename(columns=headings).apply(_texts, form="{:,.0f}")
    return table.rename_axis("System").reset_index()


def _texts(numbers: pd.Series, form: str = "{:.4f}", absent: str = ABSENT) -> pd.Series:
    return numbers.map(form.format, na_action="ignore").astype(object).fillna(absent)


def notes(study: Study, summary: Summary) -> list[str]:
    """What a reader of the tables must know."""
    lines = [
        f"n = {summary.n} test rows, protocol {summary.protocol}; training seeds {', '.join(map(str, study.seeds))}; all "
        f"systems answer the same candidates (candidate_seed {study.candidate_seed}). The interval is Wilson's, over rows.",
    ]
    if summary.systems.reindex(columns=list(CALIBRATION)).notna().any(axis=None):
        lines.append(
            "NLL is the mean negative log-likelihood of the target under the softmax of a system's scores over the candidates, in "
            f"nats; ECE the expected calibration error of the best candidate's probability, over {BINS} bins."
        )
    if summary.comparisons:
        lines.append(
            "McNemar's exact test pairs the rows of the first seed; Holm's correction counts all comparisons of this table. With "
            "one or two seeds it speaks of these trained models. From three on, two t-tests speak of the systems, and a difference "
            "is one that both find: over the seeds, on these rows; and over the rows, each its mean over the seeds. "
            f"Where all seeds differ by the same, there is no spread to test by ({ABSENT}), and the verdict is McNemar's."
        )
    for name, runs in summary.runs.items():
        counts = runs[0].result.get("answers") or {}
        told = [f"{count} {outcome}" for outcome, count in counts.items() if count]
        if told:
            lines.append(f"How {name} answered, seed {study.seeds[0]}: {', '.join(told)}.")
    for name, runs in summary.runs.items():
        if fusion := runs[0].result.get("fusion"):
            weights = ", ".join(f"{system} {weight:.3g}" for system, weight in fusion["weights"].items())
            lines.append(
                f"{name} adds log-probabilities by weights fitted on {fusion['n']} validation rows, seed {study.seeds[0]}: "
                f"{weights}; temperature {fusion['temperature']:.3g}. Its HitRatio@1 on those rows is a fitted one."
            )
    if summary.best_baseline is not None:
        lines.append(f"Best baseline, chosen on the validation rows: {summary.best_baseline}.")
    if summary.published:
        sources = "; ".join(f"{column.name}: {column.source}" for column in study.published if column.name in summary.published)
        lines.append(f"Of the papers, {sources}. Everywhere other candidates than here, since theirs were not released.")
        lines += [f"[{mark}] {text}." for text, mark in _marks(summary).items()]
    return lines + [f"FAILED: {message}" for message in summary.failures.values()]


def _marks(summary: Summary) -> dict[str, str]:
    """A letter for each way in which a paper's setting differs."""
    of_systems = [[results[name] for results in summary.published.values() if name in results] for name in summary.runs]
    texts = dict.fromkeys(text for results in of_systems for result in results for text in result["differences"])
    return {text: chr(ord("a") + number) for number, text in enumerate(texts)}


def _run_row(arm: Arm, outcome: Outcome) -> dict[str, Any]:
    """A line of ``runs.csv``: a run with all its metrics."""
    row = {"dataset": arm.dataset, "system": arm.system, "seed": arm.seed, "candidate_seed": arm.candidate_seed}
    if isinstance(outcome, FailedArm):
        return {**row, "failure": outcome.message}
    result = outcome.result
    row |= {key: result[key] for key in ("protocol", "n", "correct", "valid_answers", "decoding", "best_epoch")}
    row |= {key: result.get(key) for key in CALIBRATION.values()}
    row |= {"low": result["interval_95"]["low"], "high": result["interval_95"]["high"]}
    row |= {f"{split}_{key}": value for split, values in result["metrics"].items() for key, value in values.items()}
    return {**row, **result["timings"], "seconds": outcome.seconds, "run_dir": outcome.paths["run_dir"]}


def latex(study: Study, summaries: Sequence[Summary]) -> str:
    """The papers' table: a line a system, ValidRatio and HitRatio@1 for each dataset, the best one in bold (booktabs)."""
    names = list(study.systems)
    parts = {"": pd.DataFrame({"System": names}, index=names)}
    for summary in filter(lambda one: one.runs, summaries):
        hits, spread = summary.systems["HitRatio@1"], _texts(summary.systems["spread"], " $\\pm$ {:.4f}", "")
        shown = _texts(hits).mask(hits == hits.max(), _texts(hits, "\\textbf{{{:.4f}}}")) + spread
        part = pd.DataFrame({"ValidRatio": _texts(summary.systems["ValidRatio"], absent="--"), "HitRatio@1": shown})
        parts[f"{summary.dataset} ($n={summary.n}$)"] = part.reindex(names, fill_value="--")
    table = pd.concat(parts, axis="columns")
    style = table.style.hide().format(escape="latex", subset=[("", "System")]).format_index(escape="latex-math", axis="columns")
    return style.to_latex(hrules=True, column_format=f"l{'c' * (table.shape[1] - 1)}", multicol_align="c")


def draw(study: Study, summaries: Sequence[Summary]) -> dict[str, go.Figure]:
    """The figures that a study asks for, by file name; those that would be empty are left out."""
    drawn: dict[str, go.Figure | None] = {}
    for summary in filter(lambda one: one.runs, summaries):
        drawn |= {f"{kind}-{summary.dataset}": PER_DATASET[kind](summary) for kind in study.figures if kind in PER_DATASET}
    if "radar" in study.figures:
        drawn |= {f"radar-{title}": radar(title, names, summaries) for title, names in study.radars.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def bars(summary: Summary) -> go.Figure:
    """HitRatio@1 of every system with its interval, each seed as a dot, a paper's number as a diamond."""
    systems, figure = summary.systems, go.Figure()
    hits = systems["HitRatio@1"]
    error = {"type": "data", "symmetric": False, "color": "#333"}
    error |= {"array": systems["high"] - hits, "arrayminus": hits - systems["low"]}
    figure.add_bar(y=hits.index, x=hits, orientation="h", name="here, 95 % interval", marker_color=COLOURS[0], error_x=error)
    if max(map(len, summary.runs.values())) > 1:
        seeds = pd.Series({name: correct.mean(1) for name, correct in summary.correct.items()}).explode()
        figure.add_scatter(x=seeds, y=seeds.index, mode="markers", name="each seed", marker={"color": "#111", "size": 6})
    for number, (column, results) in enumerate(summary.published.items()):
        symbol, colour = ("diamond-open", "square-open", "circle-open")[number % 3], COLOURS[(3 + number) % len(COLOURS)]
        marker = {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 2}}
        reported = [result["hit"] for result in results.values()]
        figure.add_scatter(x=reported, y=list(results), mode="markers", name=column, marker=marker)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="HitRatio@1", rangemode="tozero")
    return styled(figure, f"HitRatio@1 on {summary.dataset} (n = {summary.n})", 150 + 34 * len(systems))


def validity(summary: Summary) -> go.Figure:
    """ValidRatio against HitRatio@1; a legend names the points, since many lie at ValidRatio 1."""
    systems = summary.systems.dropna(subset="ValidRatio").rename_axis("System").reset_index()
    look = {"color_discrete_sequence": COLOURS, "symbol_sequence": ["circle", "diamond", "square", "triangle-up"]}
    figure = px.scatter(systems, x="HitRatio@1", y="ValidRatio", color="System", symbol="System", opacity=0.75, **look)
    figure.update_traces(marker_size=13).update_xaxes(rangemode="tozero").update_yaxes(range=[-0.03, 1.05])
    return styled(figure, f"ValidRatio and HitRatio@1 on {summary.dataset}", 460)


def curves(summary: Summary) -> go.Figure | None:
    """The first seed's loss, validation HitRatio@1 and, where a curriculum moves it, probability of the hard task, by step."""
    logs = {name: runs[0].training_log() for name, runs in summary.runs.items()}
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
        epochs = [one for one in logs[name] if "valid" in one]
        valid = {"x": [one["step"] for one in epochs], "y": [one["valid"].get("hit@1") for one in epochs]}
        figure.add_scatter(**valid, mode="lines+markers", row=2, showlegend=False, **group)
        if rows > 2:
            figure.add_scatter(x=frame["step"], y=frame["hard_probability"], mode="lines", row=3, showlegend=False, **group)
            figure.update_yaxes(range=[-0.05, 1.05], row=3, col=1)
    figure.update_xaxes(title="optimiser step", row=rows, col=1)
    return styled(figure, f"Training on {summary.dataset}", 180 + 195 * rows)


def radar(title: str, names: Sequence[str], summaries: Sequence[Summary]) -> go.Figure | None:
    """RSLLM's radar: HitRatio@1 and ValidRatio of every dataset; with one dataset HitRatio@1 among valid answers besides."""
    rows = []
    for name, summary in ((name, summary) for name in names for summary in summaries if name in summary.runs):
        axes = summary.systems.loc[name, ["HitRatio@1", "ValidRatio"]].fillna(0.0).to_dict()
        if len(summaries) == 1:
            axes["HitRatio@1<br>among valid"] = fmean(run.result["hit_among_valid"] or 0.0 for run in summary.runs[name])
        rows += [{"System": name, "axis": f"{summary.dataset}<br>{axis}", "share": share} for axis, share in axes.items()]
    if not rows:
        return None
    figure = px.line_polar(pd.DataFrame(rows), r="share", theta="axis", color="System", line_close=True, markers=True)
    figure.update_polars(radialaxis={"range": [0, 1.12], "tickvals": [0.25, 0.5, 0.75, 1.0], "angle": 45, "tickangle": 45})
    return styled(figure, f"Over {title}", 520)


def reliability_plot(summary: Summary) -> go.Figure | None:
    """How often a system is right where it is so sure, of the first seed; the size of a point tells its share of the rows."""
    figure = go.Figure()
    for number, (name, runs) in enumerate(summary.runs.items()):
        cases = runs[0].cases()
        if cases[0]["scores"] is None:
            continue
        scores = torch.tensor([case["scores"] for case in cases], dtype=torch.float64)
        counts, confidence, share = reliability(scores, np.array([case["correct"] for case in cases]))
        colour = COLOURS[number % len(COLOURS)]
        marker = {"size": 5 + 30 * np.sqrt(counts / len(cases)), "color": colour, "opacity": 0.7}
        figure.add_scatter(
            x=confidence, y=share, mode="lines+markers", name=name, marker=marker, line={"color": colour, "width": 1.4}
        )
    if not figure.data:
        return None
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"color": "#888", "dash": "dot"})
    figure.update_xaxes(title="probability of the best candidate", range=[0, 1.02])
    figure.update_yaxes(title="share of rows in which it is the target", range=[0, 1.02])
    return styled(figure, f"Reliability on {summary.dataset}, {BINS} bins", 560)


PER_DATASET: dict[str, Callable[[Summary], go.Figure | None]] = {
    "bars": bars,
    "validity": validity,
    "curves": curves,
    "reliability": reliability_plot,
}
