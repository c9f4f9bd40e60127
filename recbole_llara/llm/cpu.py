"""What pays only for a small LLM on a CPU: attention as two batched matrix products.

In bf16 this is faster than the fused kernel at prompt lengths: a step of SmolLM2-135M takes .84 of the time. The scores [B, heads, T, T] are held in memory; GPUs keep SDPA.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

BMM_ATTENTION = "recbole_llara_bmm"


def bmm_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Softmax attention [B, T, H, d] in the signature of transformers' attention functions; None in the place of the weights.

    Queries are [B, H, T, d], keys and values [B, K, S, d], each of the K heads serving H / K heads of queries, which are read in a
    row, without a copy of the keys; the mask is [B, 1, T, S], True = may look or an additive mask, or None = causal. A ValueError
    for dropout.
    """
    batch, heads, length, _ = query.shape
    if dropout:
        raise ValueError(f"bmm attention: dropout {dropout}, expected 0")
    pairs, source = key.shape[1:3]
    if attention_mask is None:
        mask = torch.full((length, source), -torch.inf, dtype=query.dtype, device=query.device)
        mask = mask.triu(source - length + 1).expand(batch, heads, length, source)
    else:
        if attention_mask.dtype == torch.bool:
            # Half the least number: added to a score it must stay finite, or a padded row would be NaN.
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(query.dtype).min / 2)
        mask = attention_mask.to(query.dtype).expand(batch, heads, length, source)
    mask = mask.reshape(batch * pairs, -1, source)  # [B K, H / K T, S]
    query = query.reshape(batch * pairs, -1, query.shape[-1])
    scores = torch.baddbmm(mask, query, key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    # The kernel itself: torch.softmax would be lifted to fp32 under autocast, twice the bytes for no gain here.
    weights = torch._softmax(scores, -1, False)
    output = torch.bmm(weights, value.flatten(0, 1)).view(batch, heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(BMM_ATTENTION, bmm_attention)
AttentionMaskInterface.register(BMM_ATTENTION, sdpa_mask)


def training_attention(model: PreTrainedModel, dtype: torch.dtype, device: str | torch.device) -> str:
    """The attention that a causal LM trains fastest with: ours for Llamas in bf16 on a CPU, else what it was loaded with."""
    config = model.config
    plain = config.model_type == "llama" and not config.attention_dropout
    if plain and torch.device(device).type == "cpu" and dtype == torch.bfloat16:
        return BMM_ATTENTION
    return config._attn_implementation
