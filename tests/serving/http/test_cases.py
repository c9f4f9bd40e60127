"""The test rows: filters are who was right, and an opened row is what the files say."""

import json

import pytest

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.serving.http.runs import CASES, CaseBook
from recbole_llara.utils.errors import UserError


def _record(row, correct, candidates=("a", "b"), target="a"):
    answer = target if correct else next(item for item in candidates if item != target)
    titles = [f"T{item}" for item in candidates]
    return {
        "row": row,
        "user": f"u{row}",
        "history": ["h"],
        "history_titles": ["Th"],
        "candidates": list(candidates),
        "candidate_titles": titles,
        "target": target,
        "target_title": f"T{target}",
        "answer_text": f"T{answer}",
        "answer": answer,
        "answer_title": f"T{answer}",
        "valid": True,
        "correct": correct,
        "scores": [float(number) for number in range(len(candidates))],
    }


@pytest.fixture
def make_book(tmp_path):
    def make(**runs):
        for name, records in runs.items():
            (tmp_path / name).mkdir()
            text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (tmp_path / name / CASES).write_text(text, encoding="utf-8")
        return CaseBook({name: tmp_path / name for name in runs})

    return make


def _rows(found):
    return [case["row"] for case in found["cases"]]


def test_filters_are_who_was_right(make_book):
    right = {"one": (0, 1, 2), "two": (1, 3)}
    book = make_book(**{name: [_record(row, row in rows) for row in range(5)] for name, rows in right.items()})
    assert _rows(book.find([], [], 0, 10)) == [0, 1, 2, 3, 4]
    assert _rows(book.find(["one"], ["two"], 0, 10)) == [0, 2]
    assert _rows(book.find(["one", "two"], [], 0, 10)) == [1]
    assert _rows(book.find([], ["one", "two"], 0, 10)) == [4]
    found = book.find(["one"], [], 1, 1)
    assert (_rows(found), found["count"], found["n"]) == ([1], 3, 5)
    assert found["cases"][0]["correct"] == {"one": True, "two": True}
    with pytest.raises(UserError, match=r"found 'three', expected one of one, two"):
        book.find(["three"], [], 0, 1)


def test_another_question_is_left_out(make_book):
    book = make_book(one=[_record(0, True), _record(1, True)], two=[_record(0, False, candidates=("a", "c")), _record(2, True)])
    assert _rows(book.find([], ["two"], 0, 10)) == []
    assert list(book.open(0)["answers"]) == ["one"]
    assert list(book.open(2)["answers"]) == ["two"]
    assert _rows(book.find([], [], 0, 10)) == [0, 1, 2]


def test_candidates_in_another_order_are_the_same_question(make_book):
    book = make_book(one=[_record(0, True)], two=[_record(0, False, candidates=("b", "a"))])
    scores = {candidate["item_id"]: candidate["scores"] for candidate in book.open(0)["candidates"]}
    assert scores == {"a": {"one": 0.0, "two": 1.0}, "b": {"one": 1.0, "two": 0.0}}


def test_an_opened_row_is_what_the_files_say(toy):
    book = CaseBook(toy.folders)
    records = {name: {one["row"]: one for one in read_records(folder / CASES)} for name, folder in toy.folders.items()}
    assert records["LLaRA"].keys() == records["SASRec"].keys()
    for row, record in records["LLaRA"].items():
        case = book.open(row)
        assert [candidate["item_id"] for candidate in case["candidates"]] == record["candidates"]
        assert [candidate["item_id"] for candidate in case["candidates"] if candidate["is_target"]] == [record["target"]]
        for name in records:
            of_run = dict(zip(records[name][row]["candidates"], records[name][row]["scores"], strict=True))
            assert {candidate["item_id"]: candidate["scores"][name] for candidate in case["candidates"]} == of_run
            assert case["answers"][name]["correct"] == records[name][row]["correct"]


def test_no_row_and_no_file_are_named(make_book, tmp_path):
    with pytest.raises(UserError, match="row: found 7"):
        make_book(one=[_record(0, True)]).open(7)
    assert CaseBook({"exported": tmp_path}).find([], [], 0, 1) == {"count": 0, "n": 0, "cases": []}
    (tmp_path / CASES).write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        CaseBook({"bad": tmp_path})
