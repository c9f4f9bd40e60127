"""A study's report: tables to read, to print (LaTeX) and to compute with (CSV), figures, and case studies on the page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from recbole_llara.evaluator.report import ABSENT
from recbole_llara.experiments.report import Bullets, Heading, Html, Report, Table, csv_text, write_report
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_figures import draw
from recbole_llara.experiments.study_runs import Arm, FailedArm, Outcome
from recbole_llara.experiments.study_summary import Case, Cases, Summary, SystemResult, find_cases, summarise

LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"})


def write_study_report(study: Study, outcomes: Mapping[Arm, Outcome]) -> str:
    """Write ``report.md``, ``report.html``, ``table.tex``, ``runs.csv``, ``comparisons.csv`` and ``figures/`` of a study.

    Returns:
        What to print: the Markdown report and where the rest is.
    """
    summaries = summarise(study, outcomes)
    files = {
        "table.tex": latex(study, summaries),
        "runs.csv": runs_csv(outcomes),
        "comparisons.csv": comparisons_csv(summaries),
    }
    return write_report(study_report(study, summaries), study.folder, "report.html", files)


def study_report(study: Study, summaries: Sequence[Summary]) -> Report:
    """What a study tells."""
    blocks, cases = [], []
    for summary in summaries:
        blocks.append(Heading(summary.dataset))
        if summary.systems:
            blocks.append(results_table(summary))
        if summary.comparisons:
            blocks.append(comparisons_table(summary))
        if summary.systems:
            blocks.append(time_table(summary))
        blocks.append(Bullets(notes(study, summary)))
        if "cases" in study.figures:
            found = [find_cases(summary, pattern, seed=study.seeds[0]) for pattern in study.cases]
            cases.append(Html(f"<h2>Cases of {escape(summary.dataset)}</h2>"))
            cases += [_cases_html(entry) for entry in found if entry is not None]
    closing = "each run's folder is named in runs.csv; its cases.jsonl has every test row, with what was shown and answered"
    return Report(study.title, blocks, draw(study, summaries), cases, [closing])


# --- tables ------------------------------------------------------------------------------------


def results_table(summary: Summary) -> Table:
    """The systems of one dataset: how many they got right, how sure that is, and what a paper reports."""
    systems, marks = summary.systems, _marks(summary)
    columns: list[tuple[str, Callable[[SystemResult], str]]] = [
        ("System", lambda system: system.name),
        ("HitRatio@1", lambda system: f"{system.hit:.4f}"),
    ]
    if any(system.spread is not None for system in systems):
        seeds = max(len(system.runs) for system in systems)
        columns.append((f"± over {seeds} seeds", lambda system: _share(system.spread)))
    if any(system.draws for system in systems):
        draws = 1 + max(len(system.draws) for system in systems)
        columns.append((f"± over {draws} draws", lambda system: _share(system.draw_spread)))
    columns += [
        ("95 % interval", lambda system: f"{system.interval.low:.3f} to {system.interval.high:.3f}"),
        ("ValidRatio", lambda system: _share(system.mean("validratio"))),
        ("HitRatio@5", lambda system: _share(system.mean("hit@5"))),
        ("NDCG@10", lambda system: _share(system.mean("ndcg@10"))),
        ("n", lambda system: str(summary.n)),
    ]
    columns += [(name, partial(_published_cell, name, marks)) for name in _published_columns(summary)]
    rows = [[cell(system) for _, cell in columns] for system in systems]
    return Table("Results", [heading for heading, _ in columns], rows)


def _published_columns(summary: Summary) -> list[str]:
    """The papers' columns that say something of this dataset."""
    return list(dict.fromkeys(name for system in summary.systems for name in system.published))


def _published_cell(column: str, marks: Mapping[str, str], system: SystemResult) -> str:
    if column not in system.published:
        return ABSENT
    reported = system.published[column]
    valid = "" if reported.valid is None else f" (valid {reported.valid:.4f})"
    return f"{reported.hit:.4f}{valid}" + "".join(f" [{marks[text]}]" for text in reported.differences)


def comparisons_table(summary: Summary) -> Table:
    """Which differences are more than noise."""
    header = ["Compared", "difference", "only the first", "only the second", "McNemar p", "p (Holm)"]
    over_seeds = any(comparison.seeds is not None for comparison in summary.comparisons)
    header += ["t-test over seeds p", "p (Holm) ", "verdict"] if over_seeds else ["verdict"]
    rows = []
    for c in summary.comparisons:
        cells = [f"{c.one} against {c.other}", f"{c.difference:+.4f}", str(c.rows.only_a), str(c.rows.only_b)]
        cells += [f"{c.rows.p_value:.2g}", f"{c.rows_holm:.2g}"]
        if over_seeds:
            cells += [ABSENT, ABSENT] if c.seeds is None else [f"{c.seeds.p_value:.2g}", f"{c.seeds_holm:.2g}"]
        rows.append([*cells, c.verdict])
    return Table("Differences", header, rows)


def time_table(summary: Summary) -> Table:
    """What the systems cost here: the first seed's training and evaluation."""
    header = ["System", "training, s", "rows/s in training", "rows/s in evaluation"]
    rows = []
    for system in summary.systems:
        timings = system.runs[0].result["timings"]
        numbers = (timings.get(k) for k in ("training_seconds", "training_rows_per_second", "evaluation_rows_per_second"))
        rows.append([system.name, *(ABSENT if number is None else f"{number:,.0f}" for number in numbers)])
    return Table("Time", header, rows)


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
    for system in summary.systems:
        counts = system.runs[0].result.get("answers") or {}
        told = [f"{count} {outcome}" for outcome, count in counts.items() if count]
        if told:
            lines.append(f"How {system.name} answered, seed {study.seeds[0]}: {', '.join(told)}.")
    if summary.best_baseline is not None:
        lines.append(f"Best baseline, chosen on the validation rows: {summary.best_baseline}.")
    if columns := _published_columns(summary):
        sources = "; ".join(f"{column.name}: {column.source}" for column in study.published if column.name in columns)
        lines.append(f"Of the papers, {sources}. Everywhere other candidates than here, since theirs were not released.")
        lines += [f"[{mark}] {text}." for text, mark in _marks(summary).items()]
    lines += [f"FAILED: {message}" for message in summary.failures.values()]
    return lines


def _marks(summary: Summary) -> dict[str, str]:
    """A letter for each way in which a paper's setting differs."""
    reported = [reported for system in summary.systems for reported in system.published.values()]
    texts = dict.fromkeys(text for one in reported for text in one.differences)
    return {text: chr(ord("a") + number) for number, text in enumerate(texts)}


# --- files -------------------------------------------------------------------------------------


def runs_csv(outcomes: Mapping[Arm, Outcome]) -> str:
    """One line a run, with all its metrics."""
    rows = []
    for arm, outcome in outcomes.items():
        row: dict[str, Any] = {
            "dataset": arm.dataset,
            "system": arm.system,
            "seed": arm.seed,
            "candidate_seed": arm.candidate_seed,
        }
        if isinstance(outcome, FailedArm):
            row["failure"] = outcome.message
        else:
            result = outcome.result
            row |= {key: result[key] for key in ("protocol", "n", "correct", "valid_answers", "decoding", "best_epoch")}
            row |= {"low": result["interval_95"]["low"], "high": result["interval_95"]["high"]}
            row |= {f"{split}_{key}": value for split, values in result["metrics"].items() for key, value in values.items()}
            row |= {**result["timings"], "seconds": outcome.seconds, "run_dir": outcome.paths["run_dir"]}
        rows.append(row)
    return csv_text(rows)


def comparisons_csv(summaries: Sequence[Summary]) -> str:
    """One line a comparison."""
    rows = []
    for summary in summaries:
        for c in summary.comparisons:
            row: dict[str, Any] = {"dataset": summary.dataset, "one": c.one, "other": c.other, "difference": c.difference}
            row |= {"both": c.rows.both, "only_one": c.rows.only_a, "only_other": c.rows.only_b, "neither": c.rows.neither}
            row |= {"mcnemar_p": c.rows.p_value, "mcnemar_holm": c.rows_holm}
            if c.seeds is not None:
                row |= {"t_p": c.seeds.p_value, "t_holm": c.seeds_holm, "low": c.seeds.low, "high": c.seeds.high}
            rows.append({**row, "verdict": c.verdict})
    return csv_text(rows)


def latex(study: Study, summaries: Sequence[Summary]) -> str:
    """The papers' table: a line a system, ValidRatio and HitRatio@1 for each dataset, the best HitRatio@1 in bold (booktabs)."""
    shown = [summary for summary in summaries if summary.systems]
    heads = " & ".join(f"\\multicolumn{{2}}{{c}}{{{s.dataset.translate(LATEX)} ($n={s.n}$)}}" for s in shown)
    lines = [
        f"\\begin{{tabular}}{{l{'cc' * len(shown)}}}",
        r"\toprule",
        f" & {heads} \\\\",
        "System" + " & ValidRatio & HitRatio@1" * len(shown) + r" \\",
        r"\midrule",
    ]
    for name in study.systems:
        cells = [name.translate(LATEX)]
        for summary in shown:
            system = summary.system(name)
            cells += ["--", "--"] if system is None else _latex_cells(system, max(s.hit for s in summary.systems))
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cells(system: SystemResult, best: float) -> list[str]:
    hit = f"{system.hit:.4f}"
    hit = f"\\textbf{{{hit}}}" if system.hit == best else hit
    spread = "" if system.spread is None else f" $\\pm$ {system.spread:.4f}"
    valid = system.mean("validratio")
    return ["--" if valid is None else f"{valid:.4f}", hit + spread]


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


# --- cases ------------------------------------------------------------------------------------


def _cases_html(found: Cases) -> Html:
    pattern = found.pattern
    who = f"{', '.join(pattern.right) or 'nobody'} right; {', '.join(pattern.wrong) or 'nobody'} wrong"
    drawn = f", {len(found.shown)} of them drawn at random" if len(found.shown) < found.count else ""
    head = f"<h3>{escape(pattern.title)}</h3><p>{escape(who)}: {found.count} of {found.n} rows{drawn}.</p>"
    return Html(head + "".join(_case_html(case) for case in found.shown))


def _case_html(case: Case) -> str:
    question = case.question
    history = "".join(f"<li>{escape(title)}</li>" for title in question["history_titles"])
    options = "".join(
        f'<li class="target">{escape(title)}</li>' if item == question["target"] else f"<li>{escape(title)}</li>"
        for item, title in zip(question["candidates"], question["candidate_titles"], strict=True)
    )
    answers = "".join(
        f'<tr class="{"right" if name in case.correct else "wrong"}"><td>{escape(name)}</td><td>{escape(text)}</td>'
        f"<td>{'right' if name in case.correct else 'wrong'}</td></tr>"
        for name, text in case.answers.items()
    )
    return (
        f'<section class="case"><div><h4>User {escape(str(question["user"]))} has seen</h4><ol>{history}</ol></div>'
        f"<div><h4>Candidates</h4><ul>{options}</ul></div>"
        f'<div><h4>Answers</h4><table><tbody>{answers}</tbody></table><p>True: <b class="true">{escape(question["target_title"])}</b></p>'
        "</div></section>"
    )
