"""The LLM's frozen weights dealt out over the processes of a run (FSDP2): each holds a share, and blocks meet as they are used.

What is trained beside them, adapters and item tokens, is small: every process holds it whole, and its gradients are added up
as without shards. RecBole-free.
"""

from inspect import signature

import torch
from torch import nn

from recbole_llara.llm.loading import causal_lm, decoder_blocks
from recbole_llara.utils.errors import UserError


def shard_frozen(llm: nn.Module, device: str | torch.device, count: int) -> None:
    """Deal out the frozen weights of every decoder block, in place; each block's are on ``device`` while it computes.

    Every process must pass through the blocks equally often.

    Args:
        llm: a causal LM, wrapped by peft or not.
        device: where it computes.
        count: of the processes.

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
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole)  # holds nothing itself, orders the blocks' meetings


def held_here(llm: nn.Module) -> int:
    """How many of the LLM's weights this process holds."""
    from torch.distributed.tensor import DTensor

    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in llm.parameters())
