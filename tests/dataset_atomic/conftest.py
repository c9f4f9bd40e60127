"""The converters are scripts beside the package: their folder joins the path, as when one of them is run."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dataset_atomic"))


@pytest.fixture
def run():
    """Runs the command line; the report, or the error it raises."""
    import convert

    return lambda *words: convert.convert([str(word) for word in words])


@pytest.fixture
def read():
    """A written file as its header and rows, each cell as it stands."""

    def lines(path):
        with open(path, encoding="utf-8") as file:
            header, *rows = (line.removesuffix("\n").split("\t") for line in file)
        return header, rows

    return lines
