"""Retrieval by an index: faiss finds items whose vectors have great products with a history's, without looking at all of them.

The items are dealt to some lists by their nearest of as many centres, each vector rounded to a byte a number; a question looks into a share of the
lists. What it finds is scored again by the recommender's own numbers, so that only what is missed differs from exact retrieval.
"""

from importlib.util import find_spec
from logging import getLogger
from math import isqrt
from time import perf_counter
from typing import Any

import torch

from recbole_llara.recommender.products import products_of
from recbole_llara.utils.errors import UserError

INSTALL = "pip install faiss-cpu"
PROBED, LEAST_PROBED = 16, 16  # of so many lists one is looked into, and at least so many lists are
TRAINED_ON = 64  # vectors for each centre
SPARE = 4  # times as many are taken from the index as are asked for: their scores there are rounded


class ItemIndex:
    """An index over the vectors of items.

    Args:
        items: [N, d] float32; the index keeps a byte for each number, the table itself stays for the scores.
        is_left_out: [N] bool, items that are never found.
        seed: of the vectors that the centres are made of.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(self, items: torch.Tensor, is_left_out: torch.Tensor, seed: int = 0) -> None:
        faiss, started = _faiss(), perf_counter()
        self.items = items
        numbers = (~is_left_out).nonzero()[:, 0]
        table = items[numbers].float().cpu().contiguous()
        lists = max(1, isqrt(len(table)))
        drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[: lists * TRAINED_ON]
        self._index = faiss.index_factory(table.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        self._index.train(table[drawn].numpy())
        self._index.add_with_ids(table.numpy(), numbers.numpy())
        self._index.nprobe = min(lists, max(LEAST_PROBED, lists // PROBED))
        getLogger().info(f"retrieval: {len(table)} items indexed in {perf_counter() - started:.0f} s")

    def best(self, histories: torch.Tensor, seen: list[set[int]], count: int) -> torch.Tensor:
        """The best items [B, count] that are found for histories [B, d], best first, 0 where fewer are.

        Args:
            seen: of each history the items that do not count.
        """
        wanted = SPARE * count + max(map(len, seen), default=0)
        found = torch.from_numpy(self._index.search(histories.float().cpu().contiguous().numpy(), wanted)[1])  # [B, wanted]
        hidden = torch.tensor(
            [[item < 0 or item in own for item in row] for row, own in zip(found.tolist(), seen, strict=True)]
        )
        device = self.items.device
        scores = products_of(histories, self.items, found.clamp(min=0).to(device)).cpu().masked_fill(hidden, -torch.inf)
        values, places = scores.topk(min(count, wanted), dim=1)
        return torch.where(values.isfinite(), found.gather(1, places), 0)


def _faiss() -> Any:
    if find_spec("faiss") is None:
        raise UserError(f"retrieval: found index, but faiss is not installed: {INSTALL}, or set retrieval to exact")
    import faiss

    return faiss
