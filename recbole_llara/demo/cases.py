"""The test rows of all runs: who was right on which, and what was asked and answered there.

Of each row only its place in ``cases.jsonl`` is kept; what is opened is read from there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.utils.errors import UserError

CASES = "cases.jsonl"
_SHARED = ("row", "user", "history", "history_titles", "target", "target_title")
_OWN = ("answer", "answer_title", "answer_text", "valid", "correct")


@dataclass(frozen=True)
class _Answered:
    """A run's answer to a row: where its line begins (bytes), what it asks, and whether it is right."""

    start: int
    asks: int
    correct: bool


class CaseBook:
    """The rows that runs answered.

    A row of a run whose candidates differ from those of the first run that answered it is another question, and is
    left out.

    Args:
        folders: of the runs, by name.

    Raises:
        UserError: a run's cases are missing or cannot be read.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._files = {name: folder / CASES for name, folder in folders.items()}
        self._answered: dict[int, dict[str, _Answered]] = {}
        for name, path in self._files.items():
            for row, answered in _read(path):
                of_row = self._answered.setdefault(row, {})
                if all(other.asks == answered.asks for other in of_row.values()):
                    of_row[name] = answered
        self._rows = sorted(self._answered)

    def find(self, right: Sequence[str], wrong: Sequence[str], offset: int, limit: int) -> dict[str, Any]:
        """Rows on which some runs are right and others are wrong; a run that did not answer a row is neither.

        Returns:
            ``count`` of all that fit, ``n`` of all rows, and ``cases``: row, user, target_title, correct by run; at most
            ``limit`` of them, from ``offset`` on.

        Raises:
            UserError: a run has none of these names.
        """
        wanted = {(self._known(name), True) for name in right} | {(self._known(name), False) for name in wrong}
        fits = [row for row in self._rows if wanted <= {(name, of.correct) for name, of in self._answered[row].items()}]
        return {"count": len(fits), "n": len(self._rows), "cases": [self._line(row) for row in fits[offset : offset + limit]]}

    def open(self, row: int) -> dict[str, Any]:
        """A row with all that was asked and answered.

        Returns:
            what ``cases.jsonl`` tells of the question; ``candidates``, each with item_id, title, is_target and its score
            by run; ``answers`` by run.

        Raises:
            UserError: no such row.
        """
        if row not in self._answered:
            raise UserError(f"row: found {row}, but no run answered such a row")
        records = {name: self._record(name, row) for name in self._answered[row]}
        question = next(iter(records.values()))
        scores = {
            name: dict(zip(record["candidates"], record["scores"], strict=True))
            for name, record in records.items()
            if record["scores"] is not None
        }
        candidates = [
            {
                "item_id": item,
                "title": title,
                "is_target": item == question["target"],
                "scores": {name: of_run[item] for name, of_run in scores.items()},
            }
            for item, title in zip(question["candidates"], question["candidate_titles"], strict=True)
        ]
        answers = {name: {key: record[key] for key in _OWN} for name, record in records.items()}
        return {**{key: question[key] for key in _SHARED}, "candidates": candidates, "answers": answers}

    def _line(self, row: int) -> dict[str, Any]:
        of_row = self._answered[row]
        question = self._record(next(iter(of_row)), row)
        told = {key: question[key] for key in ("row", "user", "target_title")}
        return {**told, "correct": {name: answered.correct for name, answered in of_row.items()}}

    def _record(self, name: str, row: int) -> dict[str, Any]:
        with open(self._files[name], "rb") as file:
            file.seek(self._answered[row][name].start)
            return json.loads(file.readline())

    def _known(self, name: str) -> str:
        if name not in self._files:
            raise UserError(f"run: found {name!r}, expected one of {', '.join(self._files)}")
        return name


def _read(path: Path) -> Iterator[tuple[int, _Answered]]:
    try:
        with open(path, "rb") as file:
            start = 0
            for line in file:
                record = json.loads(line)
                asks = hash((record["user"], record["target"], frozenset(record["candidates"])))
                yield record["row"], _Answered(start, asks, record["correct"])
                start += len(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run: {path} cannot be read ({error!r}), expected the {CASES} of a finished run") from error
