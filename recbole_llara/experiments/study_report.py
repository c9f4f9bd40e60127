"""A study's report: tables to read, to print (LaTeX) and to compute with (CSV), figures, and case studies on the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from recbole_llara.evaluator.report import ABSENT
from recbole_llara.experiments.report import Block, Report, csv_text, write_report
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_figures import draw
from recbole_llara.experiments.study_runs import Arm, FailedArm, Outcome
from recbole_llara.experiments.study_summary import Summary, SystemResult, find_cases, summarise


def write_study_report(study: Study, outcomes: Mapping[Arm, Outcome]) -> str:
    """Write ``report.md``, ``report.html``, ``table.tex``, ``runs.csv``, ``comparisons.csv`` and ``figures/`` of a study.

    Returns:
        What to print: the Markdown report and where the rest is.
    """
    summaries = summarise(study, outcomes)
    files = {
        "table.tex": latex(study, summaries),
        "runs.csv": csv_text([_run_row(arm, outcome) for arm, outcome in outcomes.items()]),
        "comparisons.csv": csv_text([row for summary in summaries for row in summary.comparisons]),
    }
    text = write_report(study_report(study, summaries), study.folder, "report.html", files)
    return (
        f"{text}each run's folder is named in runs.csv; its cases.jsonl has every test row, with what was shown and answered\n"
    )


def study_report(study: Study, summaries: Sequence[Summary]) -> Report:
    """What a study tells."""
    blocks: list[Block] = []
    cases: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        tables = {"Results": results_table(summary)} if summary.systems else {}
        if summary.comparisons:
            tables["Differences"] = comparisons_table(summary)
        if summary.systems:
            tables["Time"] = time_table(summary)
        blocks += [f"## {summary.dataset}", tables, notes(study, summary)]
        if "cases" in study.figures:
            found = [find_cases(summary, pattern, seed=study.seeds[0]) for pattern in study.cases]
            cases[summary.dataset] = [one for one in found if one is not None]
    return Report(study.title, blocks, draw(study, summaries), cases)


def results_table(summary: Summary) -> pd.DataFrame:
    """The systems of one dataset: how many they got right, how sure that is, and what a paper reports."""
    systems, marks = summary.systems.values(), _marks(summary)
    columns = [("System", list(summary.systems)), ("HitRatio@1", [_share(system.hit) for system in systems])]
    if any(system.spread is not None for system in systems):
        seeds = max(len(system.runs) for system in systems)
        columns.append((f"± over {seeds} seeds", [_share(system.spread) for system in systems]))
    if any(system.draws for system in systems):
        draws = 1 + max(len(system.draws) for system in systems)
        columns.append((f"± over {draws} draws", [_share(system.draw_spread) for system in systems]))
    columns.append(("95 % interval", [f"{system.interval.low:.3f} to {system.interval.high:.3f}" for system in systems]))
    for heading, metric in (("ValidRatio", "validratio"), ("HitRatio@5", "hit@5"), ("NDCG@10", "ndcg@10")):
        columns.append((heading, [_share(system.mean(metric)) for system in systems]))
    columns.append(("n", [str(summary.n)] * len(systems)))
    columns += [(name, [_published_cell(name, marks, system) for system in systems]) for name in summary.published]
    return pd.concat([pd.Series(cells, name=heading, dtype=object) for heading, cells in columns], axis=1)


def _published_cell(column: str, marks: Mapping[str, str], system: SystemResult) -> str:
    if column not in system.published:
        return ABSENT
    reported = system.published[column]
    valid = "" if reported.valid is None else f" (valid {reported.valid:.4f})"
    return f"{reported.hit:.4f}{valid}" + "".join(f" [{marks[text]}]" for text in reported.differences)


def comparisons_table(summary: Summary) -> pd.DataFrame:
    """Which differences are more than noise."""
    found = pd.DataFrame(summary.comparisons)
    table = pd.DataFrame({"Compared": found["one"] + " against " + found["other"]})
    table["difference"] = found["difference"].map("{:+.4f}".format)
    table["only the first"], table["only the second"] = found["only_one"].astype(str), found["only_other"].astype(str)
    table["McNemar p"], table["p (Holm)"] = found["mcnemar_p"].map("{:.2g}".format), found["mcnemar_holm"].map("{:.2g}".format)
    if "t_p" in found:
        for heading, key in (("t-test over seeds p", "t_p"), ("p (Holm) ", "t_holm")):
            table[heading] = found[key].map("{:.2g}".format, na_action="ignore").fillna(ABSENT)
    return table.assign(verdict=found["verdict"])


def time_table(summary: Summary) -> pd.DataFrame:
    """What the systems cost here: the first seed's training and evaluation."""
    rows = []
    for name, system in summary.systems.items():
        timings = system.runs[0].result["timings"]
        numbers = (timings.get(k) for k in ("training_seconds", "training_rows_per_second", "evaluation_rows_per_second"))
        rows.append([name, *(ABSENT if number is None else f"{number:,.0f}" for number in numbers)])
    return pd.DataFrame(rows, columns=["System", "training, s", "rows/s in training", "rows/s in evaluation"])


def notes(study: Study, summary: Summary) -> list[str]:
    """What a reader of the tables must know."""
    lines = [
        f"n = {summary.n} test rows, protocol {summary.protocol}; training seeds {', '.join(map(str, study.seeds))}; all systems "
        f"answer the same candidates (candidate_seed {study.candidate_seed}). The interval is Wilson's, over rows.",
    ]
    if summary.comparisons:
        lines.append(
            "McNemar's exact test pairs the rows of the first seed; Holm's correction counts all comparisons of this table. "
            "With one or two seeds it speaks of these trained models; from three on, the t-test over seeds speaks of the systems. "
            f"Where all seeds differ by the same, there is no spread to test by ({ABSENT}), and the verdict is McNemar's."
        )
    for name, system in summary.systems.items():
        counts = system.runs[0].result.get("answers") or {}
        told = [f"{count} {outcome}" for outcome, count in counts.items() if count]
        if told:
            lines.append(f"How {name} answered, seed {study.seeds[0]}: {', '.join(told)}.")
    if summary.best_baseline is not None:
        lines.append(f"Best baseline, chosen on the validation rows: {summary.best_baseline}.")
    if summary.published:
        sources = "; ".join(f"{column.name}: {column.source}" for column in study.published if column.name in summary.published)
        lines.append(f"Of the papers, {sources}. Everywhere other candidates than here, since theirs were not released.")
        lines += [f"[{mark}] {text}." for text, mark in _marks(summary).items()]
    return lines + [f"FAILED: {message}" for message in summary.failures.values()]


def _marks(summary: Summary) -> dict[str, str]:
    """A letter for each way in which a paper's setting differs."""
    reported = [reported for system in summary.systems.values() for reported in system.published.values()]
    texts = dict.fromkeys(text for one in reported for text in one.differences)
    return {text: chr(ord("a") + number) for number, text in enumerate(texts)}


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _run_row(arm: Arm, outcome: Outcome) -> dict[str, Any]:
    """A line of ``runs.csv``: a run with all its metrics."""
    row = {"dataset": arm.dataset, "system": arm.system, "seed": arm.seed, "candidate_seed": arm.candidate_seed}
    if isinstance(outcome, FailedArm):
        return {**row, "failure": outcome.message}
    result = outcome.result
    row |= {key: result[key] for key in ("protocol", "n", "correct", "valid_answers", "decoding", "best_epoch")}
    row |= {"low": result["interval_95"]["low"], "high": result["interval_95"]["high"]}
    row |= {f"{split}_{key}": value for split, values in result["metrics"].items() for key, value in values.items()}
    return {**row, **result["timings"], "seconds": outcome.seconds, "run_dir": outcome.paths["run_dir"]}


def latex(study: Study, summaries: Sequence[Summary]) -> str:
    """The papers' table: a line a system, ValidRatio and HitRatio@1 for each dataset, the best HitRatio@1 in bold (booktabs)."""
    columns: dict[tuple[str, str], list[str]] = {("", "System"): list(study.systems)}
    for summary in filter(lambda one: one.systems, summaries):
        heading, systems = f"{summary.dataset} ($n={summary.n}$)", [summary.systems.get(name) for name in study.systems]
        valid = [None if system is None else system.mean("validratio") for system in systems]
        columns[heading, "ValidRatio"] = ["--" if value is None else f"{value:.4f}" for value in valid]
        best = max(system.hit for system in summary.systems.values())
        columns[heading, "HitRatio@1"] = ["--" if system is None else _latex_hit(system, best) for system in systems]
    style = pd.DataFrame(columns).style.hide().format(escape="latex", subset=[("", "System")])
    style = style.format_index(escape="latex-math", axis="columns")
    return style.to_latex(hrules=True, column_format=f"l{'c' * (len(columns) - 1)}", multicol_align="c")


def _latex_hit(system: SystemResult, best: float) -> str:
    hit = f"\\textbf{{{system.hit:.4f}}}" if system.hit == best else f"{system.hit:.4f}"
    return hit if system.spread is None else f"{hit} $\\pm$ {system.spread:.4f}"
