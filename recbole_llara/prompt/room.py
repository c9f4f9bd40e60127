"""Whether every prompt of a run fits into the LLM, and how short titles must be for it. RecBole-free."""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from recbole_llara.prompt.representation import SLOT_PARTS, Part, Representation
from recbole_llara.utils.errors import UserError

# Where room is wanted, titles are not cut below this: a name of a few tokens names an item no more.
LEAST_TITLE_TOKENS = 4

_logger = logging.getLogger()


@dataclass(frozen=True)
class PromptRoom:
    """What the LLM can hold, and the lists that must fit.

    Args:
        tokens: of a prompt and its answer together.
        history: L, the items of a full history.
        candidates: C.
    """

    tokens: int
    history: int
    candidates: int


@dataclass(frozen=True)
class PromptLengths:
    """What prompts are made of, in tokens.

    Args:
        template: of the longest template, without its lists.
        separator: between two items of a list.
        items: of the texts of C items in descending order, the longest there are: titles, numbers or both.
    """

    template: int
    separator: int
    items: Mapping[Part, np.ndarray]

    def longest(self, room: PromptRoom, representation: Representation, title_tokens: int) -> int:
        """Tokens of the longest prompt of full lists with its answer, titles being cut.

        An item may fill a history alone, if users return to it; among the candidates it stands once.

        Example, L = 2, C = 3, template 9, separator 1, titles of 7, 4, 4 tokens with a slot each: the history has at
        most 2 * 7 + 2 + 1, the candidates 15 + 3 + 2, the answer 7 and its EOS, all together 54.
        """
        items = {**self.items, Part.TITLE: np.minimum(self.items[Part.TITLE], title_tokens)}
        separators = max(0, room.history - 1) + max(0, room.candidates - 1)
        total = self.template + self.separator * separators
        for part in representation.parts:
            if part in SLOT_PARTS:
                total += room.history + room.candidates
            else:
                total += room.history * int(items[part].max(initial=0)) + int(items[part][: room.candidates].sum())
        return total + int(items[representation.answer].max(initial=0)) + 1


def fitting_title_tokens(
    room: PromptRoom, lengths: PromptLengths, representations: Iterable[Representation], max_title_tokens: int
) -> int:
    """The most tokens that titles may have for every prompt to fit: ``max_title_tokens``, or fewer.

    One number for the catalogue, not for a row: an item's title and its answer are the same tokens wherever it stands.

    Raises:
        UserError: not even a few tokens of each title fit.
    """
    representations = tuple(representations)

    def longest(title_tokens: int) -> int:
        return max(lengths.longest(room, representation, title_tokens) for representation in representations)

    whole = longest(max_title_tokens)
    if whole <= room.tokens:
        return max_title_tokens
    least = min(LEAST_TITLE_TOKENS, max_title_tokens)
    lists = f"MAX_ITEM_LIST_LENGTH {room.history} and candidate_num {room.candidates}"
    if longest(least) > room.tokens:
        raise UserError(
            f"{lists}: a prompt may have {longest(least)} tokens, titles being cut to {least}, but the LLM holds {room.tokens}: "
            "lower one of them, or choose an llm_path that holds more"
        )
    fitting = least - 1 + bisect_right(range(least, max_title_tokens), room.tokens, key=longest)
    _logger.warning(
        f"max_title_tokens: found {max_title_tokens}, titles are cut to {fitting} tokens: with {lists} a prompt might have "
        f"{whole} tokens, but the LLM holds {room.tokens}"
    )
    return fitting
