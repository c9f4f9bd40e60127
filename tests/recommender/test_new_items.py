"""Vectors of items that a recommender never learned: out of texts, by hand and against plain loops; and what a table of held-out items is."""

import numpy as np
import pytest
import torch
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import never_learned, recommender_and_model
from recbole_llara.recommender.new_items import FUNCTIONS, text_features, vectors_of_new_items
from recbole_llara.recommender.retriever import Retriever
from recbole_llara.utils.errors import UserError

COLD = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1, 5]}
TITLES = ["", "Star Wars", "Star Trek", "Star Trek", "Emma", "Pride"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The keys of a toy run under cold_items."""
    monkeypatch.chdir(tmp_path)
    return {**write_toy_dataset(tmp_path), **COLD}


def test_features_are_weighted_means_of_the_tokens(make_tokenizer):
    tokenizer = make_tokenizer(TITLES * 3, 300)
    vocabulary = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    found = text_features(tokenizer, vocabulary, TITLES)
    tokens = [tokenizer(f"x {title}", add_special_tokens=False)["input_ids"][1:] if title else [] for title in TITLES]
    for feature, own in zip(found, tokens, strict=True):
        weights = torch.tensor([np.log(7 / sum(token in other for other in tokens)) for token in own])
        expected = sum(weight * vocabulary[token] for weight, token in zip(weights, own, strict=True))
        assert torch.allclose(feature, (expected / weights.sum() if own else torch.zeros(6)).float(), atol=1e-5)
    assert torch.equal(found[2], found[3]) and not found[0].any()


def test_learned_rows_stay_and_new_ones_come_from_texts_alone():
    generator = torch.Generator().manual_seed(1)
    features, table = torch.randn(400, 12, generator=generator), torch.randn(400, 5, generator=generator)
    is_new = torch.rand(400, generator=generator) < 0.2
    is_new[0] = True
    other = table.clone()
    other[is_new] = 99.0
    for kind in FUNCTIONS:
        filled = vectors_of_new_items(kind, table, is_new, features, 3)
        assert torch.equal(filled[~is_new], table[~is_new]) and torch.equal(filled[0], table[0])
        # What the table held of new items is not looked at.
        assert torch.equal(vectors_of_new_items(kind, other, is_new, features, 3)[is_new][1:], filled[is_new][1:])
    nearest, new = vectors_of_new_items("neighbours", table, is_new, features, 3), is_new.nonzero()[1:, 0].tolist()
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
    found = vectors_of_new_items("text", table, is_new, features, 1)[5::5]
    assert (found - truth[5::5]).abs().mean() < 0.01 * truth.std()
    noise = torch.randn(600, 4, generator=generator)
    near_mean = vectors_of_new_items("text", noise, is_new, features, 1)[5::5]
    assert near_mean.std() < 0.25 * noise.std()


def test_nothing_new_changes_nothing():
    table, is_new = torch.randn(6, 3), torch.tensor([True] + [False] * 5)
    assert torch.equal(vectors_of_new_items("text", table, is_new, torch.randn(6, 4), 2), table)


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
