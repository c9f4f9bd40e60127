"""The parts of any causal LM, wrapped by peft or not, and what is done to its decoder blocks: compiling and sharding."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from recbole_llara.utils.errors import UserError

_COMPILERS = ("g++", "clang++", "c++")


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
        f"{type(model).__name__} has no list of {n_layers} decoder blocks, which lora and fsdp need: use llm_tuning frozen or full"
    )


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
