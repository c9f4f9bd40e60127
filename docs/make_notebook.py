"""Makes docs/pages/notebook.ipynb and its page out of docs/pages/notebook.py, by running it: ``make notebook``.

The script is the source: cells begin with ``# %%``, those of text with ``# %% [markdown]``. A Jupyter kernel runs it in an empty folder, and its outputs are
stored in the notebook. ``notebook.md`` is the notebook as a page, with the plots as PNG files; kaleido and a browser draw them.
"""

import base64
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PAGES = Path(__file__).resolve().parent / "pages"
SCRIPT, NOTEBOOK, PAGE = (PAGES / f"notebook.{ending}" for ending in ("py", "ipynb", "md"))
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
KEPT = ("text/plain", "image/png")  # of a result; a plot that is drawn by JavaScript would bring megabytes of it


class Cell(NamedTuple):
    """One cell."""

    kind: str  # markdown or code
    source: str


def cells_of(script: str) -> list[Cell]:
    """The cells of a script."""
    _, *parts = _CELL.split(script)
    found = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        text = body.strip("\n")
        found.append(Cell("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)) if mark else Cell("code", text))
    return found


def notebook_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """A notebook without outputs, of the format 4.5."""
    made = []
    for number, cell in enumerate(cells):
        head = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": cell.source.splitlines(keepends=True)}
        made.append(head | ({} if cell.kind == "markdown" else {"execution_count": None, "outputs": []}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text_of(lines: Any) -> str:
    """A text of a notebook, which may stand there in lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def plots_of(notebook: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG files of a notebook's plots, by name."""
    drawn = [
        output["data"]["image/png"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    return {f"notebook_{number}.png": base64.b64decode(text_of(image)) for number, image in enumerate(drawn, 1)}


def page_of(notebook: Mapping[str, Any]) -> str:
    """The notebook as a Markdown page."""
    return "\n\n".join(_page_parts(notebook)) + "\n"


def _page_parts(notebook: Mapping[str, Any]) -> Iterator[str]:
    plots = iter(plots_of(notebook))
    title = ""
    for cell in notebook["cells"]:
        source = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            title = source.splitlines()[0].lstrip("# ")
            yield source
            continue
        yield f"```python\n{source}\n```"
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                yield f"![{title}]({next(plots)})"
            elif printed := text_of(output.get("text", "")).rstrip("\n"):
                yield f"```text\n{printed}\n```"


def executed(notebook: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs that a Jupyter kernel gave, run in ``folder``."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PLOTLY_RENDERER"] = "png"
    joined = [{**cell, "source": text_of(cell["source"])} for cell in notebook["cells"]]  # in memory; on disk in lines
    node = nbformat.from_dict({**notebook, "cells": joined})
    NotebookClient(node, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    done = json.loads(nbformat.writes(node))
    for cell in done["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = [_kept(output) for output in cell["outputs"] if output.get("name") != "stderr"]
    return done | {"metadata": notebook["metadata"]}


def _kept(output: dict[str, Any]) -> dict[str, Any]:
    if "data" not in output:
        return output
    return {**output, "metadata": {}, "data": {kind: value for kind, value in output["data"].items() if kind in KEPT}}


def main() -> int:
    """Run the script as a notebook, and write the notebook, its page and its plots."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(notebook_of(cells_of(SCRIPT.read_text(encoding="utf-8"))), Path(folder))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page_of(notebook), encoding="utf-8")
    for name, image in plots_of(notebook).items():
        (PAGES / name).write_bytes(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
