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
    """A written file as its header and rows."""
    import csv

    def lines(path):
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        return header, rows

    return lines
