"""The sentences around the items: templates per domain, read from ``properties/prompt/<domain>.yaml`` or the user's ``prompt_file``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.hashing import facts_digest, numbers, row_keys

HISTORY = "{history}"
CANDIDATES = "{candidates}"
CANDIDATE_NUM = "{candidate_num}"
LISTS = (HISTORY, CANDIDATES)
SEPARATOR = ","
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
            UserError: a mark is missing, repeated or unknown, or the text begins or ends with a list.
        """
        unknown = [mark for mark in re.findall(r"\{\w*\}", text) if mark not in (HISTORY, CANDIDATES, CANDIDATE_NUM)]
        if unknown:
            raise UserError(
                f"prompt template {text!r} holds {unknown[0]}; {nearest(unknown[0], (HISTORY, CANDIDATES, CANDIDATE_NUM))}"
            )
        for mark in LISTS:
            if text.count(mark) != 1:
                raise UserError(f"prompt template {text!r} holds {mark} {text.count(mark)} times, expected once")
        pieces = [piece for piece in _SLOT.split(text) if piece]
        if pieces[0] in LISTS or pieces[-1] in LISTS:
            raise UserError(f"prompt template {text!r} must begin and end with text, not with an item list")
        segments = [
            piece if piece in LISTS else piece.replace(CANDIDATE_NUM, str(candidate_num)).rstrip(" ") for piece in pieces
        ]
        return cls(tuple(segment for segment in segments if segment))

    def layout(self) -> list[str]:
        """The segments; what follows a list at once, as a full stop does, is one of its own, even if it is empty."""
        layout: list[str] = []
        for segment in self.segments:
            if layout and layout[-1] in LISTS:
                mark, space, rest = segment.partition(" ")
                layout += [mark, space + rest]
            else:
                layout.append(segment)
        return layout

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """The prompt as text, for models that take no tokens of ours.

        Args:
            history, candidates: the items' texts.
        """
        lists = {HISTORY: " " + ", ".join(history), CANDIDATES: " " + ", ".join(candidates)}
        return "".join(lists.get(segment, segment) for segment in self.segments)


def marks_of(layouts: Sequence[Sequence[str]]) -> list[str]:
    """What stands behind items in prompts of these layouts: the separator, and what follows their lists."""
    behind = [mark for layout in layouts for text, mark in pairwise(layout) if text in LISTS]
    return list(dict.fromkeys([SEPARATOR, *behind]))


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


def template_texts(domain: str, prompt_file: str | None = None) -> list[str]:
    """The texts of a domain's templates, or of the user's own.

    Args:
        domain: a file of ``properties/prompt``: movie, game, artist or item.
        prompt_file: a YAML file of the same form, taken in its place; None = the domain's.

    Raises:
        UserError: no such domain or file, or a file of another form.
    """
    folder = PROPERTIES / "prompt"
    path = Path(prompt_file).expanduser() if prompt_file is not None else folder / f"{domain}.yaml"
    if prompt_file is None and not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"domain: found {domain!r}, expected one of {known}")
    if not path.is_file():
        raise UserError(f"prompt_file: found no file {prompt_file!r}, expected a YAML file of templates")
    content = read_yaml(path)
    texts = content.get("templates")
    if (
        content.keys() != {"templates"}
        or not isinstance(texts, list)
        or not texts
        or not all(isinstance(t, str) for t in texts)
    ):
        raise UserError(
            f"prompt_file: {path} holds the keys {', '.join(content) or 'none'}, expected templates alone: a list of at least one text"
        )
    return texts


def load_templates(domain: str, candidate_num: int, prompt_file: str | None = None) -> list[PromptTemplate]:
    """The templates of a run.

    Args:
        domain: a file of ``properties/prompt``: movie, game, artist or item.
        candidate_num: C.
        prompt_file: templates of the user's own in the place of the domain's.

    Raises:
        UserError: no such domain or file, or a template without its two marks.
    """
    templates = []
    for number, text in enumerate(template_texts(domain, prompt_file), start=1):
        try:
            templates.append(PromptTemplate.parse(text, candidate_num))
        except UserError as error:
            raise UserError(f"prompt_file: {prompt_file}, template {number}: {error}" if prompt_file else str(error)) from error
    return templates


def prompts_digest(domain: str, prompt_file: str | None = None) -> str:
    """Digest of the templates' texts, whatever file they stand in."""
    return facts_digest(template_texts(domain, prompt_file))
