"""What of an LLM is tuned: LoRA adapters with less memory traffic than peft's, and a dropout that knows its tokens.

torch's dropout draws from a generator of the device: its masks depend on the rows that share a pass, on the process that
makes the pass and on the kind of device. Here the mask of a token is a function of (seed, step, row, place in the row,
layer). It is the same for every cut of an optimiser step into passes, in every process, on every device, and whenever a pass
is computed again.

Every layer has a *ring* of 65,536 places, of which exactly the share p is dropped, in an order drawn once. A token's mask is
the part of the ring that begins at a place of the token's own, so each feature is dropped with probability p exactly.

    ring   . x . . x . . .        p = 2/8, width 3
    token a begins at 0:  . x .
    token b begins at 4:  x . .
    token c begins at 7:  . . x   (the ring closes)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_llara.llm.architecture import decoder_blocks
from recbole_llara.llm.loading import first_line
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import numbers, row_keys
from recbole_llara.utils.transfer import send

LLM_TUNINGS = ("lora", "frozen", "full")


def block_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the decoder blocks, as ``self_attn.q_proj``; a UserError where there are none."""
    named = (entry for block in decoder_blocks(model) for entry in block.named_modules())
    # The layers of GPTQ and AWQ are no nn.Linear.
    names = {
        name
        for name, layer in named
        if isinstance(layer, (nn.Linear, Conv1D)) or "qweight" in dict(layer.named_buffers(recurse=False))
    }
    if not names:
        raise UserError(f"llm_tuning is 'lora', but the blocks of {type(model).__name__} hold no linears: use frozen or full")
    return sorted(names)


def tune(
    model: PreTrainedModel,
    llm_tuning: str,
    lora_r: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_target_modules: str | Sequence[str],
    lora_layers: int | None = None,
) -> nn.Module:
    """Decide which of the LLM's weights are trained.

    Args:
        model: a causal LM.
        llm_tuning: lora (adapters alone), frozen (nothing) or full (everything).
        lora_r, lora_alpha: rank of the adapters, and their scale: their output is multiplied by alpha / r.
        lora_dropout: (share) dropout before the adapters.
        lora_target_modules: "auto" = every linear of the decoder blocks, or the ends of their names, as q_proj.
        lora_layers: how many decoder blocks get adapters, from the top; None = all. Where no vector of a prompt is trained,
            gradients end at the lowest of them.

    Returns:
        The model, wrapped by peft for lora. The adapters' first values come from torch's global generator.

    Raises:
        UserError: an unknown llm_tuning, a target that no linear layer of the blocks is called by, or one that peft refuses.
    """
    if llm_tuning not in LLM_TUNINGS:
        raise UserError(f"llm_tuning is {llm_tuning!r}, expected {', '.join(LLM_TUNINGS)}")
    model.requires_grad_(llm_tuning == "full")
    if llm_tuning != "lora":
        return model
    name, linears, blocks = type(model).__name__, block_linears(model), decoder_blocks(model)
    known, ends = sorted({linear.split(".")[-1] for linear in linears}), lora_target_modules
    targets = linears
    if ends != "auto":
        ends = [ends] if isinstance(ends, str) else list(ends)
        of_end = {end: [linear for linear in linears if f".{linear}".endswith(f".{end}")] for end in ends}
        unknown = [end for end in ends if not of_end[end]]
        if unknown or not ends:
            raise UserError(f"lora_target_modules has {unknown or ends}, expected auto or some of {known}")
        targets = sorted({linear for found in of_end.values() for linear in found})
    if lora_layers is not None and lora_layers > len(blocks):
        raise UserError(f"lora_layers: found {lora_layers}, expected at most {len(blocks)}, the decoder blocks of {name}")
    adapted = blocks if lora_layers is None else blocks[len(blocks) - lora_layers :]
    # What peft would adapt for its name's end, but is in no block that is adapted, as the layers of an image encoder are.
    inside = {id(layer) for block in adapted for layer in block.modules()}
    suffixes = tuple(f".{target}" for target in targets)
    outside = [path for path, layer in model.named_modules() if path.endswith(suffixes) and id(layer) not in inside]
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=targets,
        exclude_modules=outside or None,
        # Conv1D (GPT-2) keeps its weight transposed; peft would set this itself, with a warning.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        return make_lean(get_peft_model(model, config))
    except ValueError as error:  # layers that peft cannot adapt, as some of a Mamba
        raise UserError(
            f"lora_target_modules is {lora_target_modules!r} for {name}: {first_line(error)}. Expected some of "
            f"{known}, or llm_tuning frozen or full"
        ) from error


class LeanLoraLinear(Linear):
    """peft's ``lora.Linear`` with less memory traffic; whatever is not one plain active adapter is left to peft.

    For each linear peft casts the input to float32 and makes three tensors as wide as the output; on a width-192 model that
    cost more than full tuning. Here the input stays in the type of the arithmetic, the scales of the adapter and of its dropout
    fall on the [..., r] tensor in the middle, and the last product is added to the linear's output.
    """

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """W x + b + scaling B A dropout(x): [..., in] to [..., out], in the type of the base layer's output."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        is_plain = not (args or kwargs or self.disable_adapters or self.merged or self.fan_in_fan_out)
        if not is_plain or len(names) != 1 or names[0] in self.lora_variant or self.lora_bias[names[0]]:
            return super().forward(x, *args, **kwargs)
        name = names[0]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight  # [r, in], [out, r]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once for both products
        output = self.base_layer(x)
        dropout, scale = self.lora_dropout[name], self.scaling[name]
        if isinstance(dropout, RowDropout):
            dropped, scale = dropout.drop(x), scale * dropout.scale
        else:
            dropped = dropout(x)
        if not torch.is_autocast_enabled(x.device.type):
            dropped = dropped.to(down.dtype)
        middle = nn.functional.linear(dropped, down) * scale  # [..., r]
        rows, middle, up = output.flatten(0, -2), middle.flatten(0, -2).to(output.dtype), up.t().to(output.dtype)
        summed = torch.addmm(rows, middle, up) if torch.is_grad_enabled() else rows.addmm_(middle, up)  # [n, out]
        return summed.view_as(output)


def make_lean(model: nn.Module) -> nn.Module:
    """Let every plain LoRA layer of a peft model compute as ``LeanLoraLinear``; others (quantised, Conv1D) stay peft's."""
    for module in model.modules():
        if type(module) is Linear and not module.fan_in_fan_out:
            module.__class__ = LeanLoraLinear
    return model


_RING_BITS = 16
RING = 1 << _RING_BITS
_KEY_BITS = 31  # a product of two such numbers fits into int64


@dataclass
class TokenKeys:
    """The random numbers of the tokens of the pass under way; all ``RowDropout`` layers of a model read the same."""

    values: torch.Tensor | None = None  # [B, T] int64; None before the first pass

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
    """A random number [B, T] int64 below 2^31 for every token of a pass, on the device of ``position_ids``.

    Args:
        purpose: what the pass is, so that unlike passes over rows of the same number have unlike masks.
        step: number of the optimiser step.
        rows: [B] what the rows are called, on the CPU; rows of the same name have the same masks.
        position_ids: [B, T] 0 at the row's first token, so that padding changes nothing.
    """
    keys = row_keys(seed, f"dropout of {purpose}", step, rows.numpy())
    drawn = numbers(keys[:, None], np.arange(position_ids.shape[1])) >> np.uint64(64 - _KEY_BITS)  # [B, T], by position
    return send(torch.from_numpy(drawn.astype(np.int64)), position_ids.device).gather(1, position_ids)


class RowDropout(nn.Module):
    """Dropout of a share p of the features of tokens, by the tokens' keys; p is rounded to a multiple of 1 / 65,536.

    Layers of unlike numbers ``layer`` have unlike masks. ``scale`` is what is left to do after ``drop``.
    """

    def __init__(self, p: float, width: int, seed: int, layer: int, keys: TokenKeys) -> None:
        super().__init__()
        dropped = min(round(p * RING), RING - 1)
        self.p, self.width, self.keys = dropped / RING, width, keys
        self._scale = 1 / (1 - self.p)
        state = np.random.SeedSequence((seed, layer)).generate_state(2, np.uint64)
        order = torch.randperm(RING, generator=torch.Generator().manual_seed(int(state[0])))
        ring = (order >= dropped).float().repeat(2 + width // RING)[: RING + width]  # 1 where a feature is kept
        # Tensors, not numbers: one compiled block serves all layers.
        self.register_buffer("ring", ring, persistent=False)
        self.register_buffer("multiplier", torch.tensor(int(state[1]) % (1 << _KEY_BITS) | 1), persistent=False)

    @property
    def scale(self) -> float:
        """1 / (1 - p); 1 in evaluation."""
        return self._scale if self.training else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x, some features 0, the others divided by 1 - p; x itself in evaluation."""
        return self.drop(x) * self.scale if self.training else x

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, in] or [B * T, in], the tokens of the pass, some features 0.

        A product with zeros and ones: a fourth of the time of a masked fill on a CPU, forward and backward.

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
        return x * self.ring.to(x.dtype).unfold(0, self.width, 1).index_select(0, begins.flatten()).view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def key_dropout(llm: nn.Module, seed: int, keys: TokenKeys) -> None:
    """Put ``RowDropout``, which reads ``keys``, in the place of every dropout layer of an LLM's adapters."""
    layer = count()
    for module in llm.modules():
        for name, dropout in module.lora_dropout.items() if isinstance(module, LoraLayer) else ():
            if isinstance(dropout, nn.Dropout):
                module.lora_dropout[name] = RowDropout(dropout.p, module.in_features, seed, next(layer), keys)
