"""What the prompt encoder hands to a model: token ids, the answer among them, and where the slots are. RecBole-free."""

from dataclasses import dataclass

import torch

IGNORED_LABEL = -100


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of prompts (B rows, T tokens, S slots), with the answer when targets were given.

    Args:
        input_ids: [B, T] token ids; a slot holds a stand-in id whose embedding is overwritten.
        attention_mask: [B, T] 1 on tokens, 0 on padding.
        position_ids: [B, T] 0 at the row's first token.
        labels: [B, T] the answer's tokens and its EOS, ``IGNORED_LABEL`` elsewhere.
        slot_rows, slot_columns: [S] where the slots are.
        slot_parts: [S] what each slot holds, as its place in ``SLOT_PARTS``.
        slot_items: [S] the item of each slot; 0 where the slot is the same for all items, as [PH] is.
        pooled: [B, T] bool, the tokens whose states stand for the history (``encode``: all parts of its items) or for the
            item (``encode_items``: all parts of it). RSLLM's two towers average them.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    slot_rows: torch.Tensor
    slot_columns: torch.Tensor
    slot_parts: torch.Tensor
    slot_items: torch.Tensor
    pooled: torch.Tensor

    def to(self, device: torch.device) -> "EncodedPrompts":
        """The same prompts on another device."""
        return EncodedPrompts(**{name: tensor.to(device) for name, tensor in vars(self).items()})
