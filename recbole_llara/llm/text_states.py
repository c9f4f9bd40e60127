"""What an LLM knows of texts: its states a third of the way up, over the tokens of each text behind the words that begin a prompt.

A title's tokens say little of an item by themselves ("Nick", "Cave"). Depth and words were chosen by the validation rows of held-out items, see
the page "New items". RecBole-free.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from recbole_llara.llm.architecture import causal_lm, decoder_blocks, decoder_of, input_embeddings
from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.prompt.tokens import tokenise_inside

DEPTH = 1 / 3  # of the decoder's blocks
MOST_TOKENS = 256  # of a text; what is longer is cut
_TOKENS_AT_ONCE = 4096


class _Enough(Exception):
    """Raised behind the last block that is wanted."""


@torch.no_grad()
def text_states(
    llm: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    beginning: Sequence[int],
    texts: Sequence[str],
    is_whole_pass: bool = False,
    depth: float = DEPTH,
) -> torch.Tensor:
    """[n, D] float32, on the CPU: the LLM's states of n texts, each the mean over the text's tokens, LoRA adapters left out.

    Args:
        llm: a causal LM, wrapped by peft or not, in evaluation mode.
        beginning: tokens that stand before every text; an empty text has the state of the last of them.
        is_whole_pass: whether the blocks above are run too, as they must be where weights are sharded.
        depth: the share of the blocks behind which the states are read.

    Raises:
        UserError: an LLM whose decoder is not a list of blocks.
    """
    plain = causal_lm(llm)
    blocks, device = decoder_blocks(plain), input_embeddings(llm).weight.device
    last = blocks[max(0, round(depth * len(blocks)) - 1)]
    tokens = [of_text[:MOST_TOKENS] for of_text in tokenise_inside(tokenizer, [f" {text}" if text else "" for text in texts])]
    lengths = torch.tensor([len(beginning) + len(of_text) for of_text in tokens], dtype=torch.int64)
    order = lengths.argsort(descending=True)  # those of like length together, so that little is padded
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        if not is_whole_pass:
            raise _Enough

    found = torch.zeros(len(texts), plain.config.get_text_config().hidden_size)
    hook = last.register_forward_hook(keep)
    try:
        with llm.disable_adapter() if isinstance(llm, PeftModel) else nullcontext():
            start = 0
            while start < len(order):
                width = int(lengths[order[start]])
                rows = order[start : start + max(1, _TOKENS_AT_ONCE // max(1, width))]
                found[rows] = _pass(plain, [[*beginning, *tokens[row]] for row in rows.tolist()], len(beginning), device, kept)
                start += len(rows)
    finally:
        hook.remove()
    return found


def _pass(
    llm: nn.Module, rows: Sequence[Sequence[int]], before: int, device: torch.device, kept: list[torch.Tensor]
) -> torch.Tensor:
    """[b, D] of b rows of tokens, of which ``before`` are no part of the text; ``kept`` takes the states [b, T, D]."""
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    is_token, is_text = (torch.zeros(len(rows), width, dtype=torch.bool) for _ in range(2))
    for row, own in enumerate(rows):
        input_ids[row, : len(own)] = torch.tensor(own)
        is_token[row, : len(own)] = True
        is_text[row, min(before, len(own) - 1) : len(own)] = True
    with suppress(_Enough):
        decoder_of(llm)(input_ids=input_ids.to(device), attention_mask=is_token.long().to(device), use_cache=False)
    return masked_mean(kept.pop(), is_text).cpu()
