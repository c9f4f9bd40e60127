"""Training steps of RecBole's stock models that cost a CPU less and learn the same.

RecBole's loop, batches, loss and optimiser stay. ``quick_training`` replaces three computations for as long as it lasts:

- Dropout: torch's ``bernoulli_`` branches on every number that it draws. Here the same numbers are drawn first and compared at once,
  which gives the same mask, bit for bit, in less than half of the time.
- GELU: RecBole's formula is five passes over the widest tensor, each kept for the backward pass; torch has it in one.
- SASRec's last block: the loss reads one position of each row, the last of its history. The block's keys and values are computed
  for all positions; its query, attention, feed-forward layer and norms for that one alone.

The last two round otherwise than RecBole does. Random numbers are drawn in RecBole's order, and as many, so that a training differs by
rounding alone. Nothing is replaced on a GPU, in evaluation, or in a model derived from SASRec that has a forward pass of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.layers import FeedForward, TransformerLayer
from torch import nn

from recbole_llara.config.models import stock_models

Select = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def quick_training(model: nn.Module) -> Iterator[None]:
    """Within it, a training step of a stock model on a CPU takes less time; afterwards the model is as it was.

    Args:
        model: in float32, without autocast; left alone where it is on another device.
    """
    with ExitStack() as stack:
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            for module in model.modules():
                for name, quick in _quicker(module).items():
                    stack.enter_context(_replaced(module, name, quick))
        yield


def _quicker(module: nn.Module) -> dict[str, Callable[..., torch.Tensor]]:
    """The methods of a module that can be replaced, by name."""
    if type(module) is nn.Dropout and draws_alike():
        return {"forward": partial(_dropout, module)}
    if isinstance(module, FeedForward) and getattr(module.intermediate_act_fn, "__func__", None) is FeedForward.gelu:
        return {"intermediate_act_fn": F.gelu}
    sasrec: Any = stock_models()["SASRec"]
    if isinstance(module, sasrec) and type(module).forward is sasrec.forward:
        return {"forward": partial(_sasrec, module)}
    return {}


@contextmanager
def _replaced(module: nn.Module, name: str, quick: Callable[..., torch.Tensor]) -> Iterator[None]:
    own = vars(module)
    before = own.get(name)
    own[name] = quick
    try:
        yield
    finally:
        del own[name]
        if before is not None:
            own[name] = before


@cache
def draws_alike() -> bool:
    """Whether torch's ``bernoulli_`` keeps what ``uniform_`` draws below p, and leaves the generator where that does.

    It does so on AMD; where MKL draws, as on Intel, ``bernoulli_`` has other numbers, and is fast by itself.
    """
    one, other = (torch.Generator().manual_seed(1) for _ in range(2))
    kept = torch.empty(4099).bernoulli_(0.3, generator=one)
    drawn = torch.empty(4099, dtype=torch.float64).uniform_(generator=other)
    return torch.equal(kept, (drawn < 0.3).float()) and torch.equal(one.get_state(), other.get_state())


def _mask(shape: torch.Size, p: float, select: Select = lambda drawn: drawn) -> torch.Tensor:
    """What dropout multiplies by: 0 with probability p, else 1 / (1 - p); of all numbers drawn, those that are selected."""
    if not draws_alike():
        return select(torch.empty(shape).bernoulli_(1 - p)).div_(1 - p)
    return select(torch.empty(shape, dtype=torch.float64).uniform_()).lt(1 - p).float().div_(1 - p)


def _dropout(module: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
    """``nn.Dropout.forward``, bit for bit."""
    if not (module.training and 0 < module.p < 1 and x.dtype == torch.float32 and x.is_contiguous()) or module.inplace:
        return F.dropout(x, module.p, module.training, module.inplace)
    return x * _mask(x.shape, module.p)


def _sasrec(model: Any, item_seq: torch.Tensor, item_seq_len: torch.Tensor) -> torch.Tensor:
    """``SASRec.forward``: the sequence output [B, d] of histories [B, L] and their lengths [B]."""
    hidden = model.item_embedding(item_seq) + model.position_embedding.weight[: item_seq.size(1)]  # [B, L, d]
    hidden = model.dropout(model.LayerNorm(hidden))
    mask = model.get_attention_mask(item_seq)  # [B, 1, L, L]
    *lower, last = model.trm_encoder.layer
    for layer in lower:
        hidden = layer(hidden, mask)
    return _at_one_position(last, hidden, mask, item_seq_len - 1)


def _at_one_position(layer: TransformerLayer, hidden: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """What RecBole's ``TransformerLayer`` makes of one position of each row.

    Args:
        hidden: [B, L, d].
        mask: [B, 1, L, L], added to the attention's scores.
        position: [B], from 0.

    Returns:
        [B, d].
    """
    attention, feed_forward = layer.multi_head_attention, layer.feed_forward
    n_rows, length, width = hidden.shape
    heads, of_head = attention.num_attention_heads, attention.attention_head_size

    def pick(values: torch.Tensor) -> torch.Tensor:  # [B, ..., L, D] -> [B, ..., 1, D]
        index = position.view(-1, *[1] * (values.dim() - 1))
        return values.gather(-2, index.expand(*values.shape[:-2], 1, values.size(-1)))

    def drop(module: nn.Dropout, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:  # as if x were of all positions
        if not module.training or not 0 < module.p < 1:
            return module(x)
        return x * _mask(torch.Size(shape), module.p, pick).view_as(x)

    x = pick(hidden).squeeze(1)  # [B, d]
    query = attention.query(x).view(n_rows, heads, 1, of_head)
    key = attention.key(hidden).view(n_rows, length, heads, of_head).permute(0, 2, 3, 1)  # [B, H, d / H, L]
    value = attention.value(hidden).view(n_rows, length, heads, of_head).transpose(1, 2)  # [B, H, L, d / H]
    scores = query @ key / attention.sqrt_attention_head_size + pick(mask)  # [B, H, 1, L]
    shares = drop(attention.attn_dropout, attention.softmax(scores), (n_rows, heads, length, length))
    read = attention.dense((shares @ value).view(n_rows, width))  # [B, d]
    x = attention.LayerNorm(drop(attention.out_dropout, read, hidden.shape) + x)
    read = feed_forward.dense_2(feed_forward.intermediate_act_fn(feed_forward.dense_1(x)))
    return feed_forward.LayerNorm(drop(feed_forward.dropout, read, hidden.shape) + x)
