"""Tensors on their way to a GPU, without anybody waiting for it."""

import torch


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on ``device``. A copy to a GPU is queued behind what the GPU does, from memory that it reads by itself."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
