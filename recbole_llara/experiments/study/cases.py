"""Case studies: test rows that some systems answer correctly and others do not (LLaRA fig. 5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_llara.experiments.study.definition import CasePattern
from recbole_llara.experiments.study.summary import Summary


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        question: its record in ``cases.jsonl``: history, candidates, target.
        answers: system -> its answer's title, or its text where it names no candidate.
        correct: the systems that are right.
    """

    question: Mapping[str, Any]
    answers: dict[str, str]
    correct: frozenset[str]


@dataclass(frozen=True)
class Cases:
    """Rows of one pattern.

    Args:
        pattern: what they have in common.
        count: of all such rows.
        n: of all test rows.
        shown: some of them, drawn by seed.
    """

    pattern: CasePattern
    count: int
    n: int
    shown: tuple[Case, ...]


def find_cases(summary: Summary, pattern: CasePattern, number: int = 2, seed: int = 0) -> Cases | None:
    """Rows that fit a pattern, in the first seed's answers.

    Args:
        summary: of one dataset.
        pattern: who is right and who is not.
        number: of rows to show, drawn at random: neither the best nor the worst of them.
        seed: of that draw.

    Returns:
        None where a named system failed.
    """
    names = pattern.right + pattern.wrong
    if any(summary.system(name) is None for name in names):
        return None
    records = {name: {case["row"]: case for case in summary.system(name).entries[0].cases()} for name in names}
    rows = sorted(records[names[0]])
    fits = [
        row
        for row in rows
        if all(records[name][row]["correct"] for name in pattern.right)
        and not any(records[name][row]["correct"] for name in pattern.wrong)
    ]
    drawn = np.random.default_rng(seed).permutation(len(fits))[:number]
    shown = tuple(_case(fits[index], records) for index in sorted(drawn))
    return Cases(pattern, len(fits), len(rows), shown)


def _case(row: int, records: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Case:
    answers = {name: of_system[row] for name, of_system in records.items()}
    question = next(iter(answers.values()))
    texts = {name: answer["answer_title"] or answer["answer_text"] or "" for name, answer in answers.items()}
    return Case(question, texts, frozenset(name for name, answer in answers.items() if answer["correct"]))
