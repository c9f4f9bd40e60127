"""Free generation of answers, read off the LLM as texts.

Prompts are padded on the left, with positions counted from each row's first token, so that a row's answer does not depend on
the rows beside it. Run it in float32 for that to hold to the last tie: under bfloat16 autocast the padding changes roundings of
1 part in 256, and near ties may turn.
"""

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm
from recbole_llara.llm.likelihood import check_prompts
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.tokens import spell
from recbole_llara.utils.transfer import send

# Everything of a model's own generation settings that would bend the likelihoods, switched off.
PLAIN_GENERATION = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "use_cache": True,
}


@torch.no_grad()
def decode_generate(
    llm: nn.Module,
    prompts: EmbeddedPrompts,
    answer_lengths: torch.Tensor,
    eos_token_id: int,
    pad_token_id: int,
    in_step: bool = False,
) -> torch.Tensor:
    """Free greedy generation by Hugging Face, stopped at EOS or at the row's own limit.

    Args:
        llm: a causal LM in evaluation mode, wrapped by peft or not.
        prompts: padded on the left.
        answer_lengths: [B] the most tokens a row may generate, EOS included: its longest candidate's.
        eos_token_id, pad_token_id: what ends an answer and what fills rows that ended; may be the same.
        in_step: whether all processes go on until the last of them is done, as they must where weights are sharded.

    Returns:
        [B, M] token ids before the EOS, -100 behind them.

    Raises:
        ValueError: prompts padded on the right, or an LLM in training mode.
    """
    check_prompts(llm, prompts)
    most, answer_lengths = int(answer_lengths.max()), send(answer_lengths, prompts.attention_mask.device)
    ends = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    generated = causal_lm(llm).generate(  # counts positions from the mask
        inputs_embeds=prompts.inputs_embeds,
        attention_mask=prompts.attention_mask,
        generation_config=GenerationConfig(max_new_tokens=most, **ends, **PLAIN_GENERATION),
        synced_gpus=in_step,
    )  # [B, M]
    # A batch runs until its longest row ends: a row keeps only what it would have generated alone.
    is_kept = (generated == eos_token_id).cumsum(1) == 0
    is_kept &= torch.arange(generated.shape[1], device=generated.device) < answer_lengths[:, None]
    return generated.masked_fill(~is_kept, IGNORED_LABEL)


def answer_texts(tokenizer: PreTrainedTokenizerBase, token_ids: torch.Tensor) -> list[str]:
    """B texts of tokens [B, M], -100 on padding; special tokens inside them show, so that they match no title."""
    return spell(tokenizer, [[token for token in row if token != IGNORED_LABEL] for row in token_ids.tolist()])
