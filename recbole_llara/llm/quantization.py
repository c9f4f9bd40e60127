"""Frozen weights in 8 or 4 bits, by bitsandbytes through transformers."""

from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig

from recbole_llara.utils.errors import UserError


def quantization_config(quantization: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers wants to be told: LLM.int8 for 8bit, QLoRA's double-quantised NF4 for 4bit.

    Linears of the decoder blocks are quantised, embeddings and head are not.

    Args:
        quantization: none, 8bit or 4bit.
        compute_dtype: of the products, for 4bit; 8bit takes float16 for its outliers.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"llm_quantization: found {quantization}, but bitsandbytes is not installed: "
            'pip install "recbole-llara[quantization]", or set llm_quantization: none'
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute_dtype
    )
