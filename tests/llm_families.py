"""LLM families of transformers at toy width, drawn from a seed: windows, biases and layers of every kind."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

WINDOW = 16
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
WINDOWED = {"sliding_window": WINDOW}
MIXED = {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}
# An image encoder of as many blocks as the language model has, whose layers bear the same names.
IMAGES = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "image_token_id": 4,
    "boi_token_index": 3,
    "eoi_token_index": 2,
}  # fmt: skip

# (config, its values)
TREE = {
    "Llama": ("LlamaConfig", GROUPED),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "Qwen2": ("Qwen2Config", GROUPED),
    "Qwen2 with a window": ("Qwen2Config", {**GROUPED, **WINDOWED, "use_sliding_window": True, "max_window_layers": 1}),
    "Qwen3": ("Qwen3Config", WIDE),
    "Mistral": ("MistralConfig", {**GROUPED, **WINDOWED}),
    "Mixtral": ("MixtralConfig", {**GROUPED, **WINDOWED, "num_local_experts": 4}),
    "Phi-3": ("Phi3Config", {**GROUPED, **WINDOWED}),
    "PhiMoE": ("PhimoeConfig", {**GROUPED, **WINDOWED, "num_local_experts": 4}),
    "Starcoder2": ("Starcoder2Config", {**GROUPED, **WINDOWED}),
    "Gemma": ("GemmaConfig", WIDE),
    "Gemma 2": ("Gemma2Config", {**WIDE, **WINDOWED}),
    "Gemma 3": ("Gemma3TextConfig", {**WIDE, **MIXED}),
    "Gemma 3 with images": ("Gemma3Config", {**WIDE, **MIXED}),
    "gpt-oss": ("GptOssConfig", {**WIDE, **MIXED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Cohere2": ("Cohere2Config", {**GROUPED, **MIXED}),
    "Llama 4": (
        "Llama4TextConfig",
        {**WIDE, "intermediate_size_mlp": 48, "attention_chunk_size": WINDOW, "num_local_experts": 2, "no_rope_layers": [1, 0]},
    ),
    "Falcon": ("FalconConfig", {**SHAPE, "alibi": False}),
    "OPT": ("OPTConfig", {**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.4, "max_position_embeddings": 512}),
    "GPT-NeoX": ("GPTNeoXConfig", SHAPE),
    "Phi": ("PhiConfig", SHAPE),
    "OLMo 2": ("Olmo2Config", GROUPED),
    "Granite": ("GraniteConfig", {**GROUPED, "embedding_multiplier": 12.0}),
    "StableLM": ("StableLmConfig", GROUPED),
}  # fmt: skip
# Those whose places are counted in columns or that have no mask at all.
ONE_BY_ONE = {
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon with ALiBi": ("FalconConfig", {**SHAPE, "alibi": True}),
    "MPT": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 1]], "window_size": WINDOW,
        },
    ),
    "Mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "LFM2": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "RecurrentGemma": (
        "RecurrentGemmaConfig",
        {**GROUPED, "num_hidden_layers": 3, "attention_window_size": WINDOW, "lru_width": 32},
    ),
}  # fmt: skip
REFUSED = {
    "BERT": ("BertConfig", SHAPE),
    "RoBERTa": ("RobertaConfig", {**SHAPE, "max_position_embeddings": 512}),
    "XLNet": ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "RWKV": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
}
FAMILIES = {**TREE, **ONE_BY_ONE, **REFUSED}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # as their configs call the number of blocks


def family_config(family: str, vocab_size: int, **changes: Any) -> PretrainedConfig:
    """A family's config, but for some values; weights are drawn so wide that answers differ by more than rounding."""
    name, values = FAMILIES[family]
    values = {**values, **changes}
    common = {"vocab_size": vocab_size, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    if "init_std" not in values:
        common["initializer_range"] = 0.4
    config = getattr(transformers, name)
    if name == "Gemma3Config":
        return config(text_config={**values, **common}, initializer_range=0.4, **IMAGES)
    return config(**values, **common)


def make_family(family: str, vocab_size: int, **changes: Any) -> PreTrainedModel:
    """A causal LM of a family, in evaluation mode."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(family_config(family, vocab_size, **changes)).eval()


def twice_as_deep(family: str) -> dict[str, Any]:
    """The values of a family's config that say how many blocks there are and of which kinds, for twice as many."""
    values = FAMILIES[family][1]
    return {key: value * 2 for key, value in values.items() if key in LAYERS or isinstance(value, list)}
