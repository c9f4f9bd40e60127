"""What the page asks of several runs side by side, about the same candidates; each run is called once for questions of one kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.representation import SLOT_PARTS
from recbole_llara.prompt.tokens import ANCHORS, spell, tokenise
from recbole_llara.serving.catalogue import ID_PREFIX, ItemNames
from recbole_llara.serving.explain import explain
from recbole_llara.serving.http.runs import ServedRun
from recbole_llara.serving.loaded import LoadedRun, answer_alike, as_json
from recbole_llara.utils.errors import UserError


@dataclass(frozen=True)
class Question:
    """One visitor's, to several runs."""

    kind: str  # a key of KINDS
    runs: tuple[str, ...]  # names of those that are asked
    history: list[str]  # items in order of time
    candidates: list[str] | None  # None = what the first run's recommender proposes
    k: int  # (items) at most so many are told
    item: str | None = None  # what is explained; None = the run's own first choice


class Comparison:
    """Answers batches of questions by at least one run; the first proposes candidates."""

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        self.runs = {run.name: run.run for run in runs}
        self._first = runs[0].run

    def answer(self, questions: Sequence[Question]) -> list[dict[str, Any] | UserError]:
        """An answer for each question; a mistake in one is its own answer and no other's."""
        asked = answer_alike(questions, lambda one: one.candidates is None, self._with_candidates)
        return answer_alike(asked, lambda one: (one.kind, one.runs, one.k, len(one.candidates)), self._answered)

    def _with_candidates(self, questions: Sequence[Question]) -> Sequence[Question]:
        """Questions that all have candidates or all have none; these get those that are proposed."""
        if questions[0].candidates is not None:
            return questions
        run = self._first
        count = min(run.config["candidate_num"], run.retriever.n_known - 1)
        rows = [run.items("history", question.history) for question in questions]
        listed = run.listed(rows, run.retriever.propose(rows, count)).tolist()
        lists = [[ID_PREFIX + run.names.ids[item] for item in row if item] for row in listed]
        if not all(lists):
            raise UserError("history: it holds every item")
        return [replace(question, candidates=items) for question, items in zip(questions, lists, strict=True)]

    def _answered(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Answers to questions of one kind to the same runs."""
        names = questions[0].runs
        of_runs = [KINDS[questions[0].kind](self.runs[name], questions) for name in names]
        candidates = [[item.removeprefix(ID_PREFIX) for item in question.candidates] for question in questions]
        return [
            {"candidates": items, "answers": dict(zip(names, answers, strict=True))}
            for items, *answers in zip(candidates, *of_runs, strict=True)
        ]


def ranked(run: LoadedRun, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The best of the candidates under a run, and the prompts that its LLM read.

    Returns:
        for each question ``items``, each with its ``share``: the softmax of the scores over all candidates; and ``prompt``.
    """
    candidates = [question.candidates for question in questions]
    found = run.recommend_batch([question.history for question in questions], len(candidates[0]), candidates)
    scores = torch.tensor([[item.score for item in items] for items in found], dtype=torch.float64)  # [B, C]
    lists = [
        [{**item, "share": share} for item, share in zip(as_json(items), shares, strict=True)][: questions[0].k]
        for items, shares in zip(found, scores.softmax(1).tolist(), strict=True)
    ]
    prompts = [None] * len(questions)
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
        {"text": text, "valid": item != 0, **run.names.told(item)}
        for text, item in zip(answers.texts, answers.items.tolist(), strict=True)
    ]


def explained(run: LoadedRun, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Where one item of a run's answer comes from: for each question an ``Explanation`` as JSON has it."""
    return [explain(run, one.history, one.item, one.candidates, one.k).as_json() for one in questions]


Kind = Callable[[LoadedRun, Sequence[Question]], list[Any]]
KINDS: dict[str, Kind] = {"ranked": ranked, "written": written, "explained": explained}


def _internal(run: LoadedRun, questions: Sequence[Question]) -> tuple[list[list[int]], torch.Tensor]:
    """Histories and candidates [B, C] by a run's own numbers."""
    histories = [run.items("history", question.history) for question in questions]
    return histories, torch.tensor([run.items("candidates", question.candidates) for question in questions])


def prompt_views(tokenizer: PreTrainedTokenizerBase, prompts: EncodedPrompts, names: ItemNames) -> list[dict[str, Any]]:
    """Prompts of B rows as people read them, by the tokenizer that made them: texts, and marks where vectors stand.

    Returns:
        B objects: ``tokens``, how many there are, slots too; ``segments``, in order, each ``{"text": ...}`` or
        ``{"part": ..., "item_id": ..., "title": ...}``, the last two None where a slot is the same for all items.
    """
    slots = (prompts.slot_rows, prompts.slot_columns, prompts.slot_parts, prompts.slot_items)
    marks = {
        (row, column): {"part": SLOT_PARTS[part].value, **names.told(item)}
        for row, column, part, item in zip(*(column.tolist() for column in slots), strict=True)
    }
    anchor = tokenise(tokenizer, [ANCHORS[False]])[0]
    views = []
    for row, (ids, is_token) in enumerate(zip(prompts.input_ids.tolist(), prompts.attention_mask.tolist(), strict=True)):
        segments: list[dict[str, Any]] = []
        for column, token in enumerate(ids):
            if (row, column) in marks:
                segments.append(marks[row, column])
            elif is_token[column]:
                if not segments or "text" not in segments[-1]:
                    segments.append({"text": []})
                segments[-1]["text"].append(token)
        # Behind the anchor, where a tokenizer keeps the space that a text begins with.
        texts = [segment for segment in segments if "text" in segment]
        before, *spelt = spell(tokenizer, [anchor, *([*anchor, *segment["text"]] for segment in texts)])
        for segment, text in zip(texts, spelt, strict=True):
            segment["text"] = text.removeprefix(before)
        views.append({"tokens": sum(is_token), "segments": segments})
    return views
