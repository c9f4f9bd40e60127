"""Loading a causal language model with its tokenizer: in which types it computes, and what is refused."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from recbole_llara.config.settings import TRUST
from recbole_llara.llm.architecture import input_embeddings, keep_blocks
from recbole_llara.llm.quantized import check_quantized, choose_trainable, keep_differentiable, quantized_by, settle_dequantized
from recbole_llara.llm.source import describe_expected, hub_fault, refused, resolve_llm_path
from recbole_llara.utils.errors import UserError

NEEDS_CODE = "it needs code that does not come with transformers"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Capabilities as torch.cpu names them: x86 with AVX-512 or AMX, ARM with NEON or SVE.
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError)  # of a broken folder
NOISE = ("dropout", "pdrop", "layerdrop", "jitter_noise")  # in the names by which LLMs' configurations call what they draw


def load_llm(
    llm_path: str,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    llm_tuning: str = "lora",
    device: str | torch.device = "cpu",
    quantization: str = "none",
    llm_layers: int | Sequence[int] | None = None,
    files: tuple[PreTrainedConfig, PreTrainedTokenizerBase] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer, in evaluation mode, on the CPU; a quantised one on its device.

    Sampling settings that come with the model are dropped, so that greedy decoding is greedy; so is its own dropout, see
    ``without_noise``.

    Args:
        llm_path: what ``source.resolve_llm_path`` takes.
        dtype: auto, float32, bfloat16 or float16, the compute type, see ``resolve_compute_dtype``.
        attn_implementation: sdpa, eager, flash_attention_2, flex_attention; None = transformers' choice.
        trust_remote_code: run model code that comes with the weights.
        llm_tuning: lora, frozen or full; decides with ``device`` in which type weights are held.
        device: where the model is going to run.
        quantization: none, 8bit or 4bit, see ``quantization_config``.
        llm_layers: the decoder blocks that are kept, see ``architecture.keep_blocks``.
        files: what ``read_files`` gave; None = they are read.

    Raises:
        UserError: what ``read_files`` or ``keep_blocks`` refuses, unreadable or missing weights, quantised weights that were to be
            trained, or a quantization whose library is not installed.
    """
    source = resolve_llm_path(llm_path)
    config, tokenizer = files or read_files(llm_path, trust_remote_code)
    compute_dtype = resolve_compute_dtype(dtype, device)
    held_dtype = weight_dtype(compute_dtype, llm_tuning, device)
    method, placed = quantized_by(config), {}
    if (quantized := quantization_config(quantization, compute_dtype)) is not None:
        if method is not None:
            raise UserError(
                f"llm_quantization: found {quantization}, but the weights of {llm_path!r} are quantised already: set it to none"
            )
        placed["quantization_config"] = quantized
    if quantized is not None or method is not None:
        placed["device_map"] = {"": str(device)}
    choose_trainable(config)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            source.where,
            config=without_noise(config),
            dtype=held_dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **placed,
            **source.options(trust_remote_code),
        )
        if source.adapter is not None:
            model = PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
    except (*UNREADABLE, SafetensorError, UnpicklingError) as error:
        if method is not None:
            found = f"its weights are quantised by {method}, and transformers cannot read them here ({why(error, TRUST)})"
            raise refused(
                llm_path, f"{found}, expected whole weights, a .gguf file, or a machine with what it asks for"
            ) from error
        found = "a folder without a readable causal LM" if source.is_local else "no folder here, nor a hub model within reach"
        raise refused(llm_path, f"{found} ({why(error, TRUST)}). {describe_expected(llm_path)}") from error
    if loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[:3]
        raise refused(llm_path, f"its weights lack {lacking}, expected every tensor of the model")
    if method is not None and not is_quantized(model):
        settle_dequantized(model, held_dtype)
    if is_quantized(model) and llm_tuning == "full":
        found = f"llm_tuning: found full, but the weights of {llm_path!r} are quantised by {quantized_by(model.config)}"
        raise UserError(f"{found} and cannot be trained: expected lora or frozen")
    keep_differentiable(model)
    keep_blocks(model, llm_layers)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), tokenizer


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether an LLM's weights are held quantised."""
    return quantized_by(model.config) is not None


def read_files(llm_path: str, trust_remote_code: bool) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """An LLM's configuration and tokenizer.

    The padding id is the tokenizer's own or, without one, that of its EOS token: the vocabulary never grows.

    Raises:
        UserError: one of them, or the beginning of its weights, cannot be read; code that is not to be run; no EOS token; weights
            quantised by what is not installed.
    """
    source = resolve_llm_path(llm_path)
    options = source.options(trust_remote_code)
    try:
        check_no_code(source.where, options)
        config = AutoConfig.from_pretrained(source.where, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if not source.is_local and (fault := hub_fault(error, str(source.where))):
            raise refused(llm_path, fault) from error
        found = f"no model's config.json can be read there ({why(error, TRUST)})"
        raise refused(llm_path, f"{found}. {describe_expected(llm_path)}") from error
    check_quantized(llm_path, config)
    for file in sorted(source.where.glob("*.safetensors")) if isinstance(source.where, Path) else ():
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            found = f"{file.name} cannot be read ({first_line(error)})"
            raise refused(llm_path, f"{found}, expected a whole safetensors file: copy it again") from error
    expected = "expected tokenizer.json or tokenizer.model beside the weights"
    try:
        tokenizer = read_tokenizer(source.where, options)
    except (OSError, ValueError, ImportError) as error:
        raise refused(llm_path, f"no tokenizer can be read there ({why(error, TRUST)}), {expected}") from error
    # Without its files, some architectures' tokenizers come back empty instead of failing.
    if tokenizer.decode(tokenizer.encode("title", add_special_tokens=False)).strip() != "title":
        raise refused(llm_path, f"its tokenizer has no vocabulary, {expected}")
    if tokenizer.eos_token_id is None:
        raise refused(llm_path, "its tokenizer has no EOS token, expected one to end an answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def without_noise(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set an LLM's own dropout and noise to 0, in place, and return its configuration.

    They draw from the device's generator inside a pass, so a loss would depend on how a step is cut into passes, and on the
    device. The Llama family has none; GPT-2 and OPT drop 0.1, PhiMoE's router adds noise. ``lora_dropout`` is what remains.
    """
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and value > 0 and any(word in name for word in NOISE):
                setattr(part, name, 0.0)
    return config


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that an LLM of this config can hold; of one that reads images too, its language model. None = no limit."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def read_tokenizer(source: Path | str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """transformers' AutoTokenizer; whatever a broken file leads to is an OSError, ValueError or ImportError."""
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if type(error) is Exception:  # the Rust code of tokenizers knows no other kind
            raise ValueError(str(error)) from error
        raise


def check_no_code(source: Path | str, options: Mapping[str, Any]) -> None:
    """Refuse a model whose config.json needs, or asks for, code that transformers does not bring.

    ``auto_map`` names files beside the weights; an ``attn_implementation`` with a slash is a kernel of the hub, which is compiled
    code that transformers would fetch and run.

    Args:
        source: a folder or the id of a hub model.
        options: of ``from_pretrained``; with a true ``trust_remote_code`` nothing is refused.

    Raises:
        ValueError, OSError: it does; there is no config.json that can be read.
    """
    if options["trust_remote_code"]:
        return
    asked = {key: value for key, value in options.items() if key != "trust_remote_code"}
    config, _ = PretrainedConfig.get_config_dict(source, **asked)
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(f"{NEEDS_CODE}: model_type {config.get('model_type')!r}, auto_map {config['auto_map']!r}")
    kernels = [name for name in _attention_names(config) if "/" in name]
    if kernels:
        raise ValueError(f"{NEEDS_CODE}: attn_implementation {kernels[0]!r}")


def _attention_names(config: Any) -> list[str]:
    """Every text that stands, at any depth, below a key that chooses how attention or experts are computed."""
    if not isinstance(config, dict):
        return []
    chosen = [
        value for key, value in config.items() if "attn_implementation" in str(key) or "experts_implementation" in str(key)
    ]
    names = [str(name) for value in chosen for name in (value.values() if isinstance(value, dict) else [value])]
    return names + [name for value in config.values() for name in _attention_names(value)]


def why(error: Exception, trust_key: str | None = None) -> str:
    """Why transformers cannot read a model, in a line; ``trust_key`` is the key by which the user lets code of the folder run."""
    text = str(error)
    if not any(sign in text for sign in (NEEDS_CODE, "trust_remote_code", "custom code")):
        return first_line(error)
    unless = "" if trust_key is None else f" unless you give --{trust_key}=True"
    return f"{text if text.startswith(NEEDS_CODE) else NEEDS_CODE}; such code is not run{unless}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def resolve_compute_dtype(dtype: str, device: str | torch.device) -> torch.dtype:
    """The type of the matrix products: for "auto", bfloat16 where the device multiplies it natively, else float32."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"llm_dtype is {dtype!r}, expected auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if torch.device(device).type == "cuda":
        # Emulated bfloat16 (cards before Ampere) is slower than float32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Instructions for the products, not merely a library that emulates them; an older torch does not tell.
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = torch.device(device).type == "cpu" and any(capabilities.get(name, False) for name in BF16_CAPABILITIES)
    return torch.bfloat16 if native else torch.float32


def evaluation_dtype(dtype: str, weights: torch.dtype) -> torch.dtype:
    """The type of an evaluation's matrix products: for "auto" that of the weights; a UserError for a finer one than theirs."""
    if dtype == "auto":
        return weights
    if DTYPES[dtype].itemsize > weights.itemsize:
        held = str(weights).removeprefix("torch.")
        raise UserError(
            f"eval_dtype: found {dtype}, but the LLM's weights are held in {held}; expected auto, or llm_dtype {dtype} too"
        )
    return DTYPES[dtype]


def hold_products(llm: nn.Module, dtype: torch.dtype) -> None:
    """Hold the float32 weights of an LLM's matrix products in the type that autocast multiplies them in, in place.

    The products are the same, and nothing is cast for them any more. What is embedded stays in float32, and with it a head of the
    same weights.
    """
    embedded = input_embeddings(llm).weight
    for module in llm.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for tensor in (module.weight, module.bias):
                if tensor is not None and tensor is not embedded and tensor.dtype == torch.float32:
                    tensor.data = tensor.data.to(dtype)


def weight_dtype(compute_dtype: torch.dtype, llm_tuning: str, device: str | torch.device) -> torch.dtype:
    """The type in which the LLM's own weights are held; where it differs from the compute type, run under autocast.

    Weights that are trained are held in float32: an update of lr 1e-4 is lost in the 8 bits of bfloat16. Frozen
    ones are held in the compute type on an accelerator, where memory is what a 7B model runs out of, and in
    float32 on a CPU, where evaluation runs in float32 too.
    """
    if llm_tuning == "full" or torch.device(device).type == "cpu":
        return torch.float32
    return compute_dtype


def quantization_config(quantization: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers wants to be told: LLM.int8 for 8bit, QLoRA's double-quantised NF4 for 4bit.

    Linears of the decoder blocks are quantised, embeddings and head are not. ``compute_dtype`` is that of the products, for
    4bit; 8bit takes float16 for its outliers. A UserError where bitsandbytes is not installed.
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
