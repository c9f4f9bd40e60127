"""Attention habits written into the tiny Llama's initial weights, before pretraining goes on from them."""

import torch
from torch import nn
from transformers import LlamaForCausalLM


@torch.no_grad()
def initialise_circuits(model: LlamaForCausalLM, separator_id: int) -> None:
    """Start with four habits that such small models otherwise find by chance, late: they are trained on from here.

    - Every token shares one offset, the mean of the embedding table. The head cannot see it (a constant added to all
      logits); attention can lean on it, and a slot, whose content no weight has seen before, holds it too.
    - One head of the first layer looks one token back: queries and keys of the offset alone, whose product under the
      rotary embedding is ``sum_i a^2 cos(theta_i (distance - 1))``. It copies what it sees.
    - One head of the second layer looks at the latest token that follows a separator, where a title begins.
    - Otherwise, from the second layer on, like attends to like, near or far (by the slowly turning pairs), and copies
      what it finds: keys start as queries, outputs as the transposed values.

    Args:
        model: randomly initialised.
        separator_id: the token between items.
    """
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    angle = 10000.0 ** (-torch.arange(0, dim, 2) / dim)  # [dim / 2], radians a token
    offset = torch.randn(config.hidden_size) * 0.1
    table = model.get_input_embeddings().weight.normal_(std=0.1).add_(offset)
    direction = offset / offset.norm()
    first, second = (model.model.layers[number].self_attn for number in (0, 1))

    gain = torch.where(angle < 0.02, 1.7, 0.2).repeat(2 * config.num_attention_heads)[:, None]
    for layer in model.model.layers[1:]:
        layer.self_attn.q_proj.weight.mul_(gain)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)

    fast = (angle > 0.03).float()
    copied = _positional_head(first, 0.8, direction, direction, fast * angle.cos(), -fast * angle.sin(), fast)
    # A token after a separator holds the separator's copy, as far as the first head's values let it through.
    after_separator = copied.T @ (copied @ (table[separator_id] - offset))
    medium = ((angle > 0.02) & (angle < 0.25)).float()
    _positional_head(second, 0.55, direction, after_separator / after_separator.norm(), medium, 0 * medium, medium)


def _positional_head(
    attention: nn.Module,
    gain: float,
    query_direction: torch.Tensor,
    key_direction: torch.Tensor,
    query_real: torch.Tensor,
    query_imaginary: torch.Tensor,
    key_real: torch.Tensor,
) -> torch.Tensor:
    """Make an attention's first head look by position from one direction of the input to another, and copy.

    Args:
        attention: a Llama layer's.
        gain: of queries and keys.
        query_direction, key_direction: [D] what of the input makes a token ask, and be found.
        query_real, query_imaginary, key_real: [dim / 2] the rotary pairs, as complex numbers.

    Returns:
        [dim, D] the values' weights.
    """
    dim = attention.head_dim
    attention.q_proj.weight[:dim] = gain * torch.outer(torch.cat([query_real, query_imaginary]), query_direction)
    attention.k_proj.weight[:dim] = gain * torch.outer(torch.cat([key_real, 0 * key_real]), key_direction)
    copied = torch.linalg.qr(torch.randn(len(query_direction), dim)).Q.T * 0.3**0.5  # orthogonal rows
    attention.v_proj.weight[:dim] = copied
    attention.o_proj.weight[:, :dim] = copied.T
    return copied
