"""Answers to the selection task: the ways to answer, which candidate is named, and how a generated text names one."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

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
    """What a model answered to B rows of C candidates.

    Args:
        items: [B] int64 the item named by each row's answer, 0 (``[PAD]``) when the answer is invalid.
        scores: [B, C] float, higher is better, in the order of the row's candidates; None when the
            decoding names one item without ranking the others.
        texts: B generated texts; None when the decoding writes none.
        outcomes: of each text, one of ``OUTCOMES``; None when the decoding writes none.

    Raises:
        ValueError: the parts disagree on the number of rows.
    """

    items: torch.Tensor
    scores: torch.Tensor | None = None
    texts: list[str] | None = None
    outcomes: list[str] | None = None

    def __post_init__(self) -> None:
        n_rows = self.items.shape[0]
        if self.items.dim() != 1:
            raise ValueError(f"items of shape {tuple(self.items.shape)}: expected [B]")
        if self.scores is not None and (self.scores.dim() != 2 or self.scores.shape[0] != n_rows):
            raise ValueError(f"scores of shape {tuple(self.scores.shape)} for {n_rows} rows: expected [B, C]")
        for name, told in (("texts", self.texts), ("outcomes", self.outcomes)):
            if told is not None and len(told) != n_rows:
                raise ValueError(f"{len(told)} {name} for {n_rows} rows: expected one each")

    def cpu(self) -> "CandidateAnswers":
        """The same on the CPU."""
        return replace(self, items=self.items.cpu(), scores=None if self.scores is None else self.scores.cpu())


def joined(parts: Sequence[CandidateAnswers]) -> CandidateAnswers:
    """The answers to consecutive rows, one after another.

    Args:
        parts: at least one, all of one decoding.
    """
    first = parts[0]
    return CandidateAnswers(
        items=torch.cat([part.items for part in parts]),
        scores=None if first.scores is None else torch.cat([part.scores for part in parts]),
        texts=None if first.texts is None else [text for part in parts for text in part.texts],
        outcomes=None if first.outcomes is None else [outcome for part in parts for outcome in part.outcomes],
    )


@dataclass(frozen=True)
class Decoding:
    """A way in which an LLM recommender answers, chosen by the key ``decoding``.

    Args:
        answer: a function of (model, ``model.answering.Questions``) that gives ``CandidateAnswers``, or where to import it.
        ranks: whether its answers have scores of all candidates. Others name one item, so only metrics at 1 are measured.
        generates: whether the LLM must be able to write: this is tried before anything is trained.
    """

    answer: Callable[[Any, Any], CandidateAnswers] | str
    ranks: bool = False
    generates: bool = False

    @property
    def function(self) -> Callable[[Any, Any], CandidateAnswers]:
        """The function itself."""
        if not isinstance(self.answer, str):
            return self.answer
        module, _, name = self.answer.partition(":")
        return getattr(import_module(module), name)


DECODINGS: dict[str, Decoding] = {
    "score": Decoding("recbole_llara.model.answering:score", ranks=True),
    "constrained": Decoding("recbole_llara.model.answering:constrained"),
    "generate": Decoding("recbole_llara.model.answering:generate", generates=True),
}
_BUILT_IN = frozenset(DECODINGS)


def register_decoding(
    name: str, answer: Callable[[Any, Any], CandidateAnswers], ranks: bool = False, generates: bool = False
) -> None:
    """Add a decoding to the table, so that ``decoding: name`` chooses it; one of your own may be registered again.

    Args:
        name: of the decoding.
        answer, ranks, generates: see ``Decoding``.

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
        texts: B generated texts, without special tokens.
        candidate_titles: B lists of C titles.
        candidate_items: [B, C] int64 item ids in the same order.

    Returns:
        [B] int64 item ids, 0 where the answer is invalid.

    Raises:
        ValueError: the numbers of texts, title lists and candidates disagree.
    """
    n_rows, n_candidates = candidate_items.shape
    if len(texts) != n_rows or len(candidate_titles) != n_rows:
        raise ValueError(f"{len(texts)} texts and {len(candidate_titles)} title lists for {n_rows} rows: expected one each")
    widths = {len(titles) for titles in candidate_titles}
    if widths - {n_candidates}:
        raise ValueError(f"title lists of lengths {sorted(widths)} for {n_candidates} candidates: expected one title each")
    answers = [normalise_title(text) for text in texts]
    matches = torch.tensor(
        [
            [answer != "" and normalise_title(title) == answer for title in titles]
            for answer, titles in zip(answers, candidate_titles, strict=True)
        ],
        dtype=torch.bool,
        device=candidate_items.device,
    ).reshape(n_rows, n_candidates)  # [B, C]
    named = torch.where(matches, candidate_items, INVALID_ITEM).sum(1)  # [B] the item where there is exactly one
    return torch.where(matches.sum(1) == 1, named, INVALID_ITEM)
