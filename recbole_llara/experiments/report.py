"""The report of a study or of a search: one list of blocks, written as Markdown and as an HTML page, with figures and tables.

The page holds everything in one file and needs no network. Figures are drawn by plotly: the page shows them alive, and PNG
files show them where a browser can draw them.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative

from recbole_llara.evaluator.report import markdown_table
from recbole_llara.utils.atomic import write_text

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
COLOURS = [*qualitative.D3, *qualitative.Set2]
PNG_NEEDS = "kaleido and Chrome or Chromium (pip install kaleido, and a browser of your system or plotly_get_chrome)"


@dataclass(frozen=True)
class Heading:
    """Begins a part of the report."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; the caption stands on the page alone."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    lines: list[str]


@dataclass(frozen=True)
class Html:
    """What stands on the page alone."""

    text: str


Block = Heading | Table | Bullets | Html | str  # a text is a paragraph; `this` in it is code


@dataclass(frozen=True)
class Report:
    """What a study or a search tells."""

    title: str
    blocks: Sequence[Block]
    figures: Mapping[str, go.Figure] = field(default_factory=dict)  # by file name
    appendix: Sequence[Html] = ()  # below the figures
    closing: Sequence[str] = ()  # printed after the names of the files


def write_report(report: Report, folder: Path, page: str, files: Mapping[str, str]) -> str:
    """Write ``report.md``, the page, ``figures/`` and further files.

    Args:
        report: what they tell.
        folder: is made.
        page: its file name.
        files: file name -> content.

    Returns:
        What to print: the Markdown report and where the rest is.
    """
    text = markdown(report)
    folder.mkdir(parents=True, exist_ok=True)
    written = {page: html_page(report), "report.md": text, **files}
    for name, content in written.items():
        write_text(folder / name, content)
    missing = write_pngs(report.figures, folder / "figures")
    lines = [text, f"written: {folder}/{', '.join(written)}", *filter(None, [missing]), *report.closing]
    return "\n".join(lines) + "\n"


def markdown(report: Report) -> str:
    """The report to read in a terminal."""
    parts = [f"# {report.title}"]
    for block in report.blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Table(_, header, rows):
                parts.append(markdown_table(header, rows))
            case Bullets(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case str():
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def html_page(report: Report) -> str:
    """The report as one HTML file; every text is escaped."""
    parts = [f"<h1>{escape(report.title)}</h1>", *map(_html, report.blocks)]
    for number, figure in enumerate(report.figures.values()):
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"responsive": True, "displaylogo": False})
        parts.append(f"<figure>{drawn}</figure>")
    body = "\n".join([*parts, *map(_html, report.appendix)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Table(caption, header, rows):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
            body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return (
                f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div>"
            )
        case Bullets(lines):
            return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
        case Html(text):
            return text
    return "<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(block)) + "</p>"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; a row may lack some of the columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def styled(figure: go.Figure, title: str, height: int) -> go.Figure:
    """A figure in the style of all others; ``height`` in pixels."""
    return figure.update_layout(
        title=title,
        height=height,
        template="plotly_white",
        font={"size": 13},
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
        legend={"orientation": "v", "x": 1.02, "y": 1},
    )


def write_pngs(figures: Mapping[str, go.Figure], folder: Path) -> str | None:
    """Write every figure as a PNG.

    Args:
        figures: by file name.
        folder: is made.

    Returns:
        None, or what is missing: drawing a picture file needs a browser, which few servers have.
    """
    import plotly.io

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    try:
        heights = [figure.layout.height for figure in figures.values()]
        plotly.io.write_images(list(figures.values()), paths, scale=2, width=1000, height=heights)
    except (ValueError, RuntimeError, ImportError) as error:
        return f"no PNG files: they need {PNG_NEEDS}; the page has all figures ({str(error).strip().splitlines()[0]})"
    return None
