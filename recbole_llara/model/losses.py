"""Contrast between two views of the same rows: masked means of states, and InfoNCE over the batch (RSLLM eq. 3, 4).

RecBole-free.
"""

import torch
import torch.nn.functional as F


def in_batch_contrast(
    anchors: torch.Tensor,
    others: torch.Tensor,
    targets: torch.Tensor,
    other_targets: torch.Tensor,
    own: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """InfoNCE of each row: its own pair against its anchor with other rows' (RSLLM eq. 3 and 4).

    ``l_i = - log exp(cos(a_i, o_own(i)) / t) / sum_j exp(cos(a_i, o_j) / t)``, j over the M others. A departure from
    the paper: others j whose target is that of row i are no negatives of i, since they say the same thing. A row without
    negatives has the loss 0.

    Example, three rows that are their own others (own 0, 1, 2), targets 7, 4, 7: rows 0 and 2 have row 1 alone as
    negative, row 1 has rows 0 and 2.

    All of it is computed in float32, under autocast too.

    Args:
        anchors: [B, D].
        others: [M, D], the other view of these rows, and of more.
        targets: [B] the rows' target items.
        other_targets: [M] those of the others.
        own: [B] which of the others is the row's own.
        temperature: t > 0.

    Returns:
        [B] float32, nats.
    """
    same = targets[:, None] == other_targets[None]  # [B, M]
    same = same.scatter(1, own[:, None], False)
    # Autocast would round the cosines to its 8 or 11 bits, and the division by t magnifies what was rounded off.
    with torch.autocast(anchors.device.type, enabled=False):
        cosines = F.normalize(anchors.float(), dim=1) @ F.normalize(others.float(), dim=1).T  # [B, M]
        return F.cross_entropy((cosines / temperature).masked_fill(same, -torch.inf), own, reduction="none")
