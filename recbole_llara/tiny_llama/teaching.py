"""Help for so small a model: attention habits in its initial weights, and losses inside the decoder while it learns."""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, rms_norm
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.tiny_llama.tasks import TaskBatch

# After which of the tiny Llama's five layers, counted from 0, a slot tells its fit; the layer behind each looks for it.
FIT_LAYERS = (1, 2)


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

    gain = torch.where(angle < 0.02, 1.7, 0.2).repeat(2 * config.num_attention_heads)[:, None]
    for layer in model.model.layers[1:]:
        layer.self_attn.q_proj.weight.mul_(gain)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)

    def positional_head(layer: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Make a layer's first head look by position and copy; query, key and the values' weights, which it returns, [dim, D]."""
        attention = model.model.layers[layer].self_attn
        attention.q_proj.weight[:dim], attention.k_proj.weight[:dim] = query, key
        copied = torch.linalg.qr(torch.randn(len(direction), dim)).Q.T * 0.3**0.5  # orthogonal rows
        attention.v_proj.weight[:dim] = copied
        attention.o_proj.weight[:, :dim] = copied.T
        return copied

    # Rotary pairs as complex numbers: the real parts, then the imaginary ones.
    fast, medium = (angle > 0.03).float(), ((angle > 0.02) & (angle < 0.25)).float()
    back, here = torch.cat([fast * angle.cos(), -fast * angle.sin()]), torch.cat([fast, 0 * fast])
    near = torch.cat([medium, 0 * medium])
    copied = positional_head(0, 0.8 * torch.outer(back, direction), 0.8 * torch.outer(here, direction))
    # A token after a separator holds the separator's copy, as far as the first head's values let it through.
    separator = copied.T @ (copied @ (table[separator_id] - offset))
    positional_head(1, 0.55 * torch.outer(near, direction), 0.55 * torch.outer(near, separator / separator.norm()))


def decode(decoder: LlamaModel, inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Normalised last hidden states [B, T, D], and those after each of ``FIT_LAYERS``, of embeddings padded on the right.

    There the causal mask alone keeps padding out of sight.
    """
    states = decoder(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
    return states.last_hidden_state, [states.hidden_states[number + 1] for number in FIT_LAYERS]


class Guidance(nn.Module):
    """Two losses inside the decoder: a linear reader after each of ``FIT_LAYERS`` must tell which candidate fits, and the
    attention of the layer behind must find its slot.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readers = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in FIT_LAYERS)

    def forward(
        self, decoder: LlamaModel, batch: TaskBatch, inside: list[torch.Tensor], leading_tokens: int = 1
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean over the layers of both losses' sum.

        Args:
            decoder: whose attention the second loss guides.
            batch: a selection with vectors.
            inside: as ``decode`` returns it.
            leading_tokens: how many of an answer's first tokens the attention is guided at, a title's EOS not among them.

        Returns:
            the loss, and the last layer's share of rows whose target is read as the best fit, and the share of the
            attention that its target's slot has.
        """
        rows, columns = (index[batch.candidate_slots] for index in (batch.prompts.slot_rows, batch.prompts.slot_columns))
        target = columns.gather(1, batch.position[:, None])[:, 0]  # [B]
        answers = batch.prompts.labels != IGNORED_LABEL
        asking = answers.int().argmax(1)[:, None] - 1 + torch.arange(leading_tokens)  # [B, A]
        guided = torch.arange(leading_tokens) < (answers.sum(1, keepdim=True) - 1).clamp(min=1)  # [B, A]
        asking = torch.where(guided, asking, asking[:, :1])
        losses = []
        for reader, hidden, number in zip(self.readers, inside, FIT_LAYERS, strict=True):
            scores = reader(rms_norm(hidden[rows, columns].float(), hidden.shape[-1:]))[..., 0].float()  # [B, C]
            attention = answer_attention(decoder.layers[number + 1], decoder.rotary_emb, hidden, asking)
            # The mean over heads, so that one head is enough.
            found = attention[torch.arange(len(target)), ..., target].logsumexp(1) - math.log(attention.shape[1])  # [B, A]
            found = found[guided]
            losses.append(cross_entropy(scores, batch.position) - found.mean())
        shown = {
            "fit accuracy": (scores.argmax(1) == batch.position).float().mean().item(),
            "attention": found.exp().mean().item(),
        }
        return sum(losses) / len(losses), shown


def answer_attention(layer: LlamaDecoderLayer, rotary: nn.Module, hidden: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
    """Logarithms of a layer's attention from positions ``asking`` [B, A] of its input [B, T, D]: [B, H, A, T] float32."""
    attention = layer.self_attn
    rows, positions = torch.arange(len(hidden))[:, None], torch.arange(hidden.shape[1])
    normed = layer.input_layernorm(hidden)
    key = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # [B, H, T, d]
    query = attention.q_proj(normed[rows, asking]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # [B, H, A, d]
    cos, sin = rotary(hidden, position_ids=positions[None])  # [1, T, d]
    _, key = apply_rotary_pos_emb(key, key, cos, sin)
    query, _ = apply_rotary_pos_emb(query, query, cos[0, asking], sin[0, asking])
    scores = query.float() @ key.float().transpose(2, 3) * attention.scaling  # [B, H, A, T]
    return scores.masked_fill((positions > asking[..., None])[:, None], -torch.inf).log_softmax(-1)
