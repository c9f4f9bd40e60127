"""Texts to tokens and back, and the pieces (a text of the template, a separator, a title, a slot) that prompts are made of.

The tokens of all pieces lie in one flat bank; a batch gathers them without a Python loop over rows or items.
RecBole-free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.representation import Part
from recbole_llara.utils.errors import UserError

# A text inside a prompt is tokenised behind an anchor that no tokenizer merges with it, so that it has the tokens that it has
# there: a letter before white space, which some tokenizers merge with a line break, and a line break before anything else.
ANCHORS = {True: "x", False: "\n"}
NOTHING = -1  # in the place of a piece's number


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as they stand; a special token's name in them is spelt out."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def tokenise_inside(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand in the middle of a prompt; none of an empty one.

    Raises:
        UserError: the tokenizer merges a text with what stands before it, or makes a special token of it.
    """
    before = [ANCHORS[text[:1].isspace()] if text else "" for text in texts]
    anchors = {anchor: tokenise(tokenizer, [anchor])[0] if anchor else [] for anchor in {*before}}
    encoded = tokenise(tokenizer, [anchor + text for anchor, text in zip(before, texts, strict=True)]) if texts else []
    # The token for what a tokenizer does not know is special as well, but says only that.
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    inside = []
    for anchor, text, whole in zip(before, texts, encoded, strict=True):
        length = len(anchors[anchor])
        if whole[:length] != anchors[anchor]:
            raise UserError(f"llm_path: its tokenizer merges {anchor!r} with {text[:80]!r}; expected them apart")
        tokens = whole[length:] if text else []
        if not special.isdisjoint(tokens):
            found = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special.intersection(tokens))))
            raise UserError(f"llm_path: its tokenizer makes the special token {found} of {text[:80]!r}; expected plain text")
        inside.append(tokens)
    return inside


def tokenise_followed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], mark: str) -> dict[int, list[int]]:
    """Tokens of " text" + mark, for the places in ``texts`` where these are not the tokens of both, one after the other.

    Byte-level tokenizers read "Heat (1995)," with one token for "),". Only a text's last word can be read together with what
    follows it, so of equal last words one is looked at.
    """
    if not mark:
        return {}
    of_mark = tokenise_inside(tokenizer, [mark])[0]
    words = list({text.rpartition(" ")[2] for text in texts})
    alone, followed = (tokenise_inside(tokenizer, [f" {word}{end}" for word in words]) for end in ("", mark))
    merged = {word for word, apart, whole in zip(words, alone, followed, strict=True) if [*apart, *of_mark] != whole and word}
    places = [place for place, text in enumerate(texts) if text.rpartition(" ")[2] in merged]
    return dict(zip(places, tokenise_inside(tokenizer, [f" {texts[place]}{mark}" for place in places]), strict=True))


def spell(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token sequences; special tokens inside them show, so that they match no title."""
    if not sequences:  # which transformers would take for one empty text
        return []
    return tokenizer.batch_decode(sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class ChatFrame:
    """What stands around a prompt that is a user's turn, by the tokenizer's own chat template."""

    before: str
    after: str  # the end of the turn, and the opening of the assistant's
    has_space: bool  # whether an answer begins with a space, as it does behind text

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "ChatFrame":
        """The frame of a tokenizer's template, with thinking switched off; a UserError where it does not show a user's turn once."""
        marker = "PROMPT"
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except (ValueError, TemplateError) as error:
            raise UserError(
                f"prompt_format: found chat, but the LLM's tokenizer has no chat template that takes one user's turn ({error}): "
                "set prompt_format: plain, or choose an llm_path tuned for chats"
            ) from error
        before, _, after = text.partition(marker)
        if text.count(marker) != 1:
            raise UserError(f"prompt_format: found chat, but the chat template shows a user's turn {text.count(marker)} times")
        ends_in_text = bool(after) and not after[-1].isspace() and not after.endswith((*tokenizer.get_added_vocab(),))
        return cls(before, after, ends_in_text)

    def around(self, tokenizer: PreTrainedTokenizerBase, first: str, last: str) -> tuple[list[int], list[int]]:
        """Tokens of the prompt's first and last text with what stands before and behind them."""
        anchor = ANCHORS[last[:1].isspace()]
        texts = [self.before + first, anchor, anchor + last + self.after]
        opening, of_anchor, closing = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return opening, closing[len(of_anchor) :]

    def most_added(self, tokenizer: PreTrainedTokenizerBase, texts: Mapping[Part, Sequence[str]]) -> int:
        """How many more tokens an answer may have without its leading space."""
        if self.has_space:
            return 0
        pairs = [
            (tokenise_inside(tokenizer, of), tokenise_inside(tokenizer, [f" {text}" for text in of])) for of in texts.values()
        ]
        return max(len(bare) - len(spaced) for pair in pairs for bare, spaced in zip(*pair, strict=True))


@dataclass(frozen=True)
class Texts:
    """The tokens of M consecutive texts, one after another."""

    tokens: np.ndarray  # [n]
    lengths: np.ndarray  # [M]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Texts":
        """M token sequences."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        return cls(np.fromiter(chain.from_iterable(sequences), np.int64, lengths.sum()), lengths)

    @classmethod
    def joined(cls, parts: Sequence["Texts"]) -> "Texts":
        """The texts of several, one after another."""
        return cls(np.concatenate([part.tokens for part in parts]), np.concatenate([part.lengths for part in parts]))

    def followed_by(self, others: "Texts") -> "Texts":
        """Each text with another behind it: [1 2 3] [4] followed by [5] [6 7] is [1 2 3 5] [4 6 7]."""
        lengths = self.lengths + others.lengths
        places = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        is_own, tokens = places < np.repeat(self.lengths, lengths), np.empty(len(places), np.int64)
        tokens[is_own], tokens[~is_own] = self.tokens, others.tokens
        return Texts(tokens, lengths)

    def cut(self, most: int) -> "Texts":
        """The first ``most`` tokens of each: [1 2 3] [4 5] cut to 2 is [1 2] [4 5]."""
        places = np.arange(len(self.tokens)) - np.repeat(self.lengths.cumsum() - self.lengths, self.lengths)
        return Texts(self.tokens[places < most], np.minimum(self.lengths, most))


@dataclass
class PieceBank:
    """Token sequences of many pieces in one flat tensor; until it is frozen, in the parts in which they were added."""

    count: int = 0
    added: list[Texts] = field(default_factory=list)
    tokens: torch.Tensor = field(init=False)
    starts: torch.Tensor = field(init=False)
    lengths: torch.Tensor = field(init=False)

    def add(self, sequences: Sequence[Sequence[int]]) -> int:
        """Append pieces of these tokens; returns the number of the first."""
        return self.add_texts(Texts.of(sequences))

    def add_texts(self, *parts: Texts) -> int:
        """``add`` of pieces that lie one after another already."""
        first, self.count = self.count, self.count + sum(len(part.lengths) for part in parts)
        self.added += parts
        return first

    def freeze(self) -> None:
        """Lay the tokens out; nothing may be added afterwards."""
        self.tokens = torch.from_numpy(np.concatenate([part.tokens for part in self.added]))
        self.lengths = torch.from_numpy(np.concatenate([part.lengths for part in self.added]))
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.added.clear()

    def gather(
        self, pieces: torch.Tensor, padding_side: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Tokens of rows of pieces: tokens [n], their rows, columns and places in ``pieces.flatten()`` [n] each, and T.

        Example, lengths of pieces 0, 1, 2 being 2, 1, 3: the rows [0, 1], [2, -1], [1, 0] have 3, 3, 3 tokens.
        """
        present = pieces >= 0
        lengths = torch.where(present, self.lengths[pieces.clamp(min=0)], 0)
        row_lengths = lengths.sum(1)
        longest = int(row_lengths.max())
        flat_lengths = lengths.flatten()
        flat_pieces = torch.repeat_interleave(torch.arange(flat_lengths.numel()), flat_lengths)
        flat_starts = torch.cumsum(flat_lengths, 0) - flat_lengths
        offset = torch.arange(len(flat_pieces)) - flat_starts[flat_pieces]
        tokens = self.tokens[self.starts[pieces.flatten().clamp(min=0)][flat_pieces] + offset]
        rows = flat_pieces // pieces.shape[1]
        columns = torch.arange(len(flat_pieces)) - (torch.cumsum(row_lengths, 0) - row_lengths)[rows]
        if padding_side == "left":
            columns = columns + (longest - row_lengths)[rows]
        return tokens, rows, columns, flat_pieces, longest
