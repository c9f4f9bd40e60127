"""Titles as tokens, once for a run: whole, then cut alike wherever an item stands. RecBole-free."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from recbole_llara.errors import UserError
from recbole_llara.prompt.pieces import Texts
from recbole_llara.prompt.plain_text import spell, tokenise_inside

# Texts in one call of the tokenizer, whose records of them are larger than their tokens.
TOKENISED_AT_ONCE = 8192


def tokenise_items(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int | None = None) -> list[Texts]:
    """Tokens of every item's text, as it stands in a prompt or an answer.

    Args:
        tokenizer: the LLM's.
        texts: N, the padding item's first.
        most: keep so many tokens of each, and one more, which tells that there are more; None = all.

    Raises:
        UserError: a text without tokens would be an answer that says nothing.
    """
    parts = []
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        some = texts[start : start + TOKENISED_AT_ONCE]
        tokens = tokenise_inside(tokenizer, [f" {text}" for text in some])
        for text, of_text in zip(some, tokens, strict=True):
            if not of_text and text:
                raise UserError(f"llm_path: its tokenizer makes no token of the title {text[:80]!r}; expected at least one")
        parts.append(Texts.of(tokens if most is None else [of_text[: most + 1] for of_text in tokens]))
    return parts


def longest(parts: Sequence[Texts], count: int) -> np.ndarray:
    """Lengths of the longest items, ``count`` at most and one at least, in descending order; the padding item's left out."""
    lengths = np.concatenate([part.lengths for part in parts])[1:]
    return np.sort(lengths)[::-1][: max(1, count)]


def cut_titles(
    tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], parts: Sequence[Texts], most: int
) -> tuple[list[Texts], list[str]]:
    """Titles of at most so many tokens, and their texts: a title as it stands where it is short enough.

    Args:
        tokenizer: the LLM's.
        titles: N.
        parts: their tokens, of ``tokenise_items``, ``most + 1`` of each at least.
        most: tokens.
    """
    kept = [part.cut(most) for part in parts]
    texts = list(titles)
    is_cut = np.concatenate([part.lengths for part in parts]) > most  # [N]
    ends = np.cumsum(np.concatenate([part.lengths for part in kept]))  # [N]
    tokens = np.concatenate([part.tokens for part in kept])
    items = is_cut.nonzero()[0].tolist()
    spelt = spell(tokenizer, [tokens[ends[item] - most : ends[item]].tolist() for item in items])
    for item, text in zip(items, spelt, strict=True):
        texts[item] = text.strip()
    return kept, texts
