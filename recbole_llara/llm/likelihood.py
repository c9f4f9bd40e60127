"""Likelihoods of the candidates' answers: one pass over prompts and answers, or one for each candidate. RecBole-free."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from recbole_llara.llm.answer_tree import IGNORED_LABEL, AnswerTrie, build_trie
from recbole_llara.llm.loading import causal_lm, input_embeddings

# Turned into float32 log-probabilities together, 64 MB: those of all logits would be the largest tensors of an evaluation.
_LOGITS_AT_ONCE = 1 << 24

# What reads the answers of a tree: LLM, inputs_embeds [B, T, D], attention_mask [B, T], position_ids [B, T] and the tree in,
# log-probabilities [B, C, A] of the answers' tokens out. ``trie_log_probs`` is the fast one, ``candidate_log_probs`` the plain one.
AnswerReader = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, AnswerTrie], torch.Tensor]


@torch.no_grad()
def trie_log_probs(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    trie: AnswerTrie,
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
        trie: the rows' answers, [B, C, A] tokens.

    Returns:
        [B, C, A] float32, nats, 0 on padding.

    Raises:
        ValueError: prompts padded on the right, an LLM in training mode, or one whose layers cannot read a tree.
    """
    check_prompts(llm, attention_mask)
    model = causal_lm(llm)
    n_nodes = trie.node_ids.shape[1]
    nodes = input_embeddings(model)(trie.node_ids).to(inputs_embeds.dtype)  # [B, Q, D]
    positions = torch.cat([position_ids, position_ids[:, -1:] + 1 + trie.node_depth], 1)  # [B, T + Q]
    logits = model(
        inputs_embeds=torch.cat([inputs_embeds, nodes], 1),
        attention_mask=tree_masks(model, attention_mask, trie.visible, positions, inputs_embeds.dtype),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=1 + n_nodes,
    ).logits  # [B, 1 + Q, V]
    # An answer's first token is predicted by the prompt's end, each further one by the node of the one before it.
    places = torch.cat([torch.zeros_like(trie.path[:, :, :1]), trie.path[:, :, :-1] + 1], 2)  # [B, C, A]
    return _log_softmax_at(logits, places, trie.answer_ids)


@torch.no_grad()
def candidate_log_probs(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    trie: AnswerTrie,
) -> torch.Tensor:
    """``trie_log_probs`` without a tree, for LLMs that cannot read one: each candidate's answer behind the prompt, C passes.

    Every pass is what training makes: prompt and answer, a mask of tokens and padding, the LLM's own masks and positions.

    Args, returns and raises: as ``trie_log_probs``.
    """
    check_prompts(llm, attention_mask)
    model, answer_ids = causal_lm(llm), trie.answer_ids
    n_prompt, n_answer = attention_mask.shape[1], answer_ids.shape[2]
    depth = torch.arange(n_answer, device=answer_ids.device)  # [A]
    positions = torch.cat([position_ids, position_ids[:, -1:] + 1 + depth], 1)  # [B, T + A]
    places = depth.expand(len(answer_ids), 1, -1)  # [B, 1, A]
    found = []
    for tokens in answer_ids.unbind(1):  # C times [B, A]
        is_token = tokens != IGNORED_LABEL
        answers = input_embeddings(model)(tokens.clamp(min=0)).to(inputs_embeds.dtype)  # [B, A, D]
        logits = model(
            inputs_embeds=torch.cat([inputs_embeds, answers], 1),
            attention_mask=torch.cat([attention_mask, is_token.to(attention_mask.dtype)], 1),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=n_prompt - 1 + depth,
        ).logits  # [B, A, V]
        found.append(_log_softmax_at(logits, places, tokens[:, None]))
    # Candidates of equal answers take the score of the first of them, whatever a kernel's roundings are.
    first = (answer_ids[:, :, None] == answer_ids[:, None]).all(3).int().argmax(2)  # [B, C]
    return torch.cat(found, 1).gather(1, first[:, :, None].expand_as(answer_ids))


def score_candidates(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    answer_ids: torch.Tensor,
    read: AnswerReader = trie_log_probs,
) -> torch.Tensor:
    """Log-likelihood of every candidate's answer, EOS included, given the row's prompt.

    ``s_bc = sum_j log p(y_bcj | prompt_b, y_bc,<j)``: no division by the length, since the EOS already decides
    where an answer ends and the s_bc of all texts sum to one.

    Args:
        llm, inputs_embeds, attention_mask, position_ids: as for ``trie_log_probs``.
        answer_ids: [B, C, A] token ids, each answer with its EOS, padded on the right with -100.
        read: how the answers are read.

    Returns:
        [B, C] float32, nats; candidates of equal answers have exactly equal scores.

    Raises:
        ValueError: as ``trie_log_probs``, or answers that ``build_trie`` refuses.
    """
    log_probs = read(llm, inputs_embeds, attention_mask, position_ids, build_trie(answer_ids))
    # In float64 the sum is exact, so that it does not depend on how far the batch pads its answers.
    return log_probs.double().sum(2).float()


def answer_log_probs(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    answer_ids: torch.Tensor,
    read: AnswerReader = trie_log_probs,
) -> torch.Tensor:
    """Log-probability of every token of every candidate's answer given the row's prompt and its beginning.

    Args and raises: as ``score_candidates``.

    Returns:
        [B, C, A] float32, nats, 0 on padding.
    """
    return read(llm, inputs_embeds, attention_mask, position_ids, build_trie(answer_ids))


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


def tree_masks(
    model: PreTrainedModel, attention_mask: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The masks under which prompts read what comes before, and nodes the prompt, their ancestors and themselves.

    Layers that see less by themselves see as much less here: the tree and the window. transformers counts a window in
    columns; behind a prompt these are the positions, in a tree they are not, so it is counted in positions.

    Example, a prompt of 3 tokens, nodes ``a``, ``b`` (after ``a``) and ``c`` (another beginning), window 3::

        position   0 1 2  3 4 3
              a    . # #  # . .
              b    . . #  # # .
              c    . # #  . . #

    Args:
        attention_mask: [B, T] of the prompts.
        visible: [B, Q, Q]
        positions: [B, T + Q]

    Returns:
        [B, 1, T + Q, T + Q] bool, or what is added to the attention scores for eager attention; for an LLM whose layers are
        of several types, as its config's ``layer_types`` says, one such mask for each type.

    Raises:
        ValueError: an attention that takes no such mask, or layers of another type.
    """
    config = model.config.get_text_config()
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"its attention is {attention}, expected sdpa or eager")
    tree = _tree_mask(attention_mask, visible)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        # As transformers reads such a config: one kind of layer throughout.
        limits = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        limited = [name for name, limit in limits.items() if getattr(config, limit, None) is not None]
        return _as_added(tree & _reach(limited[0] if limited else "full_attention", config, positions), attention, dtype)
    return {name: _as_added(tree & _reach(name, config, positions), attention, dtype) for name in sorted(set(layer_types))}


def _tree_mask(attention_mask: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[B, T + Q, T + Q] bool, what an answer's tokens descend from."""
    n_rows, n_prompt = attention_mask.shape
    n_nodes = visible.shape[1]
    mask = torch.zeros(n_rows, n_prompt + n_nodes, n_prompt + n_nodes, dtype=torch.bool, device=attention_mask.device)
    mask[:, :, :n_prompt] = attention_mask.bool()[:, None]
    mask[:, :n_prompt, :n_prompt].tril_()
    mask[:, n_prompt:, n_prompt:] = visible
    # Padding reads itself: a softmax over nothing is NaN, which no zero weight undoes.
    mask.diagonal(dim1=1, dim2=2).fill_(True)
    return mask


def _reach(layer_type: str, config: PretrainedConfig, positions: torch.Tensor) -> torch.Tensor:
    """[B, T + Q, T + Q] or [] bool, how far a layer of this type looks back.

    Args:
        positions: [B, T + Q]
    """
    query, key = positions[:, :, None], positions[:, None, :]
    if layer_type == "full_attention":
        return torch.ones((), dtype=torch.bool, device=positions.device)
    if layer_type == "sliding_attention":
        return query - key < config.sliding_window
    if layer_type == "chunked_attention":
        return query // config.attention_chunk_size == key // config.attention_chunk_size
    raise ValueError(f"it has layers of type {layer_type}, expected full, sliding or chunked attention")


def _as_added(mask: torch.Tensor, attention: str, dtype: torch.dtype) -> torch.Tensor:
    """A mask [B, S, S] in the shape [B, 1, S, S] and the kind that this attention takes."""
    if attention != "eager":
        return mask[:, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[:, None]


def check_prompts(llm: nn.Module, attention_mask: torch.Tensor) -> None:
    """Raise where an answer would depend on chance or on the batch."""
    if llm.training:
        raise ValueError("the LLM is in training mode, so dropout would change its answers: call eval() first")
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("a prompt ends in padding: expected prompts padded on the left")
