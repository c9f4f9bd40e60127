"""The report of a study or of a search, written as Markdown and by ``report.html`` as a page that needs no network.

plotly draws the figures: alive on the page, and as PNG files where there is a browser that can draw them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment
from plotly.colors import qualitative

from recbole_llara.evaluator.report import markdown_table
from recbole_llara.utils.atomic import write_text

TEMPLATE = Path(__file__).parent / "report.html"
COLOURS = [*qualitative.D3, *qualitative.Set2]
PNG_NEEDS = "kaleido and Chrome or Chromium (pip install kaleido, and a browser of your system or plotly_get_chrome)"

# A heading that begins with ##, a paragraph in which `this` is code, a list of sentences, or tables of texts by caption;
# captions stand on the page alone.
Block = str | list[str] | dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Report:
    """What a study or a search tells."""

    title: str
    blocks: Sequence[Block]
    figures: Mapping[str, go.Figure]  # by file name
    cases: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # dataset -> case studies, on the page alone


def write_report(report: Report, folder: Path, page: str, files: Mapping[str, str]) -> str:
    """Write ``report.md``, the page, ``figures/`` and further files (name -> content); returns what to print."""
    text = markdown(report)
    written = {page: html_page(report), "report.md": text, **files}
    for name, content in written.items():
        write_text(folder / name, content)
    missing = write_pngs(report.figures, folder / "figures")
    return "\n".join([text, f"written: {folder}/{', '.join(written)}", *filter(None, [missing])]) + "\n"


def markdown(report: Report) -> str:
    """The report to read in a terminal."""
    parts = [f"# {report.title}"]
    for block in report.blocks:
        if isinstance(block, dict):
            parts += [markdown_table(list(frame.columns), frame.to_numpy().tolist()) for frame in block.values()]
        else:
            parts.append(block if isinstance(block, str) else "\n".join(f"- {line}" for line in block))
    return "\n\n".join(parts) + "\n"


def html_page(report: Report) -> str:
    """The report as one HTML file, for light and dark screens; every text is escaped."""
    config = {"responsive": True, "displaylogo": False}
    figures = [
        (figure.layout.title.text or name, figure.to_html(full_html=False, include_plotlyjs=number == 0, config=config))
        for number, (name, figure) in enumerate(report.figures.items())
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=report, figures=figures)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; a row may lack some of the columns."""
    return pd.DataFrame(rows, dtype=object).to_csv(index=False)


def styled(figure: go.Figure, title: str, height: int) -> go.Figure:
    """A figure in the style of all others; ``height`` in pixels."""
    margin, legend = {"l": 70, "r": 30, "t": 90, "b": 60}, {"orientation": "v", "x": 1.02, "y": 1}
    return figure.update_layout(
        title=title, height=height, template="plotly_white", font={"size": 13}, margin=margin, legend=legend
    )


def write_pngs(figures: Mapping[str, go.Figure], folder: Path) -> str | None:
    """Write every figure as a PNG; returns what is missing for that, since few servers have the browser it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    try:
        heights = [figure.layout.height for figure in figures.values()]
        plotly.io.write_images(list(figures.values()), paths, scale=2, width=1000, height=heights)
    except (ValueError, RuntimeError, ImportError) as error:
        return f"no PNG files: they need {PNG_NEEDS}; the page has all figures ({str(error).strip().splitlines()[0]})"
    return None
