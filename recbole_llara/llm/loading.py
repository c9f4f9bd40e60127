"""The LLM: loading a causal language model with its tokenizer, choosing its arithmetic, and what of it is tuned.

Placement on a device is the caller's. RecBole-free.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from recbole_llara.config.settings import TRUST
from recbole_llara.llm.llm_path import check_no_code, describe_expected, first_line, read_tokenizer, resolve_llm_path, why
from recbole_llara.llm.lora import make_lean
from recbole_llara.llm.precision import resolve_compute_dtype, weight_dtype
from recbole_llara.llm.quantization import quantization_config
from recbole_llara.utils.errors import UserError

LLM_TUNINGS = ("lora", "frozen", "full")
NOISE = ("dropout", "pdrop", "layerdrop", "jitter_noise")  # in the names by which LLMs' configurations call what they draw


def load_llm(
    llm_path: str,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    llm_tuning: str = "lora",
    device: str | torch.device = "cpu",
    quantization: str = "none",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer, in evaluation mode, on the CPU; a quantised one on its device.

    The tokenizer's padding id is its own or, without one, that of its EOS token: the vocabulary never grows.
    Sampling settings that come with the model are dropped, so that greedy decoding is greedy; so is its own dropout, see
    ``without_noise``.

    Args:
        llm_path: "tiny" (the embedded Llama), a folder, or the id of a model of the Hugging Face hub.
        dtype: auto, float32, bfloat16 or float16, the compute type, see ``resolve_compute_dtype``.
        attn_implementation: sdpa, eager, flash_attention_2 ...; None = transformers' choice.
        trust_remote_code: run model code that comes with the weights.
        llm_tuning: lora, frozen or full; decides with ``device`` in which type weights are held.
        device: where the model is going to run.
        quantization: none, 8bit or 4bit, see ``quantization.quantization_config``.

    Raises:
        UserError: no such folder or model, weights or tokenizer missing, a tokenizer that does not fit, or a quantization
            whose library is not installed.
    """
    source = resolve_llm_path(llm_path)
    is_local = isinstance(source, Path)
    compute_dtype = resolve_compute_dtype(dtype, device)
    held_in = weight_dtype(compute_dtype, llm_tuning, device)
    options = {"local_files_only": is_local, "trust_remote_code": trust_remote_code}
    quantized = quantization_config(quantization, compute_dtype)
    placed = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": str(device)}}
    try:
        check_no_code(source, options)
        config = without_noise(AutoConfig.from_pretrained(source, **options))
        model, loaded = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=held_in,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **placed,
            **options,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        found = "a folder without a readable causal LM" if is_local else "no folder here, nor a hub model within reach"
        raise UserError(f"llm_path is {llm_path!r}: {found} ({why(error, TRUST)}). {describe_expected(llm_path)}") from error
    if loaded["missing_keys"]:
        raise UserError(
            f"llm_path is {llm_path!r}: its weights lack {sorted(loaded['missing_keys'])[:3]}, "
            "expected every tensor of the model"
        )
    tokenizer = load_tokenizer(llm_path, source, options)
    check_vocabulary(llm_path, tokenizer, model.get_input_embeddings().num_embeddings)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), tokenizer


def without_noise(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set an LLM's own dropout and noise to 0, in place, and return its configuration.

    They draw from the device's generator inside a pass, so a loss would depend on how a step is cut into passes, and on the
    device. The Llama family has none; GPT-2 and OPT drop 0.1, PhiMoE's router adds noise. ``lora_dropout`` is what remains.
    """
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if isinstance(value, float) and value > 0 and any(word in name for word in NOISE):
                setattr(part, name, 0.0)
    return config


def load_tokenizer(llm_path: str, source: Path | str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """An LLM's tokenizer, its padding id set.

    Args:
        llm_path: for messages.
        source: what ``resolve_llm_path`` found.
        options: of ``from_pretrained``.

    Raises:
        UserError: no tokenizer there, an empty one, or one without EOS.
    """
    try:
        tokenizer = read_tokenizer(source, options)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"llm_path is {llm_path!r}: no tokenizer can be read there ({why(error, TRUST)}), "
            "expected tokenizer.json or tokenizer.model beside the weights"
        ) from error
    # Without its files, some architectures' tokenizers come back empty instead of failing.
    if tokenizer.decode(tokenizer.encode("title", add_special_tokens=False)).strip() != "title":
        raise UserError(
            f"llm_path is {llm_path!r}: its tokenizer has no vocabulary, "
            "expected tokenizer.json or tokenizer.model beside the weights"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"llm_path is {llm_path!r}: its tokenizer has no EOS token, expected one to end an answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(llm_path: str, tokenizer: PreTrainedTokenizerBase, n_embeddings: int | None) -> None:
    """Refuse a tokenizer with more tokens than the LLM has input embeddings; None = not known.

    Raises:
        UserError: it has.
    """
    if n_embeddings is not None and len(tokenizer) > n_embeddings:
        raise UserError(
            f"llm_path is {llm_path!r}: its tokenizer has {len(tokenizer)} tokens, "
            f"its embedding table {n_embeddings} rows, expected a row for every token"
        )


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that an LLM of this config can hold; of one that reads images too, its language model. None = no limit."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, out of a peft wrapper if there is one (its LoRA layers stay in place)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def input_embeddings(model: nn.Module) -> nn.Module:
    """The table that turns token ids [..., T] into embeddings [..., T, D]."""
    return causal_lm(model).get_input_embeddings()


def embedded_vocabulary(model: nn.Module) -> torch.Tensor:
    """[V, D] what the LLM's embedding layer gives out for each of its tokens: some multiply their table, as Gemma's does."""
    layer = input_embeddings(model)
    with torch.no_grad():
        return layer(torch.arange(layer.num_embeddings, device=layer.weight.device))


def hidden_states(
    model: nn.Module, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """The decoder's last hidden states [B, T, D], after its final norm, without the language-model head."""
    return decoder_of(causal_lm(model))(
        inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal LM below its language-model head."""
    if model.base_model is not model:
        return model.base_model
    blocks = decoder_blocks(model)  # Llama 4 takes itself for its base: the child that holds the blocks
    return next(child for child in model.children() if any(part is blocks for part in child.modules()))


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks.

    Raises:
        UserError: there is none.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    # Of a model that reads images too, those of its language model.
    for module in (model.get_decoder() or model.base_model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise UserError(
        f"{type(model).__name__} has no list of {n_layers} decoder blocks, which lora and fsdp need: use llm_tuning frozen or full"
    )


def block_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the decoder blocks, as ``self_attn.q_proj``: the same in every block.

    Never the language-model head, nor anything else outside the blocks.

    Raises:
        UserError: no decoder blocks, or no linear layers in them.
    """
    named = (entry for block in decoder_blocks(model) for entry in block.named_modules())
    names = {name for name, layer in named if isinstance(layer, (nn.Linear, Conv1D))}
    if not names:
        raise UserError(f"llm_tuning is 'lora', but the blocks of {type(model).__name__} hold no linears: use frozen or full")
    return sorted(names)


def tune(
    model: PreTrainedModel,
    llm_tuning: str,
    lora_r: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_target_modules: str | Sequence[str],
) -> nn.Module:
    """Decide which of the LLM's weights are trained.

    Args:
        model: a causal LM.
        llm_tuning: lora (adapters alone), frozen (nothing) or full (everything).
        lora_r: (int) rank of the adapters.
        lora_alpha: (int) scale; the adapters' output is multiplied by alpha / r.
        lora_dropout: (float, share) dropout before the adapters.
        lora_target_modules: "auto" = every linear of the decoder blocks, or the ends of their names, as q_proj.

    Returns:
        The model, wrapped by peft for lora. The adapters' first values come from torch's global generator.

    Raises:
        UserError: an unknown llm_tuning, a target that no linear layer of the blocks is called by, or one that peft refuses.
    """
    if llm_tuning not in LLM_TUNINGS:
        raise UserError(f"llm_tuning is {llm_tuning!r}, expected {', '.join(LLM_TUNINGS)}")
    model.requires_grad_(llm_tuning == "full")
    if llm_tuning != "lora":
        return model
    targets = _lora_targets(block_linears(model), lora_target_modules)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=targets,
        exclude_modules=_outside_blocks(model, targets) or None,
        # Conv1D (GPT-2) keeps its weight transposed; peft would set this itself, with a warning.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        return make_lean(get_peft_model(model, config))
    except ValueError as error:  # layers that peft cannot adapt, as some of a Mamba
        raise UserError(
            f"lora_target_modules is {lora_target_modules!r} for {type(model).__name__}: {first_line(error)}. Expected some of "
            f"{_last_names(block_linears(model))}, or llm_tuning frozen or full"
        ) from error


def _last_names(linears: Sequence[str]) -> list[str]:
    return sorted({name.split(".")[-1] for name in linears})


def _outside_blocks(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Layers that peft would adapt for their names' ends, but that read no text: those of an image encoder."""
    inside = {id(layer) for block in decoder_blocks(model) for layer in block.modules()}
    ends = tuple(f".{target}" for target in targets)
    return [name for name, layer in model.named_modules() if name.endswith(ends) and id(layer) not in inside]


def _lora_targets(linears: list[str], wanted: str | Sequence[str]) -> list[str]:
    """The names among ``linears`` that ``wanted`` means."""
    if wanted == "auto":
        return linears
    ends = [wanted] if isinstance(wanted, str) else list(wanted)
    found = {end: [name for name in linears if name == end or name.endswith(f".{end}")] for end in ends}
    unknown = [end for end in ends if not found[end]]
    if unknown or not ends:
        raise UserError(f"lora_target_modules has {unknown or ends}, expected auto or some of {_last_names(linears)}")
    return sorted({name for names in found.values() for name in names})
