"""How an item stands in a prompt: one table of representations (LLaRA eq. 4-6, fig. 4; RSLLM sec. 4.1)."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Self


class Part(Enum):
    """One piece of an item's representation."""

    TITLE = "title"  # the title's tokens
    INDEX = "index"  # the item's number, as text
    LETTER = "letter"  # the letter that marks a candidate in its row, before what identifies it
    ITEM_EMBEDDING = "item_embedding"  # one slot: the projected recommender embedding
    PLACEHOLDER = "placeholder"  # one slot: the placeholder token [PH] of the text-only task
    DESCRIPTION = "description"  # one slot: the description token [DSR], before what identifies the item
    ITEM_ID = "item_id"  # one slot: the item's own token [IIDn]
    USER = "user_token"  # one slot behind the history: what the recommender made of it
    SCORE = "recommender_score"  # one slot beside a candidate: how the recommender ranks it


# Parts that are vectors, not tokens of the LLM's vocabulary; a slot's part is told by its place in here.
SLOT_PARTS = (Part.PLACEHOLDER, Part.ITEM_EMBEDDING, Part.DESCRIPTION, Part.ITEM_ID, Part.USER, Part.SCORE)
ITEM_SLOT_PARTS = (Part.ITEM_EMBEDDING, Part.ITEM_ID, Part.SCORE)  # those that differ from item to item
_TELLING = frozenset({Part.TITLE, Part.INDEX, Part.ITEM_EMBEDDING, Part.ITEM_ID})  # those by which items are told apart


@dataclass(frozen=True)
class Representation:
    """An item's representation in history and candidates, and what the model answers with.

    Args:
        name: the key of ``REPRESENTATIONS``.
        parts: the pieces in order.
        answer: ``Part.TITLE``, ``Part.INDEX`` or ``Part.LETTER``, the text that names an item in the answer.
        has_user_token: whether ``Part.USER`` stands behind the history.
        has_score_tokens: whether ``Part.SCORE`` stands behind each candidate.
        in_recommender_order: whether candidates are listed from the recommender's best to its worst.
        history_parts: those of ``parts`` that stand in the history; None = all.
    """

    name: str
    parts: tuple[Part, ...]
    answer: Part = Part.TITLE
    has_user_token: bool = False
    has_score_tokens: bool = False
    in_recommender_order: bool = False
    history_parts: tuple[Part, ...] | None = None

    @property
    def in_history(self) -> tuple[Part, ...]:
        """The pieces of an item in the history."""
        return self.parts if self.history_parts is None else self.history_parts

    @property
    def in_candidates(self) -> tuple[Part, ...]:
        """The pieces of an item among the candidates."""
        return (Part.LETTER,) * (self.answer is Part.LETTER) + self.parts + (Part.SCORE,) * self.has_score_tokens

    @property
    def conclusions(self) -> tuple[Part, ...]:
        """The parts that tell what the recommender concluded."""
        return (Part.USER,) * self.has_user_token + (Part.SCORE,) * self.has_score_tokens

    @property
    def tells_conclusions(self) -> bool:
        """Whether a prompt tells, by a part or by its order, what the recommender concluded."""
        return self.in_recommender_order or bool(self.conclusions)

    @property
    def reads_recommender(self) -> bool:
        """Whether a trained recommender has a say in a prompt."""
        return self.tells_conclusions or self.has_item_embedding

    @property
    def shown(self) -> tuple[Part, ...]:
        """Every part that its prompts show."""
        return (*self.parts, *self.conclusions)

    @property
    def has_slot(self) -> bool:
        """Whether a prompt holds a slot that is filled with a vector instead of a token's embedding."""
        return any(part in SLOT_PARTS for part in self.shown)

    @property
    def texts(self) -> frozenset[Part]:
        """The parts that are words, in the prompt or in the answer."""
        return frozenset({*self.parts, self.answer}.difference(SLOT_PARTS))

    @property
    def has_item_embedding(self) -> bool:
        """Whether the recommender's embedding reaches the prompt."""
        return Part.ITEM_EMBEDDING in self.parts

    def without_recommender(self) -> Self | None:
        """The same prompt less all that a recommender has a say in: ``hybrid`` becomes ``text_only``.

        [PH] stands in place of every behavioural token, in history and candidates, as in the curriculum's easy task (LLaRA fig. 3);
        what the recommender concluded is left out, and its order. None where there is nothing of it, or nothing else tells items
        apart.
        """
        parts = tuple(Part.PLACEHOLDER if part is Part.ITEM_EMBEDDING else part for part in self.parts)
        if not self.reads_recommender or _TELLING.isdisjoint(parts):
            return None
        return replace(self, parts=parts, has_user_token=False, has_score_tokens=False, in_recommender_order=False)

    def without_history_titles(self) -> Self | None:
        """The same prompt less the titles of the history, whose items stand by their vectors alone; candidates keep their titles.

        None where the history has no titles, or nothing else tells its items apart.
        """
        parts = tuple(part for part in self.in_history if part is not Part.TITLE)
        is_told = Part.TITLE in self.in_history and not _TELLING.isdisjoint(parts)
        return replace(self, history_parts=parts) if is_told else None


REPRESENTATIONS: dict[str, Representation] = {
    representation.name: representation
    for representation in (
        Representation("numerical", (Part.INDEX,), answer=Part.INDEX),
        Representation("behavioural", (Part.ITEM_EMBEDDING,)),
        Representation("textual", (Part.TITLE,)),
        Representation("hybrid", (Part.TITLE, Part.ITEM_EMBEDDING)),
        # The easy task of the curriculum: the hybrid prompt with [PH] in every slot (LLaRA fig. 3).
        Representation("text_only", (Part.TITLE, Part.PLACEHOLDER)),
        # RSLLM's prompts, example 4.1 and example 4.2 with eq. 1.
        Representation("text_id", (Part.TITLE, Part.DESCRIPTION, Part.ITEM_ID)),
        Representation("hybrid_with_dsr", (Part.TITLE, Part.DESCRIPTION, Part.ITEM_EMBEDDING)),
        # Its ablations, table 4: without the title, and without the item id's token.
        Representation("item_id", (Part.DESCRIPTION, Part.ITEM_ID)),
        Representation("behavioural_with_dsr", (Part.DESCRIPTION, Part.ITEM_EMBEDDING)),
        Representation("textual_with_dsr", (Part.TITLE, Part.DESCRIPTION)),
    )
}
