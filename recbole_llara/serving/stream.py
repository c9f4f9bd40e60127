"""JSON lines: one user a line in, one answer a line out, a batch at a time, however many there are.

A byte order mark before a line is dropped. Half of a surrogate pair, which JSON can escape and UTF-8 cannot hold, is escaped
in the answer too.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TextIO

from recbole_llara.serving.loaded import LoadedRun, as_json
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.text import BYTE_ORDER_MARK, is_text

KEYS = frozenset({"user", "history", "candidates", "k", "retrieve_k"})
LONGEST_LINE = 1 << 20  # characters
BATCHES_AT_ONCE = 8  # read before they are answered, so that prompts of like length come together


def answer_lines(run: LoadedRun, lines: Iterable[str], out: TextIO, k: int = 5, retrieve_k: int | None = None) -> None:
    """Answer every line in its order; one that cannot be answered gets an error of its own.

    Args:
        lines: JSON objects with ``history``, and ``user``, ``candidates``, ``k`` or ``retrieve_k`` where wanted.
        out: gets a JSON object a line.
        k, retrieve_k: for lines that say nothing of them.
    """
    defaults = {"k": k, "retrieve_k": retrieve_k, "candidates": None}
    asked = (_parsed(line, defaults) for line in lines if line.strip())
    while batch := list(islice(asked, BATCHES_AT_ONCE * run.batch_size)):
        for answer in _answers(run, batch):
            text = json.dumps(answer, ensure_ascii=False)
            out.write((text if is_text(text) else json.dumps(answer)) + "\n")
        out.flush()


def _answers(run: LoadedRun, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers in the order of the questions; those that can be asked at once are."""
    answers = dict(enumerate(asked))
    groups: dict[tuple, list[int]] = {}
    for number, question in answers.items():
        if "error" not in question:
            length = None if question["candidates"] is None else len(question["candidates"])
            groups.setdefault((question["k"], question["retrieve_k"], length), []).append(number)
    for numbers in groups.values():
        answers.update(zip(numbers, _together(run, [asked[number] for number in numbers]), strict=True))
    return list(answers.values())


def _together(run: LoadedRun, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers to questions of one kind; where one of them is wrong, each by itself."""
    first = asked[0]
    candidates = None if first["candidates"] is None else [question["candidates"] for question in asked]
    try:
        found = run.recommend_batch([question["history"] for question in asked], first["k"], candidates, first["retrieve_k"])
    except UserError as error:
        if len(asked) == 1:
            return [{**_named(first), "error": str(error)}]
        return [answer for question in asked for answer in _together(run, [question])]
    return [{**_named(question), "recommendations": as_json(items)} for question, items in zip(asked, found, strict=True)]


def _parsed(line: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A line's question with defaults, or its error."""
    if len(line) > LONGEST_LINE:
        return {"error": f"line: found {len(line)} characters, expected at most {LONGEST_LINE}"}
    if not is_text(line):
        return {"error": f"line: found bytes that are no UTF-8 in {line[:60]!a}, expected UTF-8"}
    try:
        question = json.loads(line.lstrip(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        return {"error": f"line: found no JSON ({error}), expected an object with history"}
    if not isinstance(question, dict) or not isinstance(question.get("history"), list):
        return {"error": 'line: found no list history, expected an object such as {"history": ["Toy Story"]}'}
    unknown = sorted(question.keys() - KEYS)
    if unknown:
        return {**_named(question), "error": f"line: found {unknown[0]!r}, expected some of {', '.join(sorted(KEYS))}"}
    if not isinstance(question.get("candidates"), list | None):
        return {**_named(question), "error": "candidates: expected a list of titles or ids"}
    if any(not isinstance(question.get(key), int | None) for key in ("k", "retrieve_k")):
        return {**_named(question), "error": "k and retrieve_k: expected whole numbers"}
    given = {key: value for key, value in question.items() if value is not None}
    return {**defaults, **given}


def _named(question: Mapping[str, Any]) -> dict[str, Any]:
    return {"user": question["user"]} if "user" in question else {}
