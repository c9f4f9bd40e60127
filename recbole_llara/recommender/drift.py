"""How far a recommender's item embeddings moved in further training: an LLM whose projector learned from the ones reads the others."""

import torch
from torch.nn.functional import cosine_similarity, normalize

ASKED = 2000  # items whose neighbours are looked for, spread over the catalogue


def drift(before: torch.Tensor, after: torch.Tensor, neighbours: int = 10) -> dict[str, float]:
    """How alike two tables are, as the projector reads them.

    Args:
        before, after: [N, d] each, ``centred``; row 0 is the padding item's and does not count.
        neighbours: (int, items) looked at of each item, by cosine.

    Returns:
        ``cosine``: the mean between the two vectors of an item; ``same_neighbours``: the mean share of an item's nearest neighbours
        that it has in both. Tables that agree have 1 and 1, unrelated ones about 0 and neighbours / N.
    """
    asked = torch.linspace(1, len(before) - 1, min(ASKED, len(before) - 1)).long().unique()  # [A]
    count = min(neighbours, len(before) - 2)
    nearest = []  # of each table [A, count]
    for table in (before, after):
        units, parts = normalize(table), []
        for part in asked.split(256):
            cosines = units[part] @ units.T  # [a, N]
            cosines[:, 0] = -torch.inf
            cosines[torch.arange(len(part)), part] = -torch.inf
            parts.append(cosines.topk(count).indices)
        nearest.append(torch.cat(parts))
    same = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2)  # [A, count]
    return {
        "cosine": round(float(cosine_similarity(before[1:], after[1:]).mean()), 4),
        "same_neighbours": round(float(same.float().mean()), 4),
    }
