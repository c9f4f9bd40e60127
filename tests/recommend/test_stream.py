"""The command line: one history, or JSON lines by the batch, each wrong line with an error of its own."""

import io
import json

import pytest

from recbole_llara.recommend.__main__ import main
from recbole_llara.recommend.stream import BATCHES_AT_ONCE, answer_lines


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
