"""Likelihoods of the candidates' answers: one pass over prompts and answers. RecBole-free."""

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_llara.errors import UserError
from recbole_llara.evaluator.trie import IGNORED_LABEL, AnswerTrie, build_trie
from recbole_llara.model.llm import causal_lm, input_embeddings

# Turned into float32 log-probabilities together, 64 MB: those of all logits would be the largest tensors of an evaluation.
_LOGITS_AT_ONCE = 1 << 24


def score_candidates(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    answer_ids: torch.Tensor,
) -> torch.Tensor:
    """Log-likelihood of every candidate's answer, EOS included, given the row's prompt.

    ``s_bc = sum_j log p(y_bcj | prompt_b, y_bc,<j)``: no division by the length, since the EOS already decides
    where an answer ends and the s_bc of all texts sum to one.

    Args: as ``answer_log_probs``.

    Returns:
        [B, C] float32, nats; candidates of equal answers have exactly equal scores.
    """
    log_probs = trie_log_probs(llm, inputs_embeds, attention_mask, position_ids, build_trie(answer_ids))
    # In float64 the sum is exact, so that it does not depend on how far the batch pads its answers.
    return log_probs.double().sum(2).float()


def answer_log_probs(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    answer_ids: torch.Tensor,
) -> torch.Tensor:
    """Log-probability of every token of every candidate's answer given the row's prompt and its beginning.

    One pass reads each prompt and, behind it, the packed tree of the row's answers, under a block mask. The cost is that of
    T + Q tokens a row, Q the number of distinct beginnings of its answers, instead of C (T + A); logits are made for
    B x (1 + Q) tokens. No key-value cache: nothing is read twice, and compiled blocks see what they see in training.

    Args:
        llm: a causal LM in evaluation mode, wrapped by peft or not.
        inputs_embeds: [B, T, D] prompts, padded on the left.
        attention_mask: [B, T] 1 on tokens, 0 on padding.
        position_ids: [B, T] 0 at the row's first token.
        answer_ids: [B, C, A] token ids, each answer with its EOS, padded on the right with -100.

    Returns:
        [B, C, A] float32, nats, 0 on padding.

    Raises:
        ValueError: prompts padded on the right, an LLM in training mode, or answers that ``build_trie`` refuses.
        UserError: an LLM whose attention cannot read a tree.
    """
    return trie_log_probs(llm, inputs_embeds, attention_mask, position_ids, build_trie(answer_ids))


@torch.no_grad()
def trie_log_probs(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    trie: AnswerTrie,
) -> torch.Tensor:
    """``answer_log_probs`` of a tree that is built already."""
    check_prompts(llm, attention_mask)
    _check_attention(causal_lm(llm), attention_mask.shape[1] + trie.answer_ids.shape[2])
    n_nodes = trie.node_ids.shape[1]
    nodes = input_embeddings(llm)(trie.node_ids).to(inputs_embeds.dtype)  # [B, Q, D]
    logits = llm(
        inputs_embeds=torch.cat([inputs_embeds, nodes], 1),
        attention_mask=_block_mask(causal_lm(llm), attention_mask, trie.visible, inputs_embeds.dtype),
        position_ids=torch.cat([position_ids, position_ids[:, -1:] + 1 + trie.node_depth], 1),
        use_cache=False,
        logits_to_keep=1 + n_nodes,
    ).logits  # [B, 1 + Q, V]
    # An answer's first token is predicted by the prompt's end, each further one by the node of the one before it.
    places = torch.cat([torch.zeros_like(trie.path[:, :, :1]), trie.path[:, :, :-1] + 1], 2)  # [B, C, A]
    return _log_softmax_at(logits, places, trie.answer_ids)


def _log_softmax_at(logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens at places, in float32.

    Args:
        logits: [B, P, V]
        places: [B, C, M] which of the P each token is predicted at.
        tokens: [B, C, M] token ids, -100 where nothing is asked.

    Returns:
        [B, C, M], 0 where nothing is asked.
    """
    is_asked = tokens != IGNORED_LABEL
    places, tokens = torch.where(is_asked, places, 0), tokens.clamp(min=0)
    picked = torch.empty(tokens.shape, device=logits.device)
    at_once = max(1, _LOGITS_AT_ONCE // logits[0].numel())
    for first in range(0, len(logits), at_once):
        part = slice(first, first + at_once)
        log_probs = logits[part].float().log_softmax(2)
        rows = torch.arange(len(log_probs), device=logits.device)[:, None, None]
        picked[part] = log_probs[rows, places[part], tokens[part]]
    return torch.where(is_asked, picked, 0.0)


def _block_mask(
    model: PreTrainedModel, attention_mask: torch.Tensor, visible: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The mask under which prompts read what comes before, and nodes the prompt, their ancestors and themselves.

    Args:
        attention_mask: [B, T] of the prompts.
        visible: [B, Q, Q]

    Returns:
        [B, 1, T + Q, T + Q] bool, or what is added to the attention scores for eager attention.
    """
    n_rows, n_prompt = attention_mask.shape
    n_nodes = visible.shape[1]
    mask = torch.zeros(n_rows, n_prompt + n_nodes, n_prompt + n_nodes, dtype=torch.bool, device=attention_mask.device)
    mask[:, :, :n_prompt] = attention_mask.bool()[:, None]
    mask[:, :n_prompt, :n_prompt].tril_()
    mask[:, n_prompt:, n_prompt:] = visible
    mask.diagonal(dim1=1, dim2=2).fill_(
        True
    )  # padding reads itself: a softmax over nothing is NaN, which no zero weight undoes
    if model.config._attn_implementation != "eager":
        return mask[:, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[:, None]


def check_prompts(llm: nn.Module, attention_mask: torch.Tensor) -> None:
    """Raise where an answer would depend on chance or on the batch."""
    if llm.training:
        raise ValueError("the LLM is in training mode, so dropout would change its answers: call eval() first")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("a prompt ends in padding: expected prompts padded on the left")


def _check_attention(model: PreTrainedModel, n_tokens: int) -> None:
    """Raise where a mask of our own would not mean what it says."""
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise UserError(
            f"decoding score and constrained need sdpa or eager attention, found {attention!r}: "
            "load the LLM with one of them, or set decoding: generate"
        )
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    window = getattr(model.config, "sliding_window", None) if "sliding_attention" in layers else None
    if layers - {"full_attention", "sliding_attention"} or (window is not None and n_tokens > window):
        raise UserError(
            f"decoding score and constrained need layers that see the whole prompt; {type(model).__name__} has "
            f"{sorted(layers)} of window {window}, for {n_tokens} tokens: set decoding: generate"
        )
