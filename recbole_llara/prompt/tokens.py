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
# Texts in one call of a tokenizer, whose records of them are much larger than their tokens: a million at once took 19 GB.
AT_ONCE = 8192


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as they stand; a special token's name in them is spelt out."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def opening_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS where the tokenizer puts one before a text, else nothing."""
    return [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]


def tokenise_inside(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand in the middle of a prompt; none of an empty one.

    Raises:
        UserError: the tokenizer merges a text with what stands before it, or makes a special token of it.
    """
    before = [ANCHORS[text[:1].isspace()] if text else "" for text in texts]
    anchors = {anchor: tokenise(tokenizer, [anchor])[0] if anchor else [] for anchor in {*before}}
    anchored = [anchor + text for anchor, text in zip(before, texts, strict=True)]
    encoded = chain.from_iterable(
        tokenise(tokenizer, anchored[start : start + AT_ONCE]) for start in range(0, len(anchored), AT_ONCE)
    )
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
    words, merged = list({text.rpartition(" ")[2] for text in texts} - {""}), set()
    for start in range(0, len(words), AT_ONCE):
        some = words[start : start + AT_ONCE]
        alone, followed = (tokenise_inside(tokenizer, [f" {word}{end}" for word in some]) for end in ("", mark))
        merged |= {word for word, apart, whole in zip(some, alone, followed, strict=True) if [*apart, *of_mark] != whole}
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


@dataclass(frozen=True)
class Segment:
    """Consecutive pieces of a bank."""

    tokens: torch.Tensor  # [n] int32, as a file keeps them
    offsets: torch.Tensor  # [M + 1] int64, where each piece begins


@dataclass
class PieceBank:
    """Token sequences of many pieces, in segments: one that may be mapped from a file, and what was added since.

    What is added can be gathered once ``freeze`` was called.
    """

    segments: list[Segment] = field(default_factory=list)
    count: int = 0
    added: list[Texts] = field(default_factory=list)

    @classmethod
    def of(cls, tokens: torch.Tensor, offsets: torch.Tensor) -> "PieceBank":
        """A bank over tokens [n] and offsets [M + 1]; a ValueError where they are none."""
        if tokens.dtype != torch.int32 or offsets.dtype != torch.int64 or tokens.dim() != 1 or offsets.dim() != 1:
            raise ValueError(f"tokens {tokens.dtype} {list(tokens.shape)}, offsets {offsets.dtype} {list(offsets.shape)}")
        is_whole = len(offsets) and int(offsets[0]) == 0 and int(offsets[-1]) == len(tokens)
        if not is_whole or bool((offsets[1:] < offsets[:-1]).any()) or (len(tokens) and int(tokens.min()) < 0):
            raise ValueError("pieces begin and end at other places than their tokens")
        return cls([Segment(tokens, offsets)], len(offsets) - 1)

    @property
    def tokens(self) -> torch.Tensor:
        """[n] all tokens."""
        return torch.cat([segment.tokens for segment in self.segments])

    @property
    def highest_token(self) -> int:
        """The greatest id of a token."""
        return max((int(segment.tokens.max()) for segment in self.segments if len(segment.tokens)), default=0)

    @property
    def nbytes(self) -> int:
        """Memory of all pieces."""
        return sum(tensor.nbytes for segment in self.segments for tensor in (segment.tokens, segment.offsets))

    def add(self, sequences: Sequence[Sequence[int]]) -> int:
        """Append pieces of these tokens; returns the number of the first."""
        return self.add_texts(Texts.of(sequences))

    def add_texts(self, *parts: Texts) -> int:
        """``add`` of pieces that lie one after another already."""
        first, self.count = self.count, self.count + sum(len(part.lengths) for part in parts)
        self.added += parts
        return first

    def freeze(self) -> None:
        """Lay out what was added as a segment of its own."""
        tokens = np.concatenate([part.tokens for part in self.added]).astype(np.int32)
        lengths = np.concatenate([part.lengths for part in self.added])
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
        self.segments.append(Segment(torch.from_numpy(tokens), torch.from_numpy(offsets)))
        self.added.clear()

    def lengths(self, pieces: torch.Tensor) -> torch.Tensor:
        """Tokens of pieces, of the shape of ``pieces``."""
        return self._spans(pieces)[1]

    def _spans(self, pieces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where pieces begin among the tokens of all segments, and their lengths, of the shape of ``pieces``."""
        starts, lengths = torch.zeros_like(pieces), torch.zeros_like(pieces)
        first = before = 0
        for segment in self.segments:
            count = len(segment.offsets) - 1
            is_own = (pieces >= first) & (pieces < first + count)
            own = pieces[is_own] - first
            begin = segment.offsets[own]
            starts[is_own], lengths[is_own] = begin + before, segment.offsets[own + 1] - begin
            first, before = first + count, before + len(segment.tokens)
        return starts, lengths

    def _at(self, places: torch.Tensor) -> torch.Tensor:
        """Tokens [n] at places among those of all segments."""
        found, before = torch.zeros_like(places), 0
        for segment in self.segments:
            is_own = (places >= before) & (places < before + len(segment.tokens))
            found[is_own] = segment.tokens[places[is_own] - before].long()
            before += len(segment.tokens)
        return found

    def gather(
        self, pieces: torch.Tensor, padding_side: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Tokens of rows of pieces: tokens [n], their rows, columns and places in ``pieces.flatten()`` [n] each, and T.

        Example, lengths of pieces 0, 1, 2 being 2, 1, 3: the rows [0, 1], [2, -1], [1, 0] have 3, 3, 3 tokens.
        """
        starts, lengths = self._spans(pieces)  # of what is no piece 0 and 0
        row_lengths = lengths.sum(1)
        longest = int(row_lengths.max())
        flat_lengths = lengths.flatten()
        flat_pieces = torch.repeat_interleave(torch.arange(flat_lengths.numel()), flat_lengths)
        flat_starts = torch.cumsum(flat_lengths, 0) - flat_lengths
        offset = torch.arange(len(flat_pieces)) - flat_starts[flat_pieces]
        tokens = self._at(starts.flatten()[flat_pieces] + offset)
        rows = flat_pieces // pieces.shape[1]
        columns = torch.arange(len(flat_pieces)) - (torch.cumsum(row_lengths, 0) - row_lengths)[rows]
        if padding_side == "left":
            columns = columns + (longest - row_lengths)[rows]
        return tokens, rows, columns, flat_pieces, longest
