"""The sentences around the items: templates per domain, read from ``properties/prompt/<domain>.yaml``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from recbole_llara.config.properties import PROPERTIES
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import numbers, row_keys

HISTORY = "{history}"
CANDIDATES = "{candidates}"
_SLOT = re.compile(r"(\{history\}|\{candidates\})")


@dataclass(frozen=True)
class PromptTemplate:
    """A template cut at its item lists.

    Args:
        segments: texts and the two marks ``HISTORY`` and ``CANDIDATES``, in order. A text before a
            list ends without a space, since every item's text begins with one.
    """

    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, candidate_num: int) -> "PromptTemplate":
        """Cut a template's text.

        Args:
            text: holds ``{history}`` and ``{candidates}`` once each, optionally ``{candidate_num}``.
            candidate_num: C, what ``{candidate_num}`` becomes.

        Raises:
            UserError: a mark is missing or repeated, the history comes last, or the text ends in a list.
        """
        for mark in (HISTORY, CANDIDATES):
            if text.count(mark) != 1:
                raise UserError(f"prompt template {text!r} holds {mark} {text.count(mark)} times, expected once")
        pieces = [piece for piece in _SLOT.split(text) if piece]
        if pieces[0] in (HISTORY, CANDIDATES) or pieces[-1] in (HISTORY, CANDIDATES):
            raise UserError(f"prompt template {text!r} must begin and end with text, not with an item list")
        segments = [
            piece if piece in (HISTORY, CANDIDATES) else piece.replace("{candidate_num}", str(candidate_num)).rstrip(" ")
            for piece in pieces
        ]
        return cls(tuple(segment for segment in segments if segment))

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The prompt as text, for models that take no tokens of ours.

        Args:
            history, candidates: the items' texts.
        """
        lists = {HISTORY: " " + ", ".join(history), CANDIDATES: " " + ", ".join(candidates)}
        return "".join(lists.get(segment, segment) for segment in self.segments)


def draw_templates(seed: int, purpose: str, epoch: int, rows: np.ndarray, count: int) -> np.ndarray:
    """Which template each row uses, drawn by (seed, purpose, epoch, row).

    Args:
        rows: [B] row numbers.
        count: number of templates.

    Returns:
        [B] int64
    """
    draws = numbers(row_keys(seed, f"template/{purpose}", epoch, rows), np.zeros(1, np.int64))
    return (draws % np.uint64(count)).astype(np.int64)


def load_templates(domain: str, candidate_num: int, folder: Path = PROPERTIES / "prompt") -> list[PromptTemplate]:
    """Read a domain's templates.

    Args:
        domain: a file of ``folder``: movie, game, artist or item.
        candidate_num: C.

    Raises:
        UserError: no such domain, or a template without its two marks.
    """
    path = Path(folder) / f"{domain}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in Path(folder).glob("*.yaml")))
        raise UserError(f"domain: found {domain!r}, expected one of {known}")
    texts = yaml.safe_load(path.read_text(encoding="utf-8-sig"))["templates"]
    return [PromptTemplate.parse(text, candidate_num) for text in texts]
