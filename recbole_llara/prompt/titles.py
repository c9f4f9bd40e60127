"""Titles as tokens, once for a run: how many tokens of each the LLM's context has room for, and what is kept of the longer ones.

A title has the same tokens wherever it stands, and what tells titles apart is kept. RecBole-free.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.representation import SLOT_PARTS, Part, Representation
from recbole_llara.prompt.tokens import Texts, spell, tokenise_inside
from recbole_llara.utils.errors import UserError

_logger = logging.getLogger()

# Titles are not cut below this to fit the context: fewer tokens name no item.
LEAST_TITLE_TOKENS = 4


@dataclass(frozen=True)
class ContextBudget:
    """What the LLM can hold, and the lists that must fit."""

    tokens: int  # of a prompt and its answer together
    history: int  # L, the items of a full history
    candidates: int  # C


@dataclass(frozen=True)
class PromptLengths:
    """What prompts are made of, in tokens."""

    template: int  # of the longest template, without its lists
    separator: int  # between two items of a list
    items: Mapping[Part, np.ndarray]  # [N - 1] of the titles, the numbers or both
    fields: np.ndarray | int = 0  # [N - 1] of what stands behind the titles in prompts
    mark: int = 0  # of a candidate's letter

    def longest(self, budget: ContextBudget, representation: Representation, title_tokens: int) -> int:
        """Tokens of the longest prompt of full lists with its answer, titles being cut.

        An item may fill a history alone, if users return to it; among the candidates it stands once.

        Example, L = 2, C = 3, template 9, separator 1, titles of 7, 4, 4 tokens with a slot each: the history has at
        most 2 * 7 + 2 + 1, the candidates 15 + 3 + 2, the answer 7 and its EOS, all together 54.
        """
        answers = {**self.items, Part.TITLE: np.minimum(self.items[Part.TITLE], title_tokens)}
        items = {**answers, Part.TITLE: answers[Part.TITLE] + self.fields}
        separators = max(0, budget.history - 1) + max(0, budget.candidates - 1)
        total = self.template + self.separator * separators
        total += representation.has_user_token + representation.has_score_tokens * budget.candidates
        for part in representation.parts:
            if part in SLOT_PARTS:
                total += budget.history + budget.candidates
            else:
                longest = np.sort(items[part])[::-1]
                total += budget.history * int(longest[:1].sum()) + int(longest[: budget.candidates].sum())
        if representation.answer is Part.LETTER:
            return total + self.mark * budget.candidates + 1
        return total + int(answers[representation.answer].max(initial=0)) + 1


def fitting_title_tokens(
    budget: ContextBudget, lengths: PromptLengths, representations: Iterable[Representation], max_title_tokens: int
) -> int:
    """The most tokens that titles may have for every prompt to fit: ``max_title_tokens``, or fewer.

    One number for the catalogue, not for a row: an item's title and its answer are the same tokens wherever it stands.

    Raises:
        UserError: not even a few tokens of each title fit.
    """
    representations = tuple(representations)

    def longest(title_tokens: int) -> int:
        return max(lengths.longest(budget, representation, title_tokens) for representation in representations)

    whole = longest(max_title_tokens)
    if whole <= budget.tokens:
        return max_title_tokens
    least = min(LEAST_TITLE_TOKENS, max_title_tokens)
    lists = f"MAX_ITEM_LIST_LENGTH {budget.history} and candidate_num {budget.candidates}"
    if most := int(np.max(lengths.fields, initial=0)):
        lists += f", with item_fields of up to {most} tokens an item,"
    if longest(least) > budget.tokens:
        raise UserError(
            f"{lists}: a prompt may have {longest(least)} tokens, titles being cut to {least}, but the LLM holds {budget.tokens}: "
            "lower one of them, or choose an llm_path that holds more"
        )
    fitting = least - 1 + bisect_right(range(least, max_title_tokens), budget.tokens, key=longest)
    _logger.warning(
        f"max_title_tokens: found {max_title_tokens}, titles are cut to {fitting} tokens: with {lists} a prompt might have "
        f"{whole} tokens, but the LLM holds {budget.tokens}"
    )
    return fitting


# Texts in one call of the tokenizer, whose records of them are larger than their tokens.
TOKENISED_AT_ONCE = 8192


def tokenise_items(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int | None = None) -> list[Texts]:
    """Tokens of every item's text, as it stands in a prompt or an answer.

    Args:
        texts: N, the padding item's first.
        most: keep so many tokens of each, and one more, which tells that there are more; None = all.

    Raises:
        UserError: a text without tokens would be an answer that says nothing.
    """
    parts = []
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        some = texts[start : start + TOKENISED_AT_ONCE]
        tokens = tokenise_inside(tokenizer, [f" {text}" if text else "" for text in some])
        for text, of_text in zip(some, tokens, strict=True):
            if not of_text and text:
                raise UserError(f"llm_path: its tokenizer makes no token of the title {text[:80]!r}; expected at least one")
        parts.append(Texts.of(tokens if most is None else [of_text[: most + 1] for of_text in tokens]))
    return parts


def cut_titles(
    tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], parts: Sequence[Texts], most: int
) -> tuple[Texts, list[str]]:
    """Titles of at most so many tokens, and their texts: a title as it stands where it is short enough.

    Of a longer one the beginning is kept. Where that is also the beginning of another title, half of the tokens are its
    beginning and half its end, or, if the ends are alike too, what follows from the first token that differs; but not where nothing
    visible would be left.

    Example, most = 4::

        Soft case for phone model 7 black    Soft case 7 black
        Soft case for phone model 8 black    Soft case 8 black
        Soft hat                             Soft hat

    Args:
        titles: N.
        parts: their tokens, as ``tokenise_items`` gives them for ``most``.
        most: tokens.
    """
    texts, kept = list(titles), Texts.joined([part.cut(most) for part in parts])
    is_cut = Texts.joined(parts).lengths > most  # [N]
    lengths, tokens = kept.lengths, kept.tokens  # [N], [n]
    full = (lengths == most).nonzero()[0]  # no shorter title is like one that was cut
    places = np.cumsum(lengths)[full, None] - most + np.arange(most)  # [n, most]
    beginnings = tokens[places]  # [n, most]
    rows = beginnings.copy()
    row_of = {item: row for row, item in enumerate(full.tolist())}
    alike = _alike(titles, rows, full.tolist())
    for cut in (_without_middle, _from_difference):
        groups = alike if cut is _without_middle else _alike(titles, rows, full.tolist())
        for group in groups:
            items = [item for item in group if is_cut[item]]
            whole = tokenise_inside(tokenizer, [f" {titles[item]}" for item in group])
            of_item = dict(zip(group, cut(whole, most), strict=True))
            rows[[row_of[item] for item in items]] = [of_item[item] for item in items]
    items = is_cut.nonzero()[0].tolist()
    of_items = [row_of[item] for item in items]
    # A beginning tells more than the white space that may be left between the tokens of ", , Title".
    blank = [row for row, text in zip(of_items, spell(tokenizer, rows[of_items].tolist()), strict=True) if not text.strip()]
    rows[blank] = beginnings[blank]
    tokens[places] = rows
    if alike:
        left = _alike(titles, rows, full.tolist())
        _logger.warning(
            f"max_title_tokens: {sum(map(len, alike))} of {len(titles) - 1} titles begin with the same {most} tokens as another: of these "
            f"the first {most // 2} tokens are kept, and {most - most // 2} from the end or from where they differ"
            + (
                f". {sum(map(len, left))} are still the same text as another, and no answer tells their items apart"
                if left
                else ""
            )
        )
    for item, text in zip(items, spell(tokenizer, rows[of_items].tolist()), strict=True):
        texts[item] = text.strip()
    return kept, texts


def _alike(titles: Sequence[str], rows: np.ndarray, items: Sequence[int]) -> list[list[int]]:
    """Groups of items of equal tokens [n, most] and unlike titles."""
    groups: dict[bytes, list[int]] = {}
    for item, row in zip(items, rows, strict=True):
        groups.setdefault(row.tobytes(), []).append(item)
    return [group for group in groups.values() if len({titles[item] for item in group}) > 1]


def _without_middle(whole: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The beginning and the end of each token sequence: 1 2 3 4 5 6 7 cut to 4 is 1 2 6 7."""
    head = most // 2
    return [[*tokens[:head], *tokens[len(tokens) - most + head :]] for tokens in whole]


def _from_difference(whole: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The beginning, and what follows from the first token in which the sequences differ.

    1 2 3 4 5 6 7 and 1 2 3 9 5 6 7 cut to 4 are 1 2 4 5 and 1 2 9 5.
    """
    head = most // 2
    shortest = min(map(len, whole))
    differs = next((place for place in range(shortest) if len({tokens[place] for tokens in whole}) > 1), shortest)
    starts = [max(head, min(differs, len(tokens) - most + head)) for tokens in whole]
    return [[*tokens[:head], *tokens[start : start + most - head]] for tokens, start in zip(whole, starts, strict=True)]
