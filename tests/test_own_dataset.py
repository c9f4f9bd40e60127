"""docs/pages/own_dataset.md, followed line by line: its files, its commands, and what it says that they print."""

import re
import shlex
from pathlib import Path

import pytest
from commands import write_files

from recbole_llara import cli

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "pages" / "own_dataset.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
# What makes the page's runs small.
TINY = ["--epochs=1", "--show_progress=False"]
TINY_LLM = ["--rec_epochs=1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with the page's files."""
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    Path("shop.yaml").write_text(next(text for language, text in BLOCKS if language == "yaml"), encoding="utf-8")
    return tmp_path


def _follow(line):
    """The exit status of a command of the page."""
    words = shlex.split(line)
    words = words[2:] if words[0] == "python" else words[1:]
    if words[0] != "convert":
        words += TINY + (TINY_LLM if "--model=LLaRA" in words else [])
    return cli.main(words)


def test_the_page_is_followed_line_by_line(folder, capsys):
    asked = [(place, line) for place, (language, text) in enumerate(BLOCKS) if language == "bash" for line in text.splitlines()]
    followed = []
    for place, line in asked:
        status, printed = _follow(line), capsys.readouterr()
        shown = next((text for language, text in BLOCKS[place + 1 : place + 2] if language == "text"), None)
        assert shown is None or shown == printed.out + printed.err, line
        assert status == (2 if shown and "error:" in shown else 0), (line, printed.err[-2000:])
        followed.append((line.split()[1] if "convert" in line else re.search(r"--model=(\w+)", line)[1], status))
    models = [("SASRec", 0), ("LLaRA", 0)]
    assert followed == [("convert", 2), ("convert", 0), *models, ("convert", 0), *models]


def test_the_command_that_is_printed_is_the_page_s_next(folder, capsys):
    converts = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines() if " convert " in line]
    assert _follow(converts[1]) == 0
    printed = capsys.readouterr().out.splitlines()[-1].strip()
    assert printed in [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


# What the page's last table says of `convert`, and the file and the options by which it says so.
FAILURES = {
    "items have no title": ("sku,name\n0003,Tea\n", []),
    "found 4 columns in line 3, expected the 3 of the first line": ("sku,name,x\n0003,Tea,a\n0005,Salt, fine,b\n", []),
    "a quote opens a cell there and is not closed": ('sku,name\n0003,"Tea\n', []),
    "found bytes that are no UTF-8": ("sku,name\n0003,Чай\n".encode("cp1251"), []),
    "expected one for item_id": ("0003,Tea\n", []),
    "found the name 'steam', of which this package has properties": ("sku,name\n0003,Tea\n", ["--dataset", "steam"]),
}


@pytest.mark.parametrize("message", FAILURES)
def test_what_the_last_table_says_is_said(message, folder, capsys):
    text, words = FAILURES[message]
    Path("other.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["convert", "generic", "--inter", "shop.csv", "--item", "other.csv", "--out", "dataset", *words]) == 2
    said, table = capsys.readouterr().err, PAGE.partition("## Where it fails")[2]
    assert message in said
    assert message.replace("item_id", "user_id") in table and not Path("dataset").exists()
