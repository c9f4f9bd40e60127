"""What is computed from the training rows at once: Popularity's shares, and EASE's weights, which are RecBole's."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.model.general_recommender.ease import EASE as RecBoleEASE
from scipy.sparse import csr_matrix
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender import closed_form
from recbole_llara.recommender.closed_form import item_weights, user_items
from recbole_llara.recommender.growing import set_items
from recbole_llara.recommender.retriever import asked_of, padded
from recbole_llara.utils.errors import UserError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return {**write_toy_dataset(tmp_path_factory.mktemp("closed")), "protocol": "leave_one_out"}


def of_run(name, toy, tmp_path, **keys):
    config = RunConfig(name, "toy", config_dict={**toy, "checkpoint_dir": str(tmp_path), **keys})
    data = prepare_data(config)
    return build_model(config, data).eval(), config, data


def test_the_example_of_the_docstring():
    weights = item_weights(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 1]), 3, 1.0)
    expected = torch.tensor([[0, 0, 0], [0, 0, 1 / 3], [0, 1 / 2, 0]])
    assert torch.allclose(weights, expected)


def test_pairs_are_counted_once_and_padding_never():
    users, items = user_items(torch.tensor([5, 5, 2]), torch.tensor([3, 4, 3]), torch.tensor([[1, 0], [1, 3], [4, 0]]), 9)
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == [(2, 3), (2, 4), (5, 1), (5, 3), (5, 4)]


def test_the_weights_are_those_of_recboles_ease():
    rng = np.random.default_rng(3)
    has_item = rng.random((40, 25)) < 0.2
    has_item[:, 0] = has_item[0] = False  # RecBole's padding
    matrix = csr_matrix(has_item.astype(np.float32))
    config = SimpleNamespace(device="cpu")
    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "NEG_PREFIX": "neg_", "reg_weight": 7.0, "device": "cpu"}
    theirs = RecBoleEASE(
        type("Config", (), {"__getitem__": lambda self, key: fields[key], "device": config.device})(),
        SimpleNamespace(num=lambda field: has_item.shape[field == "item_id"], inter_matrix=lambda form: matrix),
    )
    users, items = (torch.from_numpy(values.astype(np.int64)) for values in np.nonzero(has_item))
    ours = item_weights(users, items, 25, 7.0)
    assert np.allclose(ours.numpy(), np.asarray(theirs.item_similarity), atol=1e-5)


def test_it_learns_from_training_rows_alone_and_scores_by_sums(toy, tmp_path):
    model, config, data = of_run("EASE", toy, tmp_path)
    users, items = data.dataset.interactions()
    # leave_one_out: each user's last two interactions are validation and test.
    from_the_end = np.array([(users[place:] == user).sum() for place, user in enumerate(users)])
    is_training = torch.from_numpy(from_the_end > 2)
    users, items = torch.from_numpy(users)[is_training], torch.from_numpy(items)[is_training]
    pairs = torch.stack([users, items]).unique(dim=1)
    expected = item_weights(*pairs, model.n_items, config["reg_weight"])
    assert torch.allclose(model.item_weights, config["score_scale"] * expected)
    histories = [[7, 8, 10], [3], list(range(1, 50))]
    scores = model.full_sort_predict(asked_of(config, padded(histories, config["MAX_ITEM_LIST_LENGTH"]), torch.zeros(3).long()))
    for history, own in zip(histories, scores, strict=True):
        assert torch.allclose(own, model.item_weights[history].sum(0), atol=1e-6)


def test_products_of_its_vectors_are_the_leading_part_of_the_regression(toy, tmp_path):
    model, _, data = of_run("EASE", toy, tmp_path, embedding_size=80, reg_weight=5.0)
    users, items = data.dataset.interactions()
    keys, counts = np.unique(users, return_counts=True)
    last = dict(zip(keys, counts, strict=True))
    seen = dict.fromkeys(keys, 0)
    has_item = np.zeros((users.max() + 1, model.n_items))
    for user, item in zip(users, items, strict=True):
        seen[user] += 1
        if seen[user] <= last[user] - 2:
            has_item[user, item] = 1
    products = has_item.T @ has_item
    smoother = np.linalg.solve(products + 5.0 * np.eye(model.n_items), products)
    vectors = model.item_embedding.weight.detach().numpy().astype(float)
    rank = min(has_item.shape) - 1
    assert vectors.shape == (model.n_items, 80) and not vectors[:, rank:].any() and not vectors[0].any()
    # All axes but the last of the rank are there.
    assert np.abs(vectors @ vectors.T - smoother).max() < 0.2
    values = np.linalg.svd(has_item, compute_uv=False)[:rank]
    assert np.allclose((vectors[:, :rank] ** 2).sum(0), values**2 / (values**2 + 5.0), atol=1e-4)


def test_an_llm_reads_its_vectors_and_its_mean_of_them(toy, tmp_path):
    model, _, _ = of_run("EASE", toy, tmp_path)
    history = torch.tensor([[3, 5, 0], [9, 0, 0]])
    vectors = model.item_embedding.weight
    assert torch.allclose(model(history), torch.stack([(vectors[3] + vectors[5]) / 2, vectors[9]]))


def test_items_that_come_later_are_refused_and_nothing_is_changed(toy, tmp_path):
    model, config, _ = of_run("EASE", toy, tmp_path)
    with pytest.raises(UserError, match="EASE cannot score items that it has not learned from"):
        set_items(model, config, torch.tensor([model.n_items]), torch.zeros(1, config["embedding_size"]))
    assert model.n_items == len(model.item_embedding.weight) == len(model.item_weights)


def test_a_history_longer_than_a_prompts_is_read_whole(toy, tmp_path):
    _, config, data = of_run("EASE", toy, tmp_path)
    assert config["MAX_ITEM_LIST_LENGTH"] == 200
    history = data.test_data.dataset.inter_feat["item_id_list"]
    assert history.shape[1] == 200 and int((history > 0).sum(1).max()) > 10


def test_held_out_items_all_score_the_same(toy, tmp_path):
    model, _, data = of_run("EASE", toy, tmp_path, protocol="cold_items", cold_item_share=0.34, candidate_num=10)
    rows = data.test_data.dataset.inter_feat
    scores = model.full_sort_predict(rows).gather(1, rows["candidate_id_list"])
    assert not scores.any()


def test_too_many_items_are_refused_before_anything_is_computed(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(closed_form, "MOST_ITEMS", 30)
    monkeypatch.setattr(closed_form, "item_weights", None)
    with pytest.raises(UserError, match="found EASE over 60 items.* expected at most 30.*item_inter_num_interval"):
        of_run("EASE", toy, tmp_path)


@pytest.mark.parametrize("key", ["reg_weight", "score_scale"])
def test_a_weight_of_zero_is_refused(key, toy, tmp_path):
    with pytest.raises(UserError, match=f"{key}: found 0.0, expected a number above 0"):
        of_run("EASE", toy, tmp_path, **{key: 0.0})


def test_it_is_computed_with_no_epoch_and_its_checkpoint_answers_alike(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {**toy, "checkpoint_dir": "saved"}
    first = run_recbole_llara("EASE", "toy", config_dict=keys)
    folder = Path(first["run_dir"])
    # Where a checkpoint brings the weights they are not computed again.
    monkeypatch.setattr(closed_form, "item_weights", None)
    checkpoint = str(next(folder.glob("checkpoint*")))
    again = run_recbole_llara("EASE", "toy", config_dict={**keys, "checkpoint": checkpoint})
    cases = [(Path(run["run_dir"]) / "cases.jsonl").read_text(encoding="utf-8") for run in (first, again)]
    assert cases[0] == cases[1] and any(json.loads(cases[0].splitlines()[0])["scores"])


def test_a_softmax_of_popularity_is_its_share_of_training_targets(toy, tmp_path):
    model, config, data = of_run("Popularity", toy, tmp_path)
    targets = data.dataset.inter_feat["item_id"].tolist()
    assert model.counts.tolist() == [targets.count(item) for item in range(data.dataset.item_num)]
    scores = model.full_sort_predict(asked_of(config, padded([[1]], 10), torch.zeros(1).long()))[0]
    counts = model.counts + 1
    assert torch.allclose(scores[[3, 5, 9]].softmax(0), counts[[3, 5, 9]] / counts[[3, 5, 9]].sum())
