"""A batch of prompts as arrays: what the encoder makes and the LLM reads. RecBole-free."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from recbole_llara.prompt.representation import SLOT_PARTS, Part
from recbole_llara.utils.hashing import numbers
from recbole_llara.utils.transfer import send

IGNORED_LABEL = -100


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of prompts (B rows, T tokens, S slots), with the answer when targets were given.

    What the host decides by (``labels``, ``slot_parts``, ``pooled``, ``head_lengths``, ``listed``) stays on the CPU, wherever the rest
    is sent.

    ``pooled`` are the tokens whose states stand for the history (``encode``: all parts of its items) or for the item
    (``encode_items``: all parts of it). RSLLM's two towers average them.
    """

    input_ids: torch.Tensor  # [B, T] a slot holds a stand-in id whose embedding is overwritten
    attention_mask: torch.Tensor  # [B, T] 1 on tokens, 0 on padding
    position_ids: torch.Tensor  # [B, T] 0 at the row's first token
    labels: torch.Tensor  # [B, T] the answer's tokens and its EOS, IGNORED_LABEL elsewhere
    slot_rows: torch.Tensor  # [S]
    slot_columns: torch.Tensor  # [S]
    slot_parts: torch.Tensor  # [S] what each slot holds, as its place in SLOT_PARTS
    slot_items: torch.Tensor  # [S] the item of each slot; 0 where the slot is the same for all items, as [PH] is
    pooled: torch.Tensor  # [B, T] bool
    head_lengths: torch.Tensor  # [B] tokens before the second of the two lists of items; 0 where there are no lists
    listed: torch.Tensor | None = None  # [B, C] the candidates as the prompts list them
    # What the recommender is asked, where the prompts show its conclusions: histories [B, L] and candidates [B, C].
    asked: tuple[torch.Tensor, torch.Tensor] | None = None

    def to(self, device: torch.device) -> "EncodedPrompts":
        """The same prompts, what the LLM reads being on another device."""
        stay = ("labels", "slot_parts", "pooled", "head_lengths", "listed", "asked")
        moved = {name: send(tensor, device) for name, tensor in vars(self).items() if name not in stay}
        asked = None if self.asked is None else tuple(send(tensor, device) for tensor in self.asked)
        return replace(self, **moved, asked=asked)

    def read_as(self, listed: torch.Tensor, candidates: torch.Tensor, read_as: torch.Tensor) -> "EncodedPrompts":
        """The same prompts with other numbers for candidates' behavioural and score tokens, and for what the recommender is asked.

        Args:
            listed: [B, C] the candidates, in the order in which the prompts list them.
            candidates: [B, C] the same items, in any order.
            read_as: [B, C] their numbers; an item with another one stands nowhere else in its row.
        """
        is_own = candidates[self.slot_rows] == self.slot_items[:, None]  # [S, C]
        read = [SLOT_PARTS.index(part) for part in (Part.ITEM_EMBEDDING, Part.SCORE)]
        changed = is_own & (read_as != candidates)[self.slot_rows] & torch.isin(self.slot_parts, torch.tensor(read))[:, None]
        slot_items = torch.where(changed.any(1), read_as[self.slot_rows, changed.int().argmax(1)], self.slot_items)
        if self.asked is None:
            return replace(self, slot_items=slot_items)
        columns = (listed[:, :, None] == candidates[:, None]).int().argmax(2)  # [B, C]
        return replace(self, slot_items=slot_items, asked=(self.asked[0], read_as.gather(1, columns)))

    def with_dropped_tokens(self, draws: torch.Tensor, share: float) -> "EncodedPrompts":
        """The same prompts with [PH] for the behavioural tokens of a share of each row's items, wherever they stand in the row.

        Args:
            draws: [B] int64, each row's stream of ``hashing.numbers``: an item's token is dropped by (row, item) alone.
            share: the probability of each item.
        """
        if not share:
            return self
        keys, items = draws[self.slot_rows].numpy().view(np.uint64), self.slot_items.numpy()
        is_dropped = torch.from_numpy((numbers(keys, items) >> np.uint64(11)) * 2.0**-53 < share)  # [S]
        is_dropped &= self.slot_parts == SLOT_PARTS.index(Part.ITEM_EMBEDDING)
        return replace(self, slot_parts=self.slot_parts.masked_fill(is_dropped, SLOT_PARTS.index(Part.PLACEHOLDER)))
