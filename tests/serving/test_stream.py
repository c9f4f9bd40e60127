"""The command line: one history, or JSON lines by the batch, each wrong line with an error of its own."""

import io
import json

import pytest

from recbole_llara.serving.command import BATCHES_AT_ONCE, answer_lines
from recbole_llara.serving.command import recommend_main as main


def test_lines_are_answered_in_their_order(run):
    lines = [
        '{"user": "a", "history": ["i1", "i2"]}', "", '{"history": ["i3"], "k": 2}', '{"user": 3, "history": ["nothing"]}', "{",
        "[1]", '{"history": "i1"}', '{"user": "b", "history": ["i1"], "candidates": ["i5", "i6", "i7"]}',
        '{"history": ["i1"], "top": 3}', '{"history": ["i1"], "k": "x"}', '{"history": ["i1"], "candidates": "i5"}',
        '{"history": ["i1"], "k": 0}', '{"history": [["i1"]]}', '{"history": []}',
    ]  # fmt: skip
    out = io.StringIO()
    answer_lines(run, lines, out, k=4)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(answers) == len(lines) - 1
    found = [len(answer.get("recommendations", [])) for answer in answers]
    assert found == [4, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]
    assert [answer.get("user") for answer in answers] == ["a", None, 3, None, None, None, "b", *[None] * 6]
    assert all("error" in answer for answer, number in zip(answers, found, strict=True) if not number)
    alone = run.recommend(["i1", "i2"], k=4)
    assert [item["item_id"] for item in answers[0]["recommendations"]] == [item.item_id for item in alone]


def test_lines_are_read_as_they_are_answered(run):
    """What is held does not grow with the number of lines: a batch is answered before the next is read."""
    read, out = [], io.StringIO()

    def lines():
        for number in range(3 * BATCHES_AT_ONCE * run.batch_size):
            read.append(number)
            assert len(read) - out.getvalue().count("\n") <= BATCHES_AT_ONCE * run.batch_size + 1
            yield '{"history": ["i1"]}\n'

    answer_lines(run, lines(), out, k=1)
    assert out.getvalue().count("\n") == 3 * BATCHES_AT_ONCE * run.batch_size


def test_the_command_line(make_run, capsys, monkeypatch):
    folder = make_run("SASRec")
    assert main([f"--run={folder}", "--history", "Title 1 é", "i2", "--k=3"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and "recommender's rank" in table[0] and "Title" in table[1]
    assert main([f"--run={folder}", "--history", "i2", "--candidates", "i5", "i6", "--json"]) == 0
    assert {item["item_id"] for item in json.loads(capsys.readouterr().out)} == {"i5", "i6"}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"history": ["i1"]}\n'))
    assert main([f"--run={folder}", "--jsonl"]) == 0
    assert len(json.loads(capsys.readouterr().out)["recommendations"]) == 5
    assert main([f"--run={folder}", "--history", "Title 1"]) == 2
    assert "did you mean 'Title 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"--run={folder}"])


def test_lines_that_are_no_utf_8_or_hold_a_mark_or_half_a_character_stop_nothing(run):
    lines = [
        '\ufeff{"user": "a", "history": ["i1"]}', '{"user": "b", "history": ["i\udcff"]}', '{"user": "\\ud83d", "history": ["\\ud83d"]}',
        "[" * 100_000, '\ufeff{"user": "c", "history": ["i1"]}',
    ]  # fmt: skip
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a file is
    answer_lines(run, lines, out, k=1)
    out.seek(0)
    answers = [json.loads(line) for line in out]
    assert [answer.get("user") for answer in answers] == ["a", None, "\ud83d", None, "c"]
    assert ["error" in answer for answer in answers] == [False, True, True, True, False]
    assert "no UTF-8" in answers[1]["error"] and "no JSON" in answers[3]["error"]


TITLES = {"i6": "霸王别姬 🎬", "i7": "سلام", "i8": "Ça va?"}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_the_command_on_any_console(make_run, keys, tmp_path, monkeypatch, encoding):
    """Tables are escaped where the console lacks a character; JSON is UTF-8 on all of them, in and out."""
    path = tmp_path / "toy" / "toy.item"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [f"{item}\t{TITLES.get(item, title)}" for item, _, title in (line.partition("\t") for line in lines)]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    folder = make_run("SASRec")

    def said(*words, asked=b""):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked), encoding=encoding))
        assert main([f"--run={folder}", *words]) == 0
        out.flush()
        return out.buffer.getvalue()

    shown = ["--history", "i1", "--candidates", *TITLES, "--k=3"]
    table = said(*shown).decode(encoding)
    assert all(title.encode(encoding, errors="backslashreplace").decode(encoding) in table for title in TITLES.values())
    assert {item["title"] for item in json.loads(said(*shown, "--json").decode("utf-8"))} == set(TITLES.values())
    question = json.dumps({"history": [TITLES["i6"]], "candidates": [TITLES["i7"], TITLES["i8"]]}, ensure_ascii=False)
    answer = json.loads(said("--jsonl", asked=b"\xef\xbb\xbf" + question.encode()).decode("utf-8"))
    assert {item["title"] for item in answer["recommendations"]} == {TITLES["i7"], TITLES["i8"]}
