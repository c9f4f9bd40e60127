"""An LLM whose vocabulary holds the vectors of prompts' slots, for engines that read token ids and nothing else.

A trained behavioural token is a constant, so that it can be a row of the LLM's input table, and a prompt of the run is a list of token
ids. The head gets as many rows as the table. None of the new tokens is ever an answer, but each has a share of the probability, which
would lower that of every other token. So all new rows of the head are copies of one row, that of a token that the LLM gives no
probability to: their share is known from that token's probability, and ``without_copies`` takes it out again, exactly. RecBole-free.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_llara.llm.architecture import EmbeddedPrompts, embedded_vocabulary, input_embeddings
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.transfer import send

_SCALE_TOLERANCE = 1e-3  # relative, of what an embedding layer multiplies its table by


def without_copies(log_prob: float, silent: float, copies: int) -> float:
    """The log-probability of a token among the LLM's own, out of that among its own and the copies of one of them.

    ``p(t) = p'(t) / (1 - n p'(u))``, p' having n copies of token u beside u itself.

    Example: two tokens of probability 0.75 and 0.25, and two copies of the second: p' = 0.5, and 1/6 three times. Then
    ``0.5 / (1 - 2 / 6) = 0.75``.

    Args:
        log_prob: log p'(t), nats.
        silent: log p'(u), nats.
        copies: n.
    """
    share = copies * math.exp(silent)
    return log_prob - math.log1p(-min(share, 1 - 1e-12))


@torch.no_grad()
def silent_token(llm: PreTrainedModel, labels: torch.Tensor, embedded: EmbeddedPrompts) -> int:
    """The token that an LLM gives the least probability to, where it gives it the most, in the answers behind some prompts.

    Args:
        llm: in evaluation mode.
        labels: [B, T] the answers' tokens in their places, -100 elsewhere, on the CPU.
        embedded: prompts and answers.
    """
    rows, columns = (labels != IGNORED_LABEL).nonzero(as_tuple=True)
    logits = llm(**vars(embedded), use_cache=False).logits  # [B, T, V]
    told = logits[send(rows, logits.device), send(columns, logits.device) - 1].float().log_softmax(1)  # [n, V]
    return int(told.amax(0)[: input_embeddings(llm).num_embeddings].argmin())


@torch.no_grad()
def widen(llm: PreTrainedModel, vectors: torch.Tensor, silent: int) -> int:
    """Append vectors to an LLM's input table, and to its head as many copies of one token's row; in place.

    Where table and head were one, they are two afterwards.

    Args:
        llm: whole, not wrapped by peft.
        vectors: [R, D] as the decoder is to read them.
        silent: the token whose row of the head is copied.

    Returns:
        the id of the first new token; the others follow.

    Raises:
        UserError: the head is no linear layer over the vocabulary, or its table gives out something else than its rows.
    """
    name, table, head = type(llm).__name__, llm.get_input_embeddings(), llm.get_output_embeddings()
    first = table.num_embeddings
    if not isinstance(head, nn.Linear) or not isinstance(table, nn.Embedding) or len(head.weight) != first:
        raise UserError(
            f"for: the vocabulary of {name} cannot be widened: found a head of {type(head).__name__} over a table of "
            f"{type(table).__name__}, expected a linear one over an embedding of as many tokens; choose another llm_path"
        )
    rows = (vectors.to(table.weight.device, torch.float32) / _scale(llm, table)).to(table.weight.dtype)  # [R, D]
    copies = head.weight.data[silent].expand(len(rows), -1)
    head.weight = nn.Parameter(torch.cat([head.weight.data, copies]), requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(torch.cat([head.bias.data, head.bias.data[silent].expand(len(rows))]), requires_grad=False)
    table.weight = nn.Parameter(torch.cat([table.weight.data, rows]), requires_grad=False)
    table.num_embeddings = head.out_features = first + len(rows)
    text = llm.config.get_text_config()
    text.vocab_size = first + len(rows)
    llm.config.tie_word_embeddings = text.tie_word_embeddings = False
    return first


def _scale(llm: PreTrainedModel, table: nn.Embedding) -> float:
    """What an LLM's embedding layer multiplies its table by, as Gemma's does; a UserError where it does something else."""
    given, rows = embedded_vocabulary(llm).float(), table.weight.float()
    scale = float((given * rows).sum() / (rows * rows).sum())
    if not (given - scale * rows).abs().max() <= _SCALE_TOLERANCE * given.abs().max():
        raise UserError(
            f"for: the embedding layer of {type(llm).__name__} gives out something else than multiples of its table, expected a plain one; "
            "choose another llm_path"
        )
    return scale
