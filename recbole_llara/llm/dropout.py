"""Dropout whose mask is a function of the token, not of the pass that the token is in.

torch's dropout draws from a generator of the device: its masks depend on the rows that share a pass, on the process that
makes the pass and on the kind of device, and a pass that is computed again must first bring the generator back to where it
was. Here the mask of a token is a function of (seed, step, row, place in the row, layer). It is the same for every cut of
an optimiser step into passes, in every process, on every device, and whenever a pass is computed again.

Every layer has a *ring* of 65,536 places, of which exactly the share p is dropped, in an order drawn once. A token's mask is
the part of the ring that begins at a place of the token's own, so each feature is dropped with probability p exactly.

    ring   . x . . x . . .        p = 2/8, width 3
    token a begins at 0:  . x .
    token b begins at 4:  x . .
    token c begins at 7:  . . x   (the ring closes)

RecBole-free.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from recbole_llara.utils.hashing import numbers, row_keys

_RING_BITS = 16
RING = 1 << _RING_BITS
_KEY_BITS = 31  # a product of two such numbers fits into int64


@dataclass
class TokenKeys:
    """The random numbers of the tokens of the pass under way; all ``RowDropout`` layers of a model read the same.

    Args:
        values: [B, T] int64; None before the first pass.
    """

    values: torch.Tensor | None = None

    def for_checkpoint(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The ``context_fn`` of torch's ``checkpoint``: what is computed again reads the keys of its first time."""
        return nullcontext(), self.reading(self.values)

    @contextmanager
    def reading(self, values: torch.Tensor | None) -> Iterator[None]:
        """Let passes within read these values [B, T]; those of before are there again afterwards."""
        before, self.values = self.values, values
        try:
            yield
        finally:
            self.values = before


def token_keys(seed: int, purpose: str, step: int, rows: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """A random number for every token of a pass.

    Args:
        seed: of the run.
        purpose: what the pass is, so that unlike passes over rows of the same number have unlike masks.
        step: number of the optimiser step.
        rows: [B] what the rows are called, on the CPU; rows of the same name have the same masks.
        position_ids: [B, T] 0 at the row's first token, so that padding changes nothing.

    Returns:
        [B, T] int64 below 2^31, on the device of ``position_ids``.
    """
    keys = row_keys(seed, f"dropout of {purpose}", step, rows.numpy())
    drawn = numbers(keys[:, None], np.arange(position_ids.shape[1])) >> np.uint64(64 - _KEY_BITS)  # [B, T], by position
    return torch.from_numpy(drawn.astype(np.int64)).to(position_ids.device).gather(1, position_ids)


class RowDropout(nn.Module):
    """Dropout of the features of tokens, by the tokens' keys.

    Args:
        p: (share) of the features that is dropped; rounded to a multiple of 1 / 65,536.
        width: of the input.
        seed: of the run.
        layer: number of this layer, so that layers have unlike masks.
        keys: of the tokens of the pass under way.
    """

    def __init__(self, p: float, width: int, seed: int, layer: int, keys: TokenKeys) -> None:
        super().__init__()
        dropped = min(round(p * RING), RING - 1)
        self.p, self.width, self.keys = dropped / RING, width, keys
        state = np.random.SeedSequence((seed, layer)).generate_state(2, np.uint64)
        order = torch.randperm(RING, generator=torch.Generator().manual_seed(int(state[0])))
        ring = (order < dropped).repeat(2 + width // RING)[: RING + width]
        # Tensors, not numbers: one compiled block serves all layers.
        self.register_buffer("ring", ring, persistent=False)
        self.register_buffer("multiplier", torch.tensor(int(state[1]) % (1 << _KEY_BITS) | 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x with some features set to 0 and the others divided by 1 - p; x itself in evaluation mode.

        Args:
            x: [B, T, in] or [B * T, in], the tokens of the pass under way.

        Raises:
            ValueError: other tokens than those of the pass.
        """
        if not self.training:
            return x
        keys = self.keys.values
        if keys is None or keys.numel() != x.numel() // self.width:
            found = None if keys is None else tuple(keys.shape)
            raise ValueError(
                f"lora_dropout: a layer reads {tuple(x.shape)}, expected the tokens of the pass, whose keys are {found}: set "
                "lora_dropout to 0, or lora_target_modules to layers that read every token of the prompt"
            )
        begins = (keys * self.multiplier >> _KEY_BITS - _RING_BITS) & (RING - 1)  # [B, T]
        is_dropped = self.ring.unfold(0, self.width, 1).index_select(0, begins.flatten()).view(x.shape)
        return x.masked_fill(is_dropped, 0.0) * (1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def key_dropout(llm: nn.Module, seed: int, keys: TokenKeys) -> None:
    """Put ``RowDropout`` in the place of every dropout layer of an LLM's adapters.

    Args:
        llm: a causal LM, wrapped by peft or not.
        seed: of the run.
        keys: where the keys of each pass's tokens are going to stand.
    """
    layer = 0
    for module in llm.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name, dropout in module.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                module.lora_dropout[name] = RowDropout(dropout.p, module.in_features, seed, layer, keys)
                layer += 1
