"""The parts of any causal LM, wrapped by peft or not, and what is done to its decoder blocks: left out, compiled, sharded."""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from recbole_llara.utils.errors import UserError, differences

_COMPILERS = ("g++", "clang++", "c++")
_OWN_NUMBER = {"layer_idx", "layer_id"}  # attributes of a block's parts
_BLOCK_NUMBERS = ("moe_layers", "mlp_only_layers", "attn_layer_indices")  # lists of a configuration that hold numbers of blocks


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


@dataclass(frozen=True)
class EmbeddedPrompts:
    """Prompts as a decoder reads them, by the names of its arguments."""

    inputs_embeds: torch.Tensor  # [B, T, D]
    attention_mask: torch.Tensor  # [B, T] 1 on tokens, 0 on padding; or what ``answer_tree.tree_masks`` returns
    position_ids: torch.Tensor  # [B, T] 0 at the row's first token


def hidden_states(model: nn.Module, prompts: EmbeddedPrompts) -> torch.Tensor:
    """The decoder's last hidden states [B, T, D], after its final norm, without the language-model head."""
    return decoder_of(causal_lm(model))(**vars(prompts), use_cache=False).last_hidden_state


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal LM below its language-model head."""
    if model.base_model is not model:
        return model.base_model
    blocks = decoder_blocks(model)  # Llama 4 takes itself for its base: the child that holds the blocks
    return next(child for child in model.children() if any(part is blocks for part in child.modules()))


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks; a UserError where there is none."""
    n_layers = model.config.get_text_config().num_hidden_layers
    # Of a model that reads images too, those of its language model.
    for module in (model.get_decoder() or model.base_model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise UserError(
        f"{type(model).__name__} has no list of {n_layers} decoder blocks, which lora, fsdp and llm_layers need: use llm_tuning frozen or full"
    )


def keep_blocks(model: PreTrainedModel, llm_layers: int | Sequence[int] | None) -> None:
    """Leave all but some decoder blocks out of an LLM and of its configuration, in place.

    Most middle blocks are of little use to recommendation (SLMRec, Xu et al. 2025). Saved and loaded by transformers alone, the
    LLM is the same; its configuration tells the blocks that were kept as ``llm_layers``.

    Args:
        llm_layers: how many, half of them from each end, an odd one from the beginning: 3 of 6 are 0, 1, 5; or their numbers,
            ascending; None = all.

    Raises:
        UserError: the LLM has no such blocks, or its architecture builds others from the configuration of those that are kept.
    """
    if llm_layers is None:
        return
    name, count = type(model).__name__, len(decoder_blocks(model))
    if isinstance(llm_layers, int):
        kept = [*range(llm_layers - llm_layers // 2), *range(count - llm_layers // 2, count)]
    else:
        kept = list(llm_layers)
    found = f"llm_layers: found {llm_layers if isinstance(llm_layers, int) else kept}"
    if not kept or kept != sorted(set(kept) & set(range(count))):
        raise UserError(
            f"{found}, expected 1 to {count}, or a list of ascending block numbers from 0 to {count - 1}: {name} has {count} blocks"
        )
    if len(kept) == count:
        return
    # Some blocks depend on their number, or on other blocks, by what no list of the configuration says.
    try:
        whole = _without_weights(model, deepcopy(model.config))
        for each in (model, whole):
            _leave_out(each, kept)
        built = _without_weights(model, type(model.config).from_dict(model.config.to_dict()))
        differing = differences(_structure(built), _structure(whole))
    except (ArithmeticError, LookupError, StrictDataclassError, TypeError, ValueError) as error:
        differing = [str(error).partition("\n")[0]]
    if differing:
        raise UserError(
            f"{found}, but {name} cannot be built of these blocks alone ({differing[0]}): expected other blocks, or None"
        )


def kept_layers(model: nn.Module) -> list[int] | None:
    """Which decoder blocks of its LLM a model holds, by ``keep_blocks``; None = all."""
    return getattr(causal_lm(model).config.get_text_config(), "llm_layers", None)


def _without_weights(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """What the architecture of a model builds from a configuration."""
    with torch.device("meta"):
        return type(model)._from_config(config, attn_implementation=model.config._attn_implementation)


def _leave_out(model: PreTrainedModel, kept: list[int]) -> None:
    """Leave out the other blocks, and number those that are kept from 0, as the cache of generation does."""
    blocks, text = decoder_blocks(model), model.config.get_text_config()
    count = len(blocks)
    for number in sorted(set(range(count)) - set(kept), reverse=True):
        del blocks[number]
    for number, block in enumerate(blocks):
        for module in block.modules():
            for name in _OWN_NUMBER & vars(module).keys():
                setattr(module, name, number)
    for key, value in list(vars(text).items()):
        if key in _BLOCK_NUMBERS and value is not None:
            setattr(text, key, [kept.index(number) for number in value if number in kept])
        elif isinstance(value, list) and len(value) == count and not key.endswith("_id"):
            setattr(text, key, [value[number] for number in kept])
    if text.model_type == "gpt_neo":  # it makes attention_layers anew
        text.attention_types = [[text.attention_layers, 1]]
    text.num_hidden_layers, text.llm_layers = len(kept), kept


def _structure(model: PreTrainedModel) -> dict[str, Any]:
    """The class of every part of a model, the shapes of its tensors, and the numbers and texts that the parts of its blocks hold."""
    facts: dict[str, Any] = {path: type(module).__name__ for path, module in model.named_modules()}
    facts |= {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for path, module in decoder_blocks(model).named_modules():
        values = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
        facts |= {f"values of block {path}.{name}": value for name, value in values.items()}
    return facts


def compile_blocks(llm: nn.Module, device: str | torch.device) -> None:
    """Let every decoder block be compiled when it is first called, once for all of them and for prompts of any length.

    Raises:
        UserError: a CPU's code cannot be compiled here.
    """
    wanted = os.environ.get("CXX")
    if torch.device(device).type == "cpu" and not any(shutil.which(name) for name in ([wanted] if wanted else _COMPILERS)):
        raise UserError(
            f"torch_compile: found no C++ compiler ({wanted or ', '.join(_COMPILERS)}), which a CPU needs: "
            "install one, or set torch_compile: False"
        )
    for block in decoder_blocks(causal_lm(llm)):
        block.compile(dynamic=True)


def uncompiled(is_compiled: bool) -> AbstractContextManager:
    """Within, compiled blocks run as they were written, for passes too few to pay for code of their own."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def shard_frozen(llm: nn.Module, device: str | torch.device, count: int) -> None:
    """Shard the frozen weights of every decoder block over ``count`` processes (FSDP2), in place.

    A block's weights are whole on ``device`` while it computes, so every process must pass through the blocks equally often.
    What is trained, adapters and item tokens, is small: every process holds it whole.

    Raises:
        UserError: a torch without FSDP2's ``ignored_params``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in signature(fully_shard).parameters:  # torch 2.6
        raise UserError(f"fsdp: True needs torch 2.7 or later, found {torch.__version__}")
    mesh = init_device_mesh(torch.device(device).type, (count,))
    model = causal_lm(llm)
    frozen = {p for block in decoder_blocks(model) for p in block.parameters() if not p.requires_grad}
    whole = {p for p in model.base_model.parameters() if p not in frozen}
    for block in decoder_blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole)  # holds nothing itself, orders the gathering of the blocks


def held_here(llm: nn.Module) -> int:
    """How many of the LLM's weights this process holds."""
    from torch.distributed.tensor import DTensor

    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in llm.parameters())
