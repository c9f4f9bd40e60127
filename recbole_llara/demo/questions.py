"""What visitors ask, and how a batch of it is answered: the same candidates before every run, each run called once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from recbole_llara.demo.prompt_view import prompt_views
from recbole_llara.demo.runs import DemoRun
from recbole_llara.serving.item_names import ID_PREFIX
from recbole_llara.serving.loaded import LoadedRun, as_json, in_own_order
from recbole_llara.utils.errors import UserError


@dataclass(frozen=True)
class Question:
    """One visitor's.

    Args:
        kind: a key of ``KINDS``.
        runs: names of those that are asked.
        history: ids in order of time.
        candidates: ids; None = what the first run's recommender proposes.
        k: (int, items) at most so many are told.
    """

    kind: str
    runs: tuple[str, ...]
    history: tuple[str, ...]
    candidates: tuple[str, ...] | None
    k: int


Answer = dict[str, Any] | UserError


class Answerer:
    """Answers batches of questions by at least one run; the first proposes candidates."""

    def __init__(self, runs: Sequence[DemoRun]) -> None:
        self.runs = {run.name: run.run for run in runs}
        self._first = runs[0].run

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer for each question; a mistake in one is its own answer and no other's."""
        answers: dict[int, Answer] = {}
        groups: dict[tuple, list[int]] = {}
        asked = self._with_candidates(questions)
        for number, question in enumerate(asked):
            if isinstance(question, UserError):
                answers[number] = question
            else:
                groups.setdefault((question.kind, question.runs, question.k, len(question.candidates)), []).append(number)
        for numbers in groups.values():
            answers |= zip(numbers, self._together([asked[number] for number in numbers]), strict=True)
        return [answers[number] for number in range(len(questions))]

    def _with_candidates(self, questions: Sequence[Question]) -> list[Question | UserError]:
        """The questions, each with candidates: proposed all at once where none are given."""
        asked: list[Question | UserError] = list(questions)
        bare: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            if question.candidates is None:
                try:
                    bare[number] = _items(self._first, question.history)
                except UserError as error:
                    asked[number] = error
        if bare:
            count = min(self._first.config["candidate_num"], self._first.retriever.n_known - 1)
            proposed = in_own_order(self._first.retriever.propose(list(bare.values()), count)).tolist()
            for number, items in zip(bare, proposed, strict=True):
                ids = tuple(self._first.names.ids[item] for item in items if item)
                asked[number] = replace(questions[number], candidates=ids) if ids else UserError("history: it holds every item")
        return asked

    def _together(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions of one group; where one of them is wrong, each by itself."""
        try:
            of_runs = [KINDS[questions[0].kind](self.runs[name], questions) for name in questions[0].runs]
        except UserError as error:
            return [error] if len(questions) == 1 else [answer for one in questions for answer in self._together([one])]
        return [
            {"candidates": list(question.candidates), "answers": dict(zip(question.runs, of_question, strict=True))}
            for question, of_question in zip(questions, zip(*of_runs, strict=True), strict=True)
        ]


def ranked(run: LoadedRun, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The best of the candidates under a run, and the prompts that its LLM read.

    Returns:
        for each question ``items``, each with its ``share``: the softmax of the scores over all candidates; and ``prompt``.
    """
    candidates = [_named(question.candidates) for question in questions]
    found = run.recommend_batch([_named(question.history) for question in questions], len(candidates[0]), candidates)
    scores = torch.tensor([[item.score for item in items] for items in found], dtype=torch.float64)  # [B, C]
    lists = [
        [{**item, "share": share} for item, share in zip(as_json(items), shares, strict=True)][: questions[0].k]
        for items, shares in zip(found, scores.softmax(1).tolist(), strict=True)
    ]
    prompts: Sequence[dict[str, Any] | None] = [None] * len(questions)
    if run.is_llm:
        prompts = prompt_views(run.model.tokenizer, run.prompts(*_internal(run, questions)), run.names)
    return [{"items": items, "prompt": prompt} for items, prompt in zip(lists, prompts, strict=True)]


def written(run: LoadedRun, questions: Sequence[Question]) -> list[dict[str, Any] | None]:
    """What a run's LLM writes when it may write anything; None of runs without one.

    Returns:
        for each question ``text``, ``valid``, and the ``item_id`` and ``title`` it names.
    """
    if not run.is_llm:
        return [None] * len(questions)
    answers = run.write(*_internal(run, questions))
    return [
        {
            "text": text,
            "valid": item != 0,
            "item_id": run.names.ids[item] if item else None,
            "title": run.names.titles[item] if item else None,
        }
        for text, item in zip(answers.texts, answers.items.tolist(), strict=True)
    ]


KINDS: Mapping[str, Callable[[LoadedRun, Sequence[Question]], list[Any]]] = {"ranked": ranked, "written": written}


def _named(ids: Sequence[str]) -> list[str]:
    return [ID_PREFIX + item for item in ids]


def _items(run: LoadedRun, ids: Sequence[str]) -> list[int]:
    return [run.names.find(name) for name in _named(ids)]


def _internal(run: LoadedRun, questions: Sequence[Question]) -> tuple[list[list[int]], torch.Tensor]:
    """Histories and candidates [B, C] by a run's own numbers."""
    histories = [_items(run, question.history) for question in questions]
    return histories, torch.tensor([_items(run, question.candidates) for question in questions])
