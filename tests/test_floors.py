"""Imports run downward: from a room of the package to rooms below it, never in a circle of files or of folders."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "recbole_llara"
# From the ground up; ``quick_start`` and ``cli`` are modules.
FLOORS = (
    "utils", "config", "data", "prompt", "llm", "checkpoint", "evaluator", "recommender", "model", "trainer", "serving",
    "quick_start", "experiments", "tiny_llama", "cli", "__main__",
)  # fmt: skip


def _name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in PACKAGE.rglob("*.py")}


def _imported(path):
    """The modules of this package that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f"{path} imports relatively"
            continue
        for name in names:
            if name in MODULES:
                yield name
            elif name.rpartition(".")[0] in MODULES:
                yield name.rpartition(".")[0]


GRAPH = {name: sorted(set(_imported(path)) - {name}) for name, path in MODULES.items()}


def _floor(module):
    return FLOORS.index(module.split(".")[1])


def test_every_room_has_a_floor():
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if "." in name))
def test_imports_run_downward(module):
    upward = [other for other in GRAPH[module] if "." in other and _floor(other) > _floor(module)]
    assert not upward


def test_no_circle_of_files():
    seen, done = [], set()

    def visit(module):
        assert module not in seen, " -> ".join([*seen, module])
        if module in done:
            return
        seen.append(module)
        for other in GRAPH[module]:
            visit(other)
        done.add(seen.pop())

    for module in GRAPH:
        visit(module)
    assert sum(map(len, GRAPH.values())) > 300  # they were found


def test_few_modules_stand_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 8
