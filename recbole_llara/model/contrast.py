"""Contrast between two views of the same rows: masked means of states, and InfoNCE over the batch (RSLLM eq. 3, 4).

RecBole-free.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.nn.functional import all_gather


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


def in_batch_contrast(
    anchors: torch.Tensor,
    others: torch.Tensor,
    targets: torch.Tensor,
    other_targets: torch.Tensor,
    own: torch.Tensor,
    temperature: float,
    gather: bool = True,
) -> torch.Tensor:
    """InfoNCE of each row: its own pair against its anchor with other rows' (RSLLM eq. 3 and 4).

    ``l_i = - log exp(cos(a_i, o_own(i)) / t) / sum_j exp(cos(a_i, o_j) / t)``, j over the M others. A departure from
    the paper: others j whose target is that of row i are no negatives of i, since they say the same thing. A row without
    negatives has the loss 0.

    Example, three rows that are their own others (own 0, 1, 2), targets 7, 4, 7: rows 0 and 2 have row 1 alone as
    negative, row 1 has rows 0 and 2.

    Args:
        anchors: [B, D] float32.
        others: [M, D] float32, the other view of these rows, and of more.
        targets: [B] the rows' target items.
        other_targets: [M] those of the others.
        own: [B] which of the others is the row's own.
        temperature: t > 0.
        gather: whether the views of other processes join the negatives where torch.distributed runs.

    Returns:
        [B] float32, nats.
    """
    if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        others, other_targets, first = _of_all_processes(others, other_targets)
        own = own + first
    cosines = F.normalize(anchors, dim=1) @ F.normalize(others, dim=1).T / temperature  # [B, all M]
    same = targets[:, None] == other_targets[None]
    same = same.scatter(1, own[:, None], False)
    return F.cross_entropy(cosines.masked_fill(same, -torch.inf), own, reduction="none")


def _of_all_processes(others: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Every process's views and targets, in the order of ranks, and where this process's begin.

    Gradients flow back to the process a view came from. Processes may hold different numbers of rows.
    """
    counts = [torch.zeros(1, dtype=torch.int64, device=others.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(others)], device=others.device))
    sizes = [int(count) for count in counts]
    missing = max(sizes) - len(others)
    padded = all_gather(F.pad(others, (0, 0, 0, missing)).contiguous())
    padded_targets = [torch.empty(max(sizes), dtype=targets.dtype, device=targets.device) for _ in sizes]
    dist.all_gather(padded_targets, F.pad(targets, (0, missing)).contiguous())
    views = torch.cat([part[:size] for part, size in zip(padded, sizes, strict=True)])
    all_targets = torch.cat([part[:size] for part, size in zip(padded_targets, sizes, strict=True)])
    return views, all_targets, sum(sizes[: dist.get_rank()])
