"""Texts to tokens and back, and the pieces (a text of the template, a separator, a title, a slot) that prompts are made of.

The tokens of all pieces lie in one flat bank; a batch gathers them without a Python loop over rows or items.
RecBole-free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recbole_llara.utils.errors import UserError

# A text inside a prompt is tokenised behind this anchor, which no tokenizer merges with what follows,
# so that a title has the same tokens wherever it stands.
ANCHOR = "\n"
NOTHING = -1  # in the place of a piece's number


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as they stand; a special token's name in them is spelt out."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def tokenise_inside(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand in the middle of a prompt.

    Raises:
        UserError: the tokenizer merges a line break with what follows it, or makes a special token of a text.
    """
    anchor, *encoded = tokenise(tokenizer, [ANCHOR, *(ANCHOR + text for text in texts)])
    # The token for what a tokenizer does not know is special as well, but says only that.
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    inside = [tokens[len(anchor) :] for tokens in encoded]
    for text, whole, tokens in zip(texts, encoded, inside, strict=True):
        if whole[: len(anchor)] != anchor:
            raise UserError(f"llm_path: its tokenizer merges a line break with {text[:80]!r}; expected them apart")
        if not special.isdisjoint(tokens):
            found = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special.intersection(tokens))))
            raise UserError(f"llm_path: its tokenizer makes the special token {found} of {text[:80]!r}; expected plain text")
    return inside


def spell(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token sequences; special tokens inside them show, so that they match no title."""
    if not sequences:  # which transformers would take for one empty text
        return []
    return tokenizer.batch_decode(sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False)


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

    def add(self, *parts: Texts) -> int:
        """Append pieces; returns the number of the first."""
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
        """Tokens of rows of pieces.

        Example, lengths of pieces 0, 1, 2 being 2, 1, 3: the rows [0, 1], [2, -1], [1, 0] have 3, 3, 3 tokens.

        Returns:
            tokens [n], their rows [n], columns [n], flat piece numbers [n] (into ``pieces.flatten()``), and T.
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


@dataclass(frozen=True)
class Pieces:
    """Rows of pieces."""

    pieces: torch.Tensor  # [B, W] piece numbers, or NOTHING
    slot_items: torch.Tensor  # [B, W] the item of each slot that has one, 0 elsewhere
    pooled: torch.Tensor  # [B, W] bool, see ``encoding.EncodedPrompts``

    @classmethod
    def filled(cls, rows: int, width: int, piece: int) -> "Pieces":
        """Rows of one piece, or of ``NOTHING``."""
        zeros = torch.zeros(rows, width, dtype=torch.int64)
        return cls(zeros + piece, zeros, zeros.bool())

    @classmethod
    def side_by_side(cls, parts: list["Pieces"]) -> "Pieces":
        """The same rows' pieces, one after another."""
        return cls(*(torch.cat(columns, 1) for columns in zip(*(vars(part).values() for part in parts), strict=True)))

    def take(self, rows: torch.Tensor) -> "Pieces":
        """Some of the rows."""
        return Pieces(*(column[rows] for column in vars(self).values()))

    def put(self, rows: torch.Tensor, others: "Pieces") -> None:
        """Write other rows' pieces over the beginning of these rows."""
        for mine, theirs in zip(vars(self).values(), vars(others).values(), strict=True):
            mine[rows, : theirs.shape[1]] = theirs
