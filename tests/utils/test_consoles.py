"""Consoles that hold few characters: no command breaks off, and JSON is UTF-8 on all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = "霸王别姬 🎬 سلام Ça va?"
CONSOLES = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the locale C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}
ENCODINGS = {"cp1252": "cp1252", "the locale C": "ascii", "UTF-8": "utf-8"}


def run(console: str, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A Python process at a console."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONIO", "LC_", "LANG"))}
    environment = {**inherited, **CONSOLES[console], "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], input=stdin, capture_output=True, env=environment, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("console", CONSOLES)
def test_text_for_people_is_escaped_where_the_console_lacks_it(console):
    program = (
        f"import sys; from recbole_llara.utils.errors import exit_status, UserError; text = {TEXT!a}\n"
        "exit_status('p', lambda: sys.stdout.write(text))\n"
        "def fail(): raise UserError(text)\n"
        "sys.exit(exit_status('p', fail))"
    )
    ended = run(console, "-c", program)
    expected = TEXT.encode(ENCODINGS[console], errors="backslashreplace")
    assert (ended.returncode, ended.stdout) == (2, expected)
    assert ended.stderr.removesuffix(os.linesep.encode()) == b"p: error: " + expected


@pytest.mark.parametrize("console", CONSOLES)
def test_json_is_utf_8_on_every_console(console):
    program = (
        "import sys; from recbole_llara.utils.process_setup import escape_output, read_json, write_json\n"
        "escape_output(); write_json(); read_json()\n"
        "for line in sys.stdin: sys.stdout.write(line.replace('\\udcff', '?'))"
    )
    ended = run(console, "-c", program, stdin=f"{TEXT}\n".encode() + b"\xff\n")
    assert (ended.returncode, ended.stdout) == (0, f"{TEXT}\n?\n".encode())


@pytest.mark.parametrize("console", ["cp1252", "the locale C"])
def test_a_converter_reports_a_dataset_of_any_name(console, tmp_path):
    (tmp_path / "inter.csv").write_text("user_id,item_id,timestamp\nu,1,2\n", encoding="utf-8")
    (tmp_path / "item.csv").write_text(f"item_id,title\n1,{TEXT}\n", encoding="utf-8")
    files = [f"--inter={tmp_path / 'inter.csv'}", f"--item={tmp_path / 'item.csv'}", f"--out={tmp_path / 'out'}"]
    name = "店"
    ended = run(console, "-m", "recbole_llara", "convert", "generic", *files, f"--dataset={name}")
    assert ended.returncode == 0, ended.stderr
    assert b"1 interactions" in ended.stdout
    assert (tmp_path / "out" / name / f"{name}.item").read_text(encoding="utf-8").splitlines()[1] == f"1\t{TEXT}"


@pytest.mark.parametrize("console", ["cp1252", "the locale C"])
def test_a_run_logs_text_of_any_kind(console, tmp_path):
    """The log file is UTF-8: RecBole opens it in the encoding of the locale."""
    (tmp_path / "toy").mkdir(parents=True)
    rows = [f"u{user}\ti{(user + step) % 9}\t{step}" for user in range(9) for step in range(5)]
    lines = {"inter": ["user_id:token\titem_id:token\ttimestamp:float", *rows]}
    lines["item"] = ["item_id:token\ttitle:token_seq", *(f"i{item}\t{TEXT} {item}" for item in range(9))]
    for suffix, content in lines.items():
        (tmp_path / "toy" / f"toy.{suffix}").write_text("\n".join(content) + "\n", encoding="utf-8")
    keys = {"data_path": tmp_path, "checkpoint_dir": tmp_path / "saved", "title_field": "title", "candidate_num": 3, "topk": 1}
    keys |= {"load_col": "{inter: [user_id, item_id, timestamp]}", "protocol": "leave_one_out", "use_gpu": "False", "epochs": 0}
    (tmp_path / "mine.yaml").write_text(f"dataset_warning: '{TEXT}'\n", encoding="utf-8")
    program = f"import os, sys; os.chdir({str(tmp_path)!a}); from recbole_llara.cli import main; sys.exit(main(sys.argv[1:]))"
    given = [f"--{key}={value}" for key, value in keys.items()]
    ended = run(console, "-c", program, "--model=Popularity", "--dataset=toy", "--config_files=mine.yaml", *given)
    assert ended.returncode == 0 and b"Logging error" not in ended.stderr, ended.stderr.decode(errors="replace")
    (log,) = (tmp_path / "log").glob("*/*.log")
    assert f"dataset toy: {TEXT}" in log.read_text(encoding="utf-8")


def test_arguments_that_are_no_text_in_the_locale_are_refused():
    program = (
        "import sys; from recbole_llara.utils.errors import exit_status; from recbole_llara.config.yaml_files import parse_arguments\n"
        "sys.exit(exit_status('p', lambda: parse_arguments(sys.argv[1:])))"
    )
    ended = run("the locale C", "-c", program, "--data_path=店")
    assert ended.returncode == 2
    assert b"p: error: command line: found bytes in --data_path that are no text in this locale (ascii)" in ended.stderr
