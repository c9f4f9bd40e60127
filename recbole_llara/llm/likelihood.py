"""Likelihoods of answers: of the targets' in training, and of all candidates' with or without gradient.

Answers are [B, C, A] token ids on the CPU, each with its EOS, padded on the right with -100; prompts of candidates are padded on
the left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from recbole_llara.llm.answer_tree import build_trie, tree_masks
from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm, decoder_of, input_embeddings
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.utils.transfer import send

# Turned into float32 log-probabilities together, 64 MB: those of all logits would be the largest tensors of an evaluation.
_LOGITS_AT_ONCE = 1 << 24

# Called with the position ids [B, S] of each pass of the LLM before it is made, so that dropout can be told its tokens.
BeforePass = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class AnswerPass:
    """What one pass over prompts and answers gives."""

    token_losses: torch.Tensor  # [B, K] float32, the negative log-likelihood of each answer token in nats; 0 elsewhere
    counts: torch.Tensor  # [B] int64, the number of tokens of each row's answer
    states: torch.Tensor | None  # [B, T, D] the decoder's last states, what the head reads; None unless they were asked for

    @property
    def sums(self) -> torch.Tensor:
        """[B] the negative log-likelihood of each row's answer."""
        return self.token_losses.sum(1)


def answer_pass(llm: nn.Module, prompts: EmbeddedPrompts, labels: torch.Tensor, with_states: bool = False) -> AnswerPass:
    """Negative log-likelihood of each row's answer tokens.

    The head runs on the columns from the first one that predicts a label of any row on, so that its cost is
    B x K x V with K = the longest answer when prompts are padded on the left; padded on the right, the result
    is the same and K grows to the width of the ragged edge.

    Args:
        llm: a causal LM, wrapped by peft or not.
        prompts: with their answers.
        labels: [B, T] the answer's tokens in their places, -100 elsewhere, on the CPU; the shift happens here.
        with_states: whether to return the decoder's states too.

    Raises:
        ValueError: no row has a label, or a label stands in the first column, where nothing predicts it.
    """
    has_label = (labels != IGNORED_LABEL).any(0)  # [T]
    if not bool(has_label.any()):
        raise ValueError(
            f"no answer token among labels of shape {tuple(labels.shape)}: expected at least one that is not {IGNORED_LABEL}"
        )
    first = int(has_label.int().argmax())
    if first == 0:
        raise ValueError("an answer token in the first column: expected a prompt before every answer")
    device = prompts.inputs_embeds.device
    columns = torch.arange(first - 1, labels.shape[1] - 1, device=device)  # [K]
    model, states = causal_lm(llm), []  # peft's own wrapper passes no inputs_embeds on to an MPT
    # Read off the decoder itself: output_hidden_states gives none of blocks whose weights are sharded.
    hook = decoder_of(model).register_forward_hook(lambda _, inputs, output: states.append(output.last_hidden_state))
    try:
        logits = model(**vars(prompts), logits_to_keep=columns, use_cache=False).logits
    finally:
        hook.remove()
    targets = send(labels[:, first:], device)  # [B, K]
    # In fp32 whatever the arithmetic of the decoder: the sum over V exponentials needs the digits.
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    ).view_as(targets)  # [B, K]
    return AnswerPass(losses, (targets != IGNORED_LABEL).sum(1), states[0] if with_states else None)


def answers_among(log_probs: torch.Tensor, answer_ids: torch.Tensor, columns: torch.Tensor) -> AnswerPass:
    """The answers of one candidate a row, out of a pass that read those of all.

    Args:
        log_probs: [B, C, A] as an ``AnswerReader`` gives them.
        answer_ids: [B, C, A], on the CPU.
        columns: [B] which candidate, on the CPU.
    """
    rows = torch.arange(len(columns))
    counts = (answer_ids[rows, columns] != IGNORED_LABEL).sum(1)  # [B]
    own = log_probs[send(rows, log_probs.device), send(columns, log_probs.device)]  # [B, A]
    return AnswerPass(-own, send(counts, log_probs.device), None)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean [B, D] of the states [B, T, D] that a mask [B, T] keeps, in float32; best on the CPU, where it is looked into.

    Raises:
        ValueError: a row keeps nothing.
    """
    counts = mask.sum(1, keepdim=True)  # [B, 1]
    if bool((counts == 0).any()):
        row = int((counts[:, 0] == 0).nonzero()[0])
        raise ValueError(f"row {row} has no token to average: expected at least one in a mask of shape {tuple(mask.shape)}")
    # Few of the T: only these are read, and only these get a gradient.
    rows, columns, counts = (send(found, states.device) for found in (*mask.nonzero(as_tuple=True), counts))
    sums = torch.zeros(mask.shape[0], states.shape[2], device=states.device)
    return sums.index_add(0, rows, states[rows, columns].float()) / counts


class AnswerReader(Protocol):
    """What reads candidates' answers: ``trie_log_probs`` is the fast one, ``candidate_log_probs`` the plain one."""

    def __call__(
        self, llm: nn.Module, prompts: EmbeddedPrompts, answer_ids: torch.Tensor, before_pass: BeforePass | None = None
    ) -> torch.Tensor:
        """[B, C, A] float32, nats: the log-probability of each answer token given its prompt and the answer's beginning."""


@dataclass(frozen=True)
class Past:
    """What an LLM has read of B prompts already, P tokens at most; a pass adds to the cache what it reads."""

    cache: DynamicCache
    attention_mask: torch.Tensor  # [B, P] 1 on tokens, 0 on padding
    position_ids: torch.Tensor  # [B, P]


def trie_log_probs(
    llm: nn.Module,
    prompts: EmbeddedPrompts,
    answer_ids: torch.Tensor,
    before_pass: BeforePass | None = None,
    past: Past | None = None,
) -> torch.Tensor:
    """Log-probability of every token of every candidate's answer given the row's prompt and its beginning.

    One pass reads each prompt and, behind it, the packed tree of the row's answers, under a block mask. The cost is that of
    T + Q tokens a row, Q the number of distinct beginnings of its answers, instead of C (T + A); logits are made for
    B x (1 + Q) tokens. Without ``past`` there is no key-value cache: compiled blocks see what they see in training.

    Gradients flow unless the caller switches them off.

    Args:
        past: the beginnings of the prompts, of which ``prompts`` is the rest; None = nothing was read before.

    Returns:
        [B, C, A] float32, nats, 0 on padding.

    Raises:
        ValueError: prompts padded on the right, an LLM that is asked in training mode, one whose layers cannot read a tree, or
            answers of which no tree can be built.
    """
    check_prompts(llm, prompts)
    trie, model, device = build_trie(answer_ids), causal_lm(llm), prompts.inputs_embeds.device
    # An answer's first token is predicted by the prompt's end, each further one by the node of the one before it.
    places = torch.cat([torch.zeros_like(trie.path[:, :, :1]), trie.path[:, :, :-1] + 1], 2)  # [B, C, A]
    trie, places = trie.to(device), send(places, device)
    embeds, positions = _with_answers(model, prompts, trie.node_ids, trie.node_depth, before_pass)
    mask, all_positions, cached = prompts.attention_mask, positions, {"use_cache": False}
    if past is not None:
        mask, all_positions = torch.cat([past.attention_mask, mask], 1), torch.cat([past.position_ids, positions], 1)
        cached = {"use_cache": True, "past_key_values": past.cache}
    n_read = mask.shape[1] - prompts.attention_mask.shape[1]
    logits = model(
        inputs_embeds=embeds,
        attention_mask=tree_masks(model, mask, trie.visible, all_positions, embeds.dtype, n_read),
        position_ids=positions,
        logits_to_keep=1 + trie.node_ids.shape[1],
        **cached,
    ).logits  # [B, 1 + Q, V]
    return _log_softmax_at(logits, places, send(answer_ids, device))


def candidate_log_probs(
    llm: nn.Module, prompts: EmbeddedPrompts, answer_ids: torch.Tensor, before_pass: BeforePass | None = None
) -> torch.Tensor:
    """``trie_log_probs`` without a tree, for LLMs that cannot read one: each candidate's answer behind the prompt, C passes.

    Where answers have one token each, as letters have, the first pass tells of all.

    Every pass is what training makes: prompt and answer, a mask of tokens and padding, the LLM's own masks and positions.
    """
    check_prompts(llm, prompts)
    model, mask = causal_lm(llm), prompts.attention_mask
    answer_ids = send(answer_ids, mask.device)
    depth = torch.arange(answer_ids.shape[2], device=answer_ids.device)  # [A]
    places = depth.expand(len(answer_ids), 1, -1)  # [B, 1, A]
    found = []
    for tokens in answer_ids.unbind(1) if len(depth) > 1 else [answer_ids[:, 0]]:  # C times [B, A]
        embeds, positions = _with_answers(model, prompts, tokens.clamp(min=0), depth, before_pass)
        logits = model(
            inputs_embeds=embeds,
            attention_mask=torch.cat([mask, (tokens != IGNORED_LABEL).to(mask.dtype)], 1),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=mask.shape[1] - 1 + depth,
        ).logits  # [B, A, V]
        asked = tokens[:, None] if len(depth) > 1 else answer_ids  # [B, 1 or C, A]
        found.append(_log_softmax_at(logits, places.expand(-1, asked.shape[1], -1), asked))
    # Candidates of equal answers take the score of the first of them, whatever a kernel's roundings are.
    first = (answer_ids[:, :, None] == answer_ids[:, None]).all(3).int().argmax(2)  # [B, C]
    return torch.cat(found, 1).gather(1, first[:, :, None].expand_as(answer_ids))


def score_candidates(
    llm: nn.Module,
    prompts: EmbeddedPrompts,
    answer_ids: torch.Tensor,
    read: AnswerReader = trie_log_probs,
    before_pass: BeforePass | None = None,
) -> torch.Tensor:
    """Log-likelihood of every candidate's answer, EOS included, given the row's prompt.

    ``s_bc = sum_j log p(y_bcj | prompt_b, y_bc,<j)``: no division by the length, since the EOS already decides
    where an answer ends and the s_bc of all texts sum to one.

    Returns:
        [B, C] float32, nats; candidates of equal answers have exactly equal scores.
    """
    return answer_scores(read(llm, prompts, answer_ids, before_pass))


def answer_scores(log_probs: torch.Tensor) -> torch.Tensor:
    """[B, C] float32 sums of log-probabilities [B, C, A]."""
    # In float64 the sum is exact, so that it does not depend on how far the batch pads its answers.
    return log_probs.double().sum(2).float()


def _with_answers(
    model: nn.Module, prompts: EmbeddedPrompts, tokens: torch.Tensor, depth: torch.Tensor, before_pass: BeforePass | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [B, T + M, D] and positions [B, T + M] of prompts and tokens [B, M] that stand so deep behind them."""
    positions = torch.cat([prompts.position_ids, prompts.position_ids[:, -1:] + 1 + depth], 1)
    if before_pass is not None:
        before_pass(positions)
    embeds = prompts.inputs_embeds
    return torch.cat([embeds, input_embeddings(model)(tokens).to(embeds.dtype)], 1), positions


def _log_softmax_at(logits: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in float32 of tokens [B, C, M] at places [B, C, M] of logits [B, P, V]; 0 where the token is -100."""
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


def check_prompts(llm: nn.Module, prompts: EmbeddedPrompts) -> None:
    """Raise where an answer would depend on chance or on the batch. What lies on a GPU is not looked into: training would wait."""
    if llm.training and not torch.is_grad_enabled():
        raise ValueError("the LLM is in training mode, so dropout would change its answers: call eval() first")
    if prompts.attention_mask.device.type == "cpu" and not bool(prompts.attention_mask[:, -1].all()):
        raise ValueError("a prompt ends in padding: expected prompts padded on the left")
