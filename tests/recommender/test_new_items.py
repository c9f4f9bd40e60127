"""Vectors of items that a recommender never learned: out of texts, by hand and against plain loops; and what a table of held-out items is."""

import pytest
import torch
from sklearn.linear_model import Ridge
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import never_learned, recommender_and_model, recommender_model
from recbole_llara.recommender.growing import replace_rows
from recbole_llara.recommender.new_items import FUNCTIONS, NewItemVectors, TextFeatures, as_if_new, fitted_on, with_vectors
from recbole_llara.recommender.retriever import Retriever, asked_of
from recbole_llara.utils.errors import UserError

COLD = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1, 5]}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The keys of a toy run under cold_items."""
    monkeypatch.chdir(tmp_path)
    return {**write_toy_dataset(tmp_path), **COLD}


def test_features_have_mean_0_and_variance_1_over_the_learned_texts():
    """Whatever is asked for, and also where a number is the same for all of them."""
    states = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100.0, 1e-3, 1, 1, 1])
    states[:, 5] = 7.0

    def read(texts):
        return states[[int(text) for text in texts]]

    learned = [str(number) for number in range(0, 50, 2)]
    features = TextFeatures(read, learned)
    varied = features.of_learned[:, :5]
    assert torch.allclose(varied.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(varied.std(0, correction=0), torch.ones(5), atol=1e-4)
    assert not features.of_learned[:, 5].any() and torch.equal(features(learned), features.of_learned)
    expected = (states[[3, 7]] - states[::2].mean(0)) / states[::2].std(0, correction=0).clamp(min=1e-6)
    assert torch.allclose(features(["3", "7"]), expected) and features(["7"]).shape == (1, 6)


def test_a_function_is_fitted_on_some_thousand_learned_items_evenly_spread(monkeypatch):
    is_new = torch.zeros(1001, dtype=torch.bool)
    is_new[[0, 5]] = True
    assert torch.equal(fitted_on(is_new), (~is_new).nonzero()[:, 0])
    monkeypatch.setattr("recbole_llara.recommender.new_items.MOST_LEARNED", 400)
    items = fitted_on(is_new)
    assert 300 < len(items) <= 400 and not is_new[items].any() and set(items.diff().tolist()) <= {3, 4}
    assert len(fitted_on(torch.ones(5, dtype=torch.bool))) == 0


class Features:
    """Features [N, D] that stand for texts "0", "1", ... of which some are learned."""

    def __init__(self, all_of_them, learned):
        mean = all_of_them[learned].mean(0)
        self._of = all_of_them - mean
        self.of_learned = self._of[learned]

    def __call__(self, texts):
        return self._of[[int(text) for text in texts]]


def filled(kind, table, is_new, features, neighbours):
    vectors = NewItemVectors(kind, Features(features, ~is_new), table[~is_new], neighbours)
    return with_vectors(table, is_new, vectors, [str(item) for item in range(len(table))])


def test_learned_rows_stay_and_new_ones_come_from_texts_alone():
    generator = torch.Generator().manual_seed(1)
    features, table = torch.randn(400, 12, generator=generator), torch.randn(400, 5, generator=generator)
    is_new = torch.rand(400, generator=generator) < 0.2
    is_new[0] = True
    other = table.clone()
    other[is_new] = 99.0
    for kind in FUNCTIONS:
        found = filled(kind, table, is_new, features, 3)
        assert torch.equal(found[~is_new], table[~is_new]) and torch.equal(found[0], table[0])
        # What the table held of new items is not looked at.
        assert torch.equal(filled(kind, other, is_new, features, 3)[is_new][1:], found[is_new][1:])
    nearest, new = filled("neighbours", table, is_new, features, 3), is_new.nonzero()[1:, 0].tolist()
    moved = features - features[~is_new].mean(0)
    for item in new:
        cosines = torch.cosine_similarity(moved, moved[item][None]).masked_fill(is_new, -2)
        assert torch.allclose(nearest[item], table[cosines.topk(3).indices].mean(0), atol=1e-6)


def test_a_linear_relation_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(600, 10, generator=generator)
    truth = features @ torch.randn(10, 4, generator=generator) + 3
    is_new = torch.arange(600) % 5 == 0
    table = torch.where(is_new[:, None], 0.0, truth)
    found = filled("text", table, is_new, features, 1)[5::5]
    assert (found - truth[5::5]).abs().mean() < 0.01 * truth.std()
    noise = torch.randn(600, 4, generator=generator)
    near_mean = filled("text", noise, is_new, features, 1)[5::5]
    assert near_mean.std() < 0.25 * noise.std()


def test_nothing_new_changes_nothing():
    table, is_new = torch.randn(6, 3), torch.tensor([True] + [False] * 5)
    assert torch.equal(filled("text", table, is_new, torch.randn(6, 4), 2), table)


@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec"])
def test_a_recommender_has_no_opinion_of_held_out_items(toy, rec_model):
    """Its rows of them are zero after training, so that candidates are equal, and it proposes none."""
    keys = {**toy, "rec_model": rec_model, "rec_epochs": 2, "rec_eval_step": 0, "rec_weight_decay": 0.01}
    config = RunConfig("LLaRA", "toy", config_dict=keys)
    data = prepare_data(config)
    recommender, model = recommender_and_model(config, data)
    held_out = torch.from_numpy(data.dataset.is_held_out)
    assert not recommender.item_embeddings[held_out].any() and recommender.item_embeddings[~held_out].any(1)[1:].all()
    assert (recommender.is_new.numpy() == never_learned(data)).all() and recommender.is_new[held_out].all()
    again, _ = recommender_and_model(config, data)
    assert again.path == recommender.path and torch.equal(again.is_new, recommender.is_new)
    given = RunConfig("LLaRA", "toy", config_dict={**keys, "rec_checkpoint": str(recommender.path)})
    assert torch.equal(recommender_and_model(given, data)[0].is_new, recommender.is_new)
    feat = data.test_data.dataset.inter_feat
    histories = [[item for item in row if item] for row in feat["item_id_list"].tolist()]
    retriever = Retriever(model.eval(), config.for_recommender(), data.sampler.n_items, data.dataset.is_held_out)
    scores = retriever.scores(histories).gather(1, feat[CANDIDATE_FIELD])
    assert not scores.any()
    proposed = retriever.propose(histories, 20)
    assert not held_out[proposed].any() and (proposed > 0).all()
    # Equal scores are settled by a hash: over rows, each column is as good as any.
    first = rank_candidates(scores, feat[CANDIDATE_FIELD], question_keys(feat["item_id_list"]))[:, 0]
    assert len(set((feat[CANDIDATE_FIELD] == first[:, None]).int().argmax(1).tolist())) == 5


def test_choosing_an_epoch_by_equal_scores_is_refused(toy):
    with pytest.raises(UserError, match=r"eval_step .*: found 1 with protocol cold_items.* expected 0, and epochs"):
        run_recbole_llara("SASRec", "toy", config_dict={**toy, "epochs": 1})
    with pytest.raises(UserError, match="full_rank: found True with protocol cold_items"):
        RunConfig("SASRec", "toy", config_dict={**toy, "full_rank": True})


def test_morec_reads_the_titles_of_held_out_items_but_does_not_learn_from_them(toy):
    from recbole_llara.model.build import build_model

    config = RunConfig("MoRec", "toy", config_dict={**toy, "text_encoder_path": "tiny"})
    data = prepare_data(config)
    model, held_out = build_model(config, data), torch.from_numpy(data.dataset.is_held_out)
    table = model.train().items.weight
    assert not table[held_out].any() and table[~held_out][1:].any(1).all()
    assert model.eval().items.weight[held_out].any(1).all()
    run = run_recbole_llara("MoRec", "toy", config_dict={**toy, "text_encoder_path": "tiny", "epochs": 1})
    assert run["test_result"]["validratio"] == 1


@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec", "Caser", "NARM"])
def test_rows_of_new_items_are_what_scores_come_from_or_nothing_changes(toy, rec_model):
    config = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_model": rec_model, "rec_epochs": 1, "rec_eval_step": 0})
    data = prepare_data(config)
    recommender, network, own = recommender_model(config, data)
    new, known = recommender.is_new.nonzero()[1:, 0], (~recommender.is_new).nonzero()[:3, 0]
    rows = torch.randn(len(new), recommender.item_embeddings.shape[1], generator=torch.Generator().manual_seed(3))
    history = torch.nn.functional.pad(known[None], (0, own["MAX_ITEM_LIST_LENGTH"] - 3))
    before = network.full_sort_predict(asked_of(own, history, torch.zeros(1, dtype=torch.int64))).flatten()
    for _ in range(2):  # asked again with the same rows
        assert replace_rows(network, own, new, rows)
        after = network.full_sort_predict(asked_of(own, history, torch.zeros(1, dtype=torch.int64))).flatten()
        assert torch.equal(network.item_embedding.weight[new], rows) and not (after[new] == before[new]).any()
        assert torch.allclose(after[known], before[known], atol=1e-6) and network.n_items == data.dataset.item_num
    network.full_sort_predict = lambda _: before  # as of one whose output layer is a table of its own
    table = network.item_embedding
    assert not replace_rows(network, own, new, rows + 2) and network.item_embedding is table


@pytest.mark.parametrize(("shape", "scale"), [((40, 6), 0.3), ((12, 30), 3.0)])
def test_a_vector_of_an_item_left_out_is_that_of_a_fit_without_it(shape, scale):
    """More texts than numbers and fewer; by fits on all others with the penalty that was chosen, and by plain loops."""
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(shape, generator=generator)
    embeddings = known[:, :4] @ torch.randn(4, 3, generator=generator) + scale * torch.randn(len(known), 3, generator=generator)
    ridge, nearest = FUNCTIONS["text"](known, embeddings, 2), FUNCTIONS["neighbours"](known, embeddings, 2)
    of_ridge, of_nearest = ridge.left_out(), nearest.left_out()
    for left in range(len(known)):
        rest = torch.arange(len(known)) != left
        again = Ridge(alpha=ridge.penalty).fit(known[rest].double(), embeddings[rest].double())
        expected = torch.from_numpy(again.predict(known[left : left + 1].double()))[0]
        assert torch.allclose(of_ridge[left], expected, atol=1e-6)
        assert torch.allclose(
            of_nearest[left], FUNCTIONS["neighbours"](known[rest], embeddings[rest], 2)(known[left : left + 1])[0]
        )
    assert not torch.allclose(of_ridge, ridge(known), atol=1e-3)


def test_every_item_as_if_it_were_new(monkeypatch):
    """New ones as they are; learned ones left out of the fit, or predicted where they were not part of it."""
    monkeypatch.setattr("recbole_llara.recommender.new_items.MOST_LEARNED", 20)
    generator = torch.Generator().manual_seed(2)
    texts, states, table = (
        list(map(str, range(50))),
        torch.randn(50, 4, generator=generator),
        torch.randn(50, 3, generator=generator),
    )
    is_new = torch.zeros(50, dtype=torch.bool)
    is_new[[0, 7, 9]] = True
    fitted = fitted_on(is_new)
    features = TextFeatures(lambda some: states[[int(text) for text in some]], [texts[item] for item in fitted.tolist()])
    vectors = NewItemVectors("text", features, table[fitted], 1)
    made = with_vectors(table, is_new, vectors, texts)
    rows = as_if_new(made, is_new, vectors, texts)
    beyond = [item for item in range(1, 50) if not is_new[item] and item not in fitted.tolist()]
    assert len(fitted) == 16 and len(beyond) == 31
    assert torch.equal(rows[is_new], made[is_new]) and torch.equal(rows[fitted], vectors.left_out())
    assert torch.allclose(rows[beyond], vectors([texts[item] for item in beyond]))
