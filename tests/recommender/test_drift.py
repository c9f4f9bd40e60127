"""How alike two tables of item embeddings are, by hand and against a plain loop."""

import pytest
import torch

from recbole_llara.recommender.drift import drift


def test_tables_that_agree_and_tables_that_do_not():
    table = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    assert drift(table, 3 * table) == {"cosine": 1.0, "same_neighbours": 1.0}
    other = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    found = drift(table, other)
    assert abs(found["cosine"]) < 0.05 and found["same_neighbours"] < 0.05  # 10 of 598 by chance
    turned = table @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    found = drift(table, turned)  # neighbours stay, vectors do not
    assert found["same_neighbours"] > 0.99 and found["cosine"] < 0.9


@pytest.mark.parametrize("n_items", [4, 40, 2500])
def test_against_a_plain_loop(n_items):
    before, after = (torch.randn(n_items, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    after = before + 0.5 * after

    def nearest(table, item):
        cosines = [(-float(torch.cosine_similarity(table[item], table[other], dim=0)), other) for other in range(1, n_items)]
        return {other for _, other in sorted(pair for pair in cosines if pair[1] != item)[:10]}

    items = range(1, n_items, max(1, n_items // 40))
    shares = [len(nearest(before, item) & nearest(after, item)) / min(10, n_items - 2) for item in items]
    tolerance = 1e-4 if n_items <= 40 else 0.08  # of the largest a sample is looked at
    assert drift(before, after)["same_neighbours"] == pytest.approx(sum(shares) / len(shares), abs=tolerance)
