"""Losses on the answer: the decoder reads the whole prompt, the language-model head only the answer's end."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from recbole_llara.llm.loading import causal_lm, decoder_of

IGNORED_LABEL = -100


@dataclass(frozen=True)
class AnswerPass:
    """What one pass over prompts and answers gives.

    Args:
        sums: [B] float32, the NLL of each row's answer in nats.
        counts: [B] int64, the number of its tokens.
        states: [B, T, D] the decoder's last states, what the head reads; None unless they were asked for.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    states: torch.Tensor | None


def answer_pass(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    labels: torch.Tensor,
    with_states: bool = False,
) -> AnswerPass:
    """Negative log-likelihood of each row's answer tokens, summed over the row.

    The head runs on the columns from the first one that predicts a label of any row on, so that its cost is
    B x K x V with K = the longest answer when prompts are padded on the left; padded on the right, the result
    is the same and K grows to the width of the ragged edge. Models that take no ``logits_to_keep`` would need
    the full B x T x V; all causal LMs of transformers 5 take it.

    Args:
        llm: a causal LM, wrapped by peft or not.
        inputs_embeds: [B, T, D]
        attention_mask: [B, T] 1 on tokens, 0 on padding.
        position_ids: [B, T] 0 at the row's first token.
        labels: [B, T] the answer's tokens in their places, -100 elsewhere; the shift happens here.
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
    n_tokens = labels.shape[1]
    columns = torch.arange(first - 1, n_tokens - 1, device=inputs_embeds.device)  # [K]
    model, states = causal_lm(llm), []
    # Read off the decoder itself: output_hidden_states gives none of blocks whose weights are dealt out.
    hook = decoder_of(model).register_forward_hook(lambda _, inputs, output: states.append(output.last_hidden_state))
    try:
        output = model(  # peft's own wrapper passes no inputs_embeds on to an MPT
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=columns,
            use_cache=False,
        )
    finally:
        hook.remove()
    targets = labels[:, first:]  # [B, K]
    # In fp32 whatever the arithmetic of the decoder: the sum over V exponentials needs the digits.
    losses = F.cross_entropy(
        output.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    ).view_as(targets)  # [B, K]
    return AnswerPass(losses.sum(1), (targets != IGNORED_LABEL).sum(1), states[0] if with_states else None)


def answer_loss(
    llm: nn.Module,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Mean negative log-likelihood over all answer tokens of the batch, as Hugging Face's ``labels=`` gives it.

    ``L = - sum_b sum_j log p(y_bj | prompt_b, y_b,<j) / sum_b |y_b|`` (LLaRA eq. 7, RSLLM eq. 2). Rows with long
    answers weigh more than rows with short ones; ``answer_pass`` gives the parts for any other mean, and for an
    exact mean over several micro-batches.

    Args and raises: as ``answer_pass``.

    Returns:
        A scalar, float32.
    """
    answers = answer_pass(llm, inputs_embeds, attention_mask, position_ids, labels)
    return answers.sums.sum() / answers.counts.sum()
