"""The notebook of docs/: it runs from its first cell to its last, and script, notebook and page tell the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = DOCS / "pages"
# Runs the cells of standard input one after another, as a kernel does; behind the cell that sets the budgets it makes them small.
RUNNER = """
import json, sys
names = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), 1):
    exec(compile(source, f"cell {number}", "exec"), names)
    if "LLARA =" in source:
        names["QUIET"] |= {"max_eval_rows": 20, "use_gpu": False}
        names["SASREC"] |= {"epochs": 1, "max_train_rows": 64}
        names["LLARA"] |= {"max_train_rows": 64, "train_batch_size": 32}
"""


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """``docs/make_notebook.py``."""
    spec = importlib.util.spec_from_file_location("docs_make_notebook", DOCS / "make_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    """The stored one."""
    return json.loads((PAGES / "notebook.ipynb").read_text(encoding="utf-8"))


def executed(sources: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What a process says that ran these cells in ``folder``."""
    return subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources), cwd=folder, env={**os.environ, "PYTHONPATH": str(DOCS.parent)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_the_notebook_is_the_script(maker: ModuleType, notebook: dict[str, Any]) -> None:
    cells = maker.cells_of((PAGES / "notebook.py").read_text(encoding="utf-8"))
    stored = [maker.Cell(cell["cell_type"], maker.text_of(cell["source"])) for cell in notebook["cells"]]
    assert len(cells) >= 20 and stored == cells, "make notebook"


def test_the_page_is_the_notebook(maker: ModuleType, notebook: dict[str, Any]) -> None:
    assert (PAGES / "notebook.md").read_text(encoding="utf-8") == maker.page_of(notebook), "make notebook"
    plots = maker.plots_of(notebook)
    assert len(plots) == 2
    for name, image in plots.items():
        assert image.startswith(b"\x89PNG") and (PAGES / name).read_bytes() == image


def test_the_stored_outputs_are_of_one_run_from_top_to_bottom(notebook: dict[str, Any]) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum(bool(cell["outputs"]) for cell in code) >= 9
    assert "/root" not in json.dumps(notebook) and "/tmp" not in json.dumps(notebook)


def test_cells_of_a_script(maker: ModuleType) -> None:
    script = "# %% [markdown]\n# # Title\n#\n# Text\n\n# %%\nx = 1\n\n\ny = 2  # %% no cell\n"
    assert maker.cells_of(script) == [
        maker.Cell("markdown", "# Title\n\nText"),
        maker.Cell("code", "x = 1\n\n\ny = 2  # %% no cell"),
    ]


def test_a_failing_cell_fails(tmp_path: Path) -> None:
    done = executed(["x = 1", "x / 0", "open('later', 'w')"], tmp_path)
    assert done.returncode != 0 and 'File "cell 2"' in done.stderr and not (tmp_path / "later").exists()


@pytest.mark.slow
def test_the_notebook_runs(maker: ModuleType, notebook: dict[str, Any], tmp_path: Path) -> None:
    done = executed([maker.text_of(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| SASRec        |" in done.stdout and "Exact McNemar test" in done.stdout
    assert "Choose one of these 20 movies: " in done.stdout.replace("\n", " ") and "Toy Story[*], GoldenEye[*]" in done.stdout
    assert "\n5. " in done.stdout and "has rank 1 of 20 candidates" in done.stdout
    assert {path.name for path in tmp_path.glob("*.html")} == {"intervals.html", "levels.html"}


def test_the_script_is_one_program() -> None:
    compile((PAGES / "notebook.py").read_text(encoding="utf-8"), "notebook.py", "exec")
