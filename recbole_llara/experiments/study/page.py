"""A study's page: tables, figures and cases in one HTML file that needs no network."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from recbole_llara.experiments.study.cases import Case, Cases
from recbole_llara.experiments.study.definition import Study
from recbole_llara.experiments.study.summary import Summary
from recbole_llara.experiments.study.tables import Table, comparisons_table, notes, results_table, time_table

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page(study: Study, summaries: Sequence[Summary], figures: dict[str, go.Figure], cases: dict[str, list[Cases]]) -> str:
    """The whole file.

    Args:
        study: what was run.
        summaries: of its datasets.
        figures: by name, as ``draw`` gives them.
        cases: dataset -> the rows to show.
    """
    parts = [f"<h1>{escape(study.title)}</h1>"]
    for summary in summaries:
        parts.append(f"<h2>{escape(summary.dataset)}</h2>")
        tables = [(results_table(summary), "Results"), (time_table(summary), "Time")] if summary.systems else []
        if summary.comparisons:
            tables.insert(1, (comparisons_table(summary), "Differences"))
        parts += [_table(table, caption) for table, caption in tables]
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in notes(study, summary)) + "</ul>")
    for number, figure in enumerate(figures.values()):
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"responsive": True, "displaylogo": False})
        parts.append(f"<figure>{drawn}</figure>")
    for dataset, of_dataset in cases.items():
        parts += [f"<h2>Cases of {escape(dataset)}</h2>", *(_cases(found) for found in of_dataset)]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _table(table: Table, caption: str) -> str:
    header, rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cases(found: Cases) -> str:
    pattern = found.pattern
    who = f"{', '.join(pattern.right) or 'nobody'} right; {', '.join(pattern.wrong) or 'nobody'} wrong"
    drawn = f", {len(found.shown)} of them drawn at random" if len(found.shown) < found.count else ""
    head = f"<h3>{escape(pattern.title)}</h3><p>{escape(who)}: {found.count} of {found.n} rows{drawn}.</p>"
    return head + "".join(_case(case) for case in found.shown)


def _case(case: Case) -> str:
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
