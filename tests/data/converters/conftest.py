"""The converters, run as their command runs them."""

import pytest

from recbole_llara.data.command import build_convert_parser
from recbole_llara.data.converters import convert


@pytest.fixture
def run():
    """Runs the command line; the report, or the error it raises."""
    return lambda *words: convert(build_convert_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def read():
    """A written file as its header and rows, each cell as it stands."""

    def lines(path):
        with open(path, encoding="utf-8") as file:
            header, *rows = (line.removesuffix("\n").split("\t") for line in file)
        return header, rows

    return lines
