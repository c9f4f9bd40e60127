"""torch.compile on the decoder blocks, which fuses what lies between their matrix products. RecBole-free."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from recbole_llara.llm.loading import causal_lm, decoder_blocks
from recbole_llara.utils.errors import UserError

_COMPILERS = ("g++", "clang++", "c++")


def compile_blocks(llm: nn.Module, device: str | torch.device) -> None:
    """Let every decoder block be compiled when it is first called, once for all of them and for prompts of any length.

    Args:
        llm: a causal LM, wrapped by peft or not.
        device: where it computes.

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
