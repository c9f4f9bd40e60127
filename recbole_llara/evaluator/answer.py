"""Answers to the selection task: the ways to answer, which candidate a text names, and what rows asked and got.

Answers are collected as tensors, a batch at a time, and spelt out only at the end.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any, Self, TypeVar

import numpy as np
import torch

from recbole_llara.utils.errors import UserError

INVALID_ITEM = 0
# How a written answer came out; those from "unmatched" on are invalid.
OUTCOMES = {
    "exact": "the text is a candidate's title",
    "unwrapped": "it names a candidate once its wrapping is taken off; messages of chat models alone",
    "unmatched": "it names no candidate, or several",
    "cut": "it names none and was cut off by the endpoint's limit of tokens",
    "empty": "there is no text, or nothing but reasoning",
    "filtered": "it names none and was cut off by the endpoint's filter of contents",
    "refused": "the endpoint, or the model in its own field, refused this prompt",
    "too_long": "the prompt does not fit into the model's context",
    "failed": "the endpoint gave no answer, after all tries",
}


@dataclass(frozen=True)
class CandidateAnswers:
    """What a model answered to B rows of C candidates."""

    items: torch.Tensor  # [B] int64, named by each row's answer; 0 (``[PAD]``) where it is invalid
    scores: torch.Tensor | None = (
        None  # [B, C] float, higher is better; None where the decoding names one item, ranking nothing
    )
    texts: list[str] | None = None  # B generated ones; None where the decoding writes none
    outcomes: list[str] | None = None  # of the texts, of ``OUTCOMES``

    def __post_init__(self) -> None:
        n_rows = self.items.shape[0]
        if self.items.dim() != 1:
            raise ValueError(f"items of shape {tuple(self.items.shape)}: expected [B]")
        if self.scores is not None and (self.scores.dim() != 2 or self.scores.shape[0] != n_rows):
            raise ValueError(f"scores of shape {tuple(self.scores.shape)} for {n_rows} rows: expected [B, C]")
        for name, told in (("texts", self.texts), ("outcomes", self.outcomes)):
            if told is not None and len(told) != n_rows:
                raise ValueError(f"{len(told)} {name} for {n_rows} rows: expected one each")

    def cpu(self) -> Self:
        """The same on the CPU."""
        return replace(self, **{name: value.cpu() for name, value in vars(self).items() if isinstance(value, torch.Tensor)})


@dataclass(frozen=True, kw_only=True)
class EvaluatedCases(CandidateAnswers):
    """Answers with what was asked, in the order of the data loader; int64, items and users by RecBole's internal ids."""

    rows: torch.Tensor  # [B] numbers within the split
    users: torch.Tensor  # [B]
    histories: torch.Tensor  # [B, L], 0 = padding
    candidates: torch.Tensor  # [B, C]
    targets: torch.Tensor  # [B]

    @property
    def correct(self) -> np.ndarray:
        """[B] bool, whether the answer is the target."""
        return (self.items == self.targets).numpy()

    @property
    def valid(self) -> np.ndarray:
        """[B] bool, whether the answer names a candidate."""
        return (self.items != INVALID_ITEM).numpy()

    @property
    def places(self) -> torch.Tensor:
        """[B] int64, where among its candidates each target stands."""
        return (self.candidates == self.targets[:, None]).int().argmax(1)

    @property
    def outcome_counts(self) -> dict[str, int] | None:
        """How many answers came out in which way, in the order of ``OUTCOMES``; None where nothing was written."""
        counts = Counter(self.outcomes)
        return None if self.outcomes is None else {outcome: counts[outcome] for outcome in OUTCOMES}

    def records(
        self, user_tokens: Sequence[str], item_tokens: Sequence[str], titles: Sequence[str], counts: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        """Spell the rows out for ``cases.jsonl``, in the order of their numbers.

        Args:
            user_tokens, item_tokens: external ids by internal ones.
            titles: of items by internal id.
            counts: [N] how many users took each item in training.
        """
        for index in self.rows.argsort().tolist():
            history = [item for item in self.histories[index].tolist() if item]
            candidates = self.candidates[index].tolist()
            target, answer = int(self.targets[index]), int(self.items[index])
            title = titles[answer] if answer else None
            yield {
                "row": int(self.rows[index]),
                "user": str(user_tokens[int(self.users[index])]),
                "history": [str(item_tokens[item]) for item in history],
                "history_titles": [titles[item] for item in history],
                "candidates": [str(item_tokens[item]) for item in candidates],
                "candidate_titles": [titles[item] for item in candidates],
                "target": str(item_tokens[target]),
                "target_title": titles[target],
                "target_users": int(counts[target]),
                "answer_text": title if self.texts is None else self.texts[index],
                "answer": str(item_tokens[answer]) if answer else None,
                "answer_title": title,
                "outcome": None if self.outcomes is None else self.outcomes[index],
                "valid": answer != INVALID_ITEM,
                "correct": answer == target,
                "scores": None if self.scores is None else [round(score, 6) for score in self.scores[index].float().tolist()],
            }


Answers = TypeVar("Answers", bound=CandidateAnswers)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers to consecutive rows, one after another; at least one part, all of one decoding."""

    def column(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        return None if values[0] is None else [entry for value in values for entry in value]

    return type(parts[0])(**{name: column([vars(part)[name] for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Decoding:
    """A way in which an LLM recommender answers, chosen by the key ``decoding``."""

    answer: Callable[[Any, Any], CandidateAnswers] | str  # a function of (model, ``Questions``), or where to import it
    ranks: bool = False  # whether answers have scores of all candidates; others name one item: only metrics at 1 are measured
    generates: bool = False  # whether the LLM must be able to write: this is tried before anything is trained

    @property
    def function(self) -> Callable[[Any, Any], CandidateAnswers]:
        """The function itself."""
        return resolve_name(self.answer) if isinstance(self.answer, str) else self.answer


DECODINGS: dict[str, Decoding] = {
    "score": Decoding("recbole_llara.model.answering:score", ranks=True),
    "constrained": Decoding("recbole_llara.model.answering:constrained"),
    "generate": Decoding("recbole_llara.model.answering:generate", generates=True),
}
_BUILT_IN = frozenset(DECODINGS)


def register_decoding(
    name: str, answer: Callable[[Any, Any], CandidateAnswers], ranks: bool = False, generates: bool = False
) -> None:
    """Add a ``Decoding`` to the table, so that ``decoding: name`` chooses it; one of your own may be registered again.

    Raises:
        UserError: a decoding of this package has this name.
    """
    if name in _BUILT_IN:
        raise UserError(f"decoding: {name!r} is built in; register yours under another name")
    DECODINGS[name] = Decoding(answer, ranks, generates)


def names_one_item(decoding: Any) -> bool:
    """Whether the answers of a decoding of this name rank nothing; other values than names are refused where the key is read."""
    return isinstance(decoding, str) and decoding in DECODINGS and not DECODINGS[decoding].ranks


def normalise_title(text: str) -> str:
    """The form in which titles are compared: Unicode NFC, without white space at the ends; case and all else count."""
    return unicodedata.normalize("NFC", text).strip()


def match_titles(texts: list[str], candidate_titles: list[list[str]], candidate_items: torch.Tensor) -> torch.Tensor:
    """Find the candidate that each generated text names.

    A text is valid if it equals, after ``normalise_title``, the title of exactly one of its row's candidates.
    It is never searched for titles inside it: "M" is a film, and part of most others. Where two candidates have one
    title, naming it is invalid. For answers by number, the titles are the texts of the numbers.

    Args:
        texts: B, without special tokens.
        candidate_titles: B lists of C.
        candidate_items: [B, C] int64 in the same order.

    Returns:
        [B] int64 items, 0 where the answer is invalid.

    Raises:
        ValueError: the numbers of texts, title lists and candidates disagree.
    """
    named = []
    for text, titles, items in zip(map(normalise_title, texts), candidate_titles, candidate_items.tolist(), strict=True):
        found = [item for title, item in zip(titles, items, strict=True) if text and normalise_title(title) == text]
        named.append(found[0] if len(found) == 1 else INVALID_ITEM)
    return torch.tensor(named, dtype=torch.int64, device=candidate_items.device)
