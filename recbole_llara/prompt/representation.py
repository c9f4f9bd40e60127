"""How an item stands in a prompt: one table of representations (LLaRA eq. 4-6 and fig. 4)."""

from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """One piece of an item's representation."""

    TITLE = "title"  # the title's tokens
    INDEX = "index"  # the item's number, as text
    ITEM_EMBEDDING = "item_embedding"  # one slot: the projected recommender embedding
    PLACEHOLDER = "placeholder"  # one slot: the placeholder token [PH] of the text-only task


SLOT_PARTS = (Part.ITEM_EMBEDDING, Part.PLACEHOLDER)


@dataclass(frozen=True)
class Representation:
    """An item's representation in history and candidates, and what the model answers with.

    Args:
        name: the key of ``REPRESENTATIONS``.
        parts: the pieces in order.
        answer: ``Part.TITLE`` or ``Part.INDEX``, the text that names an item in the answer.
    """

    name: str
    parts: tuple[Part, ...]
    answer: Part = Part.TITLE

    @property
    def has_slot(self) -> bool:
        """Whether an item holds a slot that is filled with a vector instead of a token's embedding."""
        return any(part in SLOT_PARTS for part in self.parts)

    @property
    def has_item_embedding(self) -> bool:
        """Whether the recommender's embedding reaches the prompt."""
        return Part.ITEM_EMBEDDING in self.parts


REPRESENTATIONS: dict[str, Representation] = {
    representation.name: representation
    for representation in (
        Representation("numerical", (Part.INDEX,), answer=Part.INDEX),
        Representation("behavioural", (Part.ITEM_EMBEDDING,)),
        Representation("textual", (Part.TITLE,)),
        Representation("hybrid", (Part.TITLE, Part.ITEM_EMBEDDING)),
        # The easy task of the curriculum: the hybrid prompt with [PH] in every slot (LLaRA fig. 3).
        Representation("text_only", (Part.TITLE, Part.PLACEHOLDER)),
    )
}
