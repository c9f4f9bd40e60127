"""A prompt as people read it: its texts as the tokenizer spells them, a mark where a vector stands instead of a token."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.encoding import EncodedPrompts
from recbole_llara.prompt.representation import SLOT_PARTS
from recbole_llara.prompt.tokens import ANCHORS, spell, tokenise
from recbole_llara.serving.item_names import ItemNames


def prompt_views(tokenizer: PreTrainedTokenizerBase, prompts: EncodedPrompts, names: ItemNames) -> list[dict[str, Any]]:
    """Spell prompts of B rows out, by the tokenizer that made them.

    Returns:
        B objects: ``tokens``, how many there are, slots too; ``segments``, in order, each ``{"text": ...}`` or
        ``{"part": ..., "item_id": ..., "title": ...}``, the last two None where a slot is the same for all items.
    """
    slots = list(zip(*(column.tolist() for column in (prompts.slot_rows, prompts.slot_columns)), strict=True))
    marks = [
        _mark(part, item, names) for part, item in zip(prompts.slot_parts.tolist(), prompts.slot_items.tolist(), strict=True)
    ]
    by_place = dict(zip(slots, marks, strict=True))
    return [
        _view(tokenizer, ids, is_token, {column: mark for (of_row, column), mark in by_place.items() if of_row == row})
        for row, (ids, is_token) in enumerate(zip(prompts.input_ids.tolist(), prompts.attention_mask.tolist(), strict=True))
    ]


def _mark(part: int, item: int, names: ItemNames) -> dict[str, Any]:
    of_item = {"item_id": names.ids[item], "title": names.titles[item]} if item else {"item_id": None, "title": None}
    return {"part": SLOT_PARTS[part].value, **of_item}


def _view(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], is_token: Sequence[int], marks: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """One row; ``marks`` by column."""
    spans: list[list[int] | dict[str, Any]] = []
    for column, token in enumerate(ids):
        if column in marks:
            spans.append(marks[column])
        elif is_token[column]:
            if not spans or isinstance(spans[-1], dict):
                spans.append([])
            spans[-1].append(token)
    texts = iter(_spelt_inside(tokenizer, [span for span in spans if isinstance(span, list)]))
    segments = [span if isinstance(span, dict) else {"text": next(texts)} for span in spans]
    return {"tokens": sum(is_token), "segments": segments}


def _spelt_inside(tokenizer: PreTrainedTokenizerBase, spans: Sequence[Sequence[int]]) -> list[str]:
    """Texts of spans behind the anchor, where a tokenizer keeps the space that a span begins with."""
    anchor = tokenise(tokenizer, [ANCHORS[False]])[0]
    before, *texts = spell(tokenizer, [anchor, *([*anchor, *span] for span in spans)])
    return [text.removeprefix(before) for text in texts]
