"""From scores of the candidates to the score rows [B, N] that RecBole's collector reads.

Exact ties (popularity makes many, an untrained model only ties) are ordered by a hash of (row, item): it knows
neither the target nor the positions, so a model without an opinion scores chance whichever order the candidates
come in, and the order is the same alone and in any batch.
"""

import torch

from recbole_llara.errors import Diverged

# Odd 64-bit multipliers of splitmix64 (Steele, Lea and Flood, 2014), as the signed numbers torch holds.
_ROW_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def tie_keys(rows: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Pseudo-random [B, C] int64 keys of (row, item), for rows [B] and candidates [B, C], both int64."""
    key = (rows.unsqueeze(1) + 1) * _ROW_FACTOR + candidates  # [B, C], wraps around
    key = (key ^ (key >> 30)) * _MIX_1
    key = (key ^ (key >> 27)) * _MIX_2
    return key ^ (key >> 31)


def rank_candidates(
    scores: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor, named: torch.Tensor | None = None
) -> torch.Tensor:
    """Order each row's candidates from best to worst.

    Args:
        scores: [B, C], finite.
        candidates: [B, C] int64 item ids.
        rows: [B] int64, index of each row in its split.
        named: [B] int64, an answer already chosen, which precedes its equals; None = no answer chosen yet.

    Returns:
        [B, C] int64 item ids, best first: scores [.1, .9, .9] of items [4, 5, 6] give [5, 6, 4] or [6, 5, 4].

    Raises:
        Diverged: a score is NaN or infinite.
        ValueError: ``named`` is not a best candidate of its row.
    """
    finite = torch.isfinite(scores)
    if not finite.all():
        row = int((~finite).any(dim=1).nonzero()[0])
        raise Diverged(
            f"the scores of row {int(rows[row])} hold NaN or infinity: {scores[row].tolist()}; "
            "did training diverge? a lower learning_rate may help"
        )
    keys = tie_keys(rows, candidates)  # [B, C]
    if named is not None:
        keys = keys.masked_fill(candidates == named.unsqueeze(1), torch.iinfo(torch.int64).min)
    by_key = keys.argsort(dim=1)
    by_score = scores.gather(1, by_key).argsort(dim=1, descending=True, stable=True)
    ranking = candidates.gather(1, by_key).gather(1, by_score)  # [B, C]
    if named is not None and not torch.equal(ranking[:, 0], named):
        row = int((ranking[:, 0] != named).nonzero()[0])
        raise ValueError(
            f"row {int(rows[row])} names item {int(named[row])} but scores item {int(ranking[row, 0])} higher: "
            "an answer that comes with scores names a best one"
        )
    return ranking


def score_rows(ranking: torch.Tensor, n_items: int) -> torch.Tensor:
    """Spread rankings over all items.

    Args:
        ranking: [B, R] int64 item ids, best first; one column, 0 where invalid, for answers that rank nothing.
        n_items: N, with the padding item.

    Returns:
        [B, N] float32: R for the best item, down to 1 for the worst, minus infinity for every other item. Ranks rather
        than scores: no ties are left for ``topk`` to break in its own way.
    """
    width = ranking.size(1)
    rows = torch.full((len(ranking), n_items), -torch.inf, device=ranking.device)
    values = torch.arange(width, 0, -1, dtype=rows.dtype, device=ranking.device)
    return rows.scatter_(1, ranking, values.expand_as(ranking))
