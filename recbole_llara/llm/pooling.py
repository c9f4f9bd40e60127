"""The mean of the states that a mask keeps. RecBole-free."""

import torch


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of the states that a mask keeps, in float32.

    Args:
        states: [B, T, D]
        mask: [B, T] bool, at least one True a row.

    Returns:
        [B, D]

    Raises:
        ValueError: a row keeps nothing.
    """
    counts = mask.sum(1, keepdim=True)  # [B, 1]
    if bool((counts == 0).any()):
        row = int((counts[:, 0] == 0).nonzero()[0])
        raise ValueError(f"row {row} has no token to average: expected at least one in a mask of shape {tuple(mask.shape)}")
    rows, columns = mask.nonzero(as_tuple=True)  # few of the T: only these are read, and only these get a gradient
    sums = torch.zeros(mask.shape[0], states.shape[2], device=states.device)
    return sums.index_add(0, rows, states[rows, columns].float()) / counts
