"""Scores that are products are looked through in blocks, and the best are those of all scores at once."""

import pytest
import torch
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.recommender import products
from recbole_llara.recommender.frozen import NearestVectors
from recbole_llara.recommender.products import best_products, factors, is_product, products_of
from recbole_llara.recommender.retriever import Retriever, asked_of, padded
from recbole_llara.utils.errors import UserError

HISTORIES = [[7, 8, 10], [1], list(range(20, 30)), [59, 58]]
# Which of RecBole's models multiply two vectors, and some that do not.
PRODUCTS = {
    "SASRec": True,
    "GRU4Rec": True,
    "Caser": True,
    "MoRec": True,
    "EASE": True,
    "Popularity": False,
    "SASRecCPR": False,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("products"))


def model_of(name, toy, tmp_path):
    own = {"MoRec": {"text_encoder_path": "tiny"}, "SASRecCPR": {"reranker_CAN_NUM": "20"}}.get(name, {})
    config = RunConfig(name, "toy", config_dict={**toy, **own, "checkpoint_dir": str(tmp_path)})
    data = prepare_data(config)
    torch.manual_seed(1)
    return build_model(config, data).eval(), config, data


@pytest.mark.parametrize("name", PRODUCTS)
def test_which_models_are_products(name, toy, tmp_path):
    model, config, data = model_of(name, toy, tmp_path)
    asked = asked_of(config, padded(HISTORIES, 10), torch.zeros(4, dtype=torch.int64))
    assert is_product(model, asked, data.dataset.n_known) is PRODUCTS[name]
    if PRODUCTS[name]:
        histories, items = factors(model, asked, data.dataset.n_known)
        assert histories.shape[0] == 4 and histories.shape[1] == items.shape[1] < 600
        assert torch.allclose(histories @ items.T, model.full_sort_predict(asked), atol=1e-6)


class Softened(torch.nn.Module):
    """Multiplies, and then does more."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def full_sort_predict(self, interaction):
        return -self.model.full_sort_predict(interaction)


def test_a_model_that_does_more_with_the_product_is_none(toy, tmp_path):
    model, config, data = model_of("SASRec", toy, tmp_path)
    asked = asked_of(config, padded(HISTORIES, 10), torch.zeros(4, dtype=torch.int64))
    assert is_product(model, asked, data.dataset.n_known) and not is_product(Softened(model), asked, data.dataset.n_known)


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "MoRec"])
@pytest.mark.parametrize("block", [1, 7, 61, 1000])
def test_blocks_propose_what_all_scores_do(name, block, toy, tmp_path, monkeypatch):
    model, config, data = model_of(name, toy, tmp_path)
    never = torch.zeros(data.dataset.item_num, dtype=torch.bool).numpy()
    never[[3, 33]] = True
    for module in ("products", "retriever"):
        monkeypatch.setattr(f"recbole_llara.recommender.{module}.BLOCK", block)
    whole, parted = (Retriever(model, config, 50, never) for _ in range(2))
    whole.is_product = False
    assert parted.is_product
    for count in (1, 5, 20, 49):
        found = parted.propose(HISTORIES, count)
        assert torch.equal(found, whole.propose(HISTORIES, count))
    items = found[0].tolist()
    assert not {0, 3, 33, 7, 8, 10} & set(items[: items.index(0)]) and max(items) < 50
    candidates = torch.tensor([[1, 5, 9], [2, 2, 40], [7, 8, 49], [10, 11, 12]])
    assert torch.allclose(
        parted.candidate_scores(HISTORIES, candidates), whole.candidate_scores(HISTORIES, candidates), atol=1e-6
    )
    seen = [list(range(1, 50))] * 4
    assert parted.propose(HISTORIES, 4, seen=seen).eq(0).all()


def test_the_best_of_blocks_by_hand(monkeypatch):
    monkeypatch.setattr(products, "BLOCK", 2)
    items = torch.tensor([[5.0], [1.0], [4.0], [9.0], [7.0], [2.0]])
    values, numbers = best_products(torch.tensor([[1.0], [-1.0]]), items, 2, lambda first, block: None)
    assert numbers.tolist() == [[3, 4], [1, 5]] and values.tolist() == [[9, 7], [-1, -2]]
    assert products_of(torch.tensor([[1.0], [2.0]]), items, torch.tensor([[0, 3], [5, 5]])).tolist() == [[5, 9], [4, 4]]


def test_vectors_of_ones_own_are_products():
    table = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    model = NearestVectors(table, "item_id_list")
    config = {
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "USER_ID_FIELD": "user_id",
    }
    config |= {"MAX_ITEM_LIST_LENGTH": 10, "device": torch.device("cpu")}
    retriever = Retriever(model, config, 300)
    assert retriever.is_product
    expected = retriever.scores(HISTORIES)
    expected[:, 0] = -torch.inf
    for row, seen in enumerate(HISTORIES):
        expected[row, seen] = -torch.inf
    assert torch.equal(retriever.propose(HISTORIES, 20), expected.topk(20).indices)


def clustered(n_items, width, generator):
    centres = torch.randn(20, width, generator=generator)
    return centres[torch.randint(0, 20, (n_items,), generator=generator)] + 0.3 * torch.randn(
        n_items, width, generator=generator
    )


def test_an_index_finds_most_of_what_is_best_and_nothing_seen():
    pytest.importorskip("faiss")
    from recbole_llara.recommender.item_index import ItemIndex

    generator = torch.Generator().manual_seed(0)
    items = clustered(4000, 16, generator)
    left_out = torch.zeros(4000, dtype=torch.bool)
    left_out[[0, 5, 3999]] = True
    asked = items[torch.randint(1, 4000, (64,), generator=generator)]
    scores = (asked @ items.T).masked_fill(left_out, -torch.inf)
    seen = [set(row) for row in scores.topk(3).indices.tolist()]
    for row, own in enumerate(seen):
        scores[row, list(own)] = -torch.inf
    found, best = ItemIndex(items, left_out).best(asked, seen, 10), scores.topk(10).indices
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(found.tolist(), best.tolist(), strict=True)]
    assert sum(shared) / len(shared) > 0.95
    for row, own in zip(found.tolist(), seen, strict=True):
        assert not set(row) & (own | {0, 5, 3999})
        ranked = [float(value) for value in (asked[found.tolist().index(row)] @ items[row].T)]
        assert ranked == sorted(ranked, reverse=True)
    few = ItemIndex(items[:8], left_out[:8]).best(asked[:1], [{1, 2, 3}], 7)
    assert sorted(few[0].tolist()) == [0, 0, 0, 0, 4, 6, 7]


def test_an_index_needs_products_and_faiss(toy, tmp_path, monkeypatch):
    model, config, data = model_of("Popularity", toy, tmp_path)
    with pytest.raises(UserError, match="Popularity does not score items by products of vectors; expected exact"):
        Retriever(model, config, data.dataset.n_known, by_index=True)
    model, config, data = model_of("SASRec", toy, tmp_path)
    monkeypatch.setattr("recbole_llara.recommender.item_index.find_spec", lambda name: None)
    with pytest.raises(UserError, match="retrieval: found index, but faiss is not installed: pip install faiss-cpu"):
        Retriever(model, config, data.dataset.n_known, by_index=True)
