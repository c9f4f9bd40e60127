"""The runs that a service has: loaded, named, and of the same items; and their test rows, with who was right on which."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llara.checkpoint.run_folder import read_result
from recbole_llara.serving.loaded import LoadedRun, load
from recbole_llara.utils.errors import UserError

CASES = "cases.jsonl"
_FACTS = ("rec_model", "representation", "n", "correct")  # of result.json, where that has them
_SHARED = ("row", "user", "history", "history_titles", "target", "target_title")  # of a row in cases.jsonl
_OWN = ("answer", "answer_title", "answer_text", "valid", "correct")


class ServedRun(NamedTuple):
    """One run: its system's name, numbered where several have the same, and the facts that the page tells."""

    name: str
    folder: Path
    run: LoadedRun
    facts: dict[str, Any]


def load_runs(folders: Sequence[str], **keys: Any) -> list[ServedRun]:
    """Load finished runs that know the same items; the first one's recommender proposes candidates.

    Raises:
        UserError: one cannot be loaded, is given twice, or knows other items than the first.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("compare: found the same run twice, expected others")
    loaded = [load(path, **keys) for path in paths]
    check_same_items(paths, loaded)
    systems, runs = [run.name for run in loaded], []
    for number, (path, run, system) in enumerate(zip(paths, loaded, systems, strict=True)):
        before = systems[:number].count(system)
        name, result = f"{system} {before + 1}" if before else system, read_result(path)
        facts = {"name": name, "model": run.config["model"], "folder": path.name, "is_llm": run.is_llm}
        facts["is_fused"] = run.fusion is not None
        runs.append(ServedRun(name, path, run, facts | {key: result.get(key) for key in _FACTS}))
    return runs


def check_same_items(paths: Sequence[Path], runs: Sequence[LoadedRun]) -> None:
    """Refuse runs of different items; the message names two of them."""
    for path, run in zip(paths[1:], runs[1:], strict=True):
        others = set(runs[0].names.ids).symmetric_difference(run.names.ids)
        if others:
            raise UserError(
                f"compare: {path} (dataset {run.config['dataset']}) and {paths[0]} (dataset {runs[0].config['dataset']}) do not "
                f"know the same items, {len(others)} differ, such as {min(others)!r}; expected runs of one dataset"
            )


class _Answered(NamedTuple):
    """A run's answer to a row."""

    start: int  # (bytes) where its line begins in cases.jsonl; what is opened is read from there
    asks: int  # a hash of the question
    correct: bool


class CaseBook:
    """The rows that runs answered, by the runs' names.

    A run without a file of cases, as an exported one, has answered none. A row of a run whose candidates differ from those of the
    first run that answered it is another question, and is left out.

    Raises:
        UserError: a run's cases cannot be read.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._files = {name: folder / CASES for name, folder in folders.items()}
        self._rows: dict[int, dict[str, _Answered]] = {}
        for name, path in self._files.items():
            start = 0
            if not path.is_file():
                continue
            try:
                with open(path, "rb") as file:
                    for line in file:
                        case = json.loads(line)
                        asks = hash((case["user"], case["target"], frozenset(case["candidates"])))
                        of_row = self._rows.setdefault(case["row"], {})
                        if all(other.asks == asks for other in of_row.values()):
                            of_row[name] = _Answered(start, asks, case["correct"])
                        start += len(line)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"run: {path} cannot be read ({error!r}), expected the {CASES} of a finished run") from error

    def find(self, right: Sequence[str], wrong: Sequence[str], offset: int, limit: int) -> dict[str, Any]:
        """Rows on which some runs are right and others are wrong; a run that did not answer a row is neither.

        Returns:
            ``count`` of all that fit, ``n`` of all rows, and ``cases``: row, user, target_title, correct by run; at most
            ``limit`` of them, from ``offset`` on.
        """
        for name in (*right, *wrong):
            if name not in self._files:
                raise UserError(f"run: found {name!r}, expected one of {', '.join(self._files)}")
        wanted = {(name, True) for name in right} | {(name, False) for name in wrong}
        correct = {row: {name: of.correct for name, of in self._rows[row].items()} for row in sorted(self._rows)}
        fits = [row for row, of_runs in correct.items() if wanted <= of_runs.items()]
        cases = []
        for row in fits[offset : offset + limit]:
            question = self._record(next(iter(self._rows[row])), row)
            cases.append({key: question[key] for key in ("row", "user", "target_title")} | {"correct": correct[row]})
        return {"count": len(fits), "n": len(self._rows), "cases": cases}

    def open(self, row: int) -> dict[str, Any]:
        """A row with all that was asked and answered.

        Returns:
            what ``cases.jsonl`` tells of the question; ``candidates``, each with item_id, title, is_target and its score
            by run; ``answers`` by run.
        """
        if row not in self._rows:
            raise UserError(f"row: found {row}, but no run answered such a row")
        records = {name: self._record(name, row) for name in self._rows[row]}
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

    def _record(self, name: str, row: int) -> dict[str, Any]:
        with open(self._files[name], "rb") as file:
            file.seek(self._rows[row][name].start)
            return json.loads(file.readline())
