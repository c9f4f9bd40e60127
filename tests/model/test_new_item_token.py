"""What stands in prompts for items that the recommender never learned, and that the recommender says nothing of them."""

import json
import logging
from pathlib import Path

import pytest
import torch

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.llm.item_tokens import centred
from recbole_llara.model.build import build_model
from recbole_llara.model.losses import TrainingRows
from recbole_llara.prompt.representation import SLOT_PARTS, Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.recommender.new_items import NewItemVectors, TextFeatures, with_vectors
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

COLD = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1, 5], "rec_eval_step": 0}
EMBEDDING, HOLDER, SCORE = (SLOT_PARTS.index(part) for part in (Part.ITEM_EMBEDDING, Part.PLACEHOLDER, Part.SCORE))
CONCLUSIONS = {"user_token": True, "recommender_score_token": "rank", "candidate_order": "recommender"}


def slots(model, part, items):
    return model.item_tokens(torch.full((len(items),), part), torch.tensor(items))


@pytest.mark.parametrize("token", ["own", "placeholder", "neighbours", "text"])
def test_what_a_new_item_shows(keys, make_trainer, token):
    given = {**keys, **COLD, "new_item_token": token, "new_item_neighbours": 3, "item_token_dropout": 0.5}
    trainer, data = make_trainer(given)
    model, recommender = trainer.model.eval(), trainer.model.recommender
    table, is_new, tokens = recommender.item_embeddings, recommender.is_new, model.item_tokens
    new, learned = is_new.nonzero()[1:4, 0].tolist(), (~is_new).nonzero()[:4, 0].tolist()
    if token == "own":
        assert torch.equal(tokens.item_vectors(torch.arange(len(table))), centred(table)) and model.new_item_token is None
        assert torch.equal(slots(model, EMBEDDING, new), tokens.projector(centred(table)[new]))
        return
    if token == "placeholder":
        assert torch.equal(slots(model, EMBEDDING, new), tokens.placeholder.expand(3, -1))
    else:
        titles = data.catalogue.titles
        features = TextFeatures(model.read_texts, [titles[item] for item in (~is_new).nonzero()[:, 0].tolist()])
        vectors = NewItemVectors(token, features, table[~is_new], 3)
        expected = centred(with_vectors(table, is_new, vectors, titles), ~is_new)
        assert torch.allclose(slots(model, EMBEDDING, new), tokens.projector(expected[new]), atol=1e-5)
    assert torch.allclose(slots(model, EMBEDDING, learned), tokens.projector(centred(table, ~is_new)[learned]), atol=1e-6)
    assert model.result_fields()["new_items"] == int(is_new.sum()) - 1


def test_the_recommender_ranks_new_candidates_last_and_says_nothing_of_them(keys):
    config = RunConfig("LLaRA", "toy", config_dict={**keys, **COLD})
    data = prepare_data(config)
    recommender, network, own = recommender_model(config, data)
    is_new = recommender.is_new
    learned, new = (~is_new).nonzero()[:8, 0], is_new.nonzero()[1:7, 0]
    candidates = torch.stack([torch.cat([learned[:3], new[:2]]), new[:5], learned[3:8]])
    history = torch.nn.functional.pad(learned[:2][None].expand(3, -1), (0, 8))
    plain, told = (Concluding(network, own, False, mask)(history, candidates) for mask in (None, is_new))
    assert told.is_new.tolist() == [[False] * 3 + [True] * 2, [True] * 5, [False] * 5] and plain.is_new is None
    assert torch.equal(told.log_probs[2], plain.log_probs[2])
    assert torch.allclose(told.log_probs[1].exp(), torch.full((5,), 0.2))
    assert (told.log_probs[0, 3:] == told.log_probs[0, :3].min()).all()
    assert torch.allclose(told.log_probs[0, :3].diff(), plain.log_probs[0, :3].diff(), atol=1e-5)
    rows, items = torch.tensor([0, 0, 1, 2]), torch.stack([learned[0], new[0], new[4], learned[7]])
    assert told.has_nothing(rows, items).tolist() == [False, True, True, False]


def test_score_tokens_of_new_candidates_are_placeholders(keys, make_trainer):
    trainer, data = make_trainer({**keys, **COLD, **CONCLUSIONS, "new_item_token": "placeholder", "item_token_dropout": 0.2})
    model = trainer.model.eval()
    batch = next(iter(data.test_data))[0]
    questions = model._questions(batch)
    concluded = model.conclude(questions.history, questions.candidates)
    assert concluded.is_new.all() and torch.allclose(concluded.log_probs.exp(), torch.tensor(0.2))
    prompts = model.encoder.encode(
        questions.history, questions.candidates, None, model.representation, torch.zeros_like(questions.rows)
    )
    of_score = prompts.slot_parts == SCORE
    found = model.item_tokens(prompts.slot_parts, prompts.slot_items, prompts.slot_rows, concluded)[of_score]
    assert of_score.sum() == questions.candidates.numel()
    assert torch.equal(found, model.item_tokens.placeholder.expand(len(found), -1))
    rows = model.training_rows(next(iter(data.train_data)), 0)
    concluded = model.conclude(rows.history, rows.candidates)
    assert not concluded.is_new[torch.arange(len(rows.targets)), rows.target_columns].any()  # what was learned has a rank


@pytest.mark.parametrize("token", ["text", "neighbours"])
@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec", "Caser"])
def test_the_recommender_scores_new_candidates_by_the_vectors_made_for_them(keys, make_trainer, token, rec_model):
    given = {**keys, **COLD, **CONCLUSIONS, "rec_model": rec_model, "new_item_token": token, "new_item_neighbours": 3}
    trainer, data = make_trainer(given)
    model = trainer.model.eval()
    questions = model._questions(next(iter(data.test_data))[0])
    concluded = model.conclude(questions.history, questions.candidates)
    assert concluded.is_new is None
    recommender, network, _ = model.answering
    table = recommender.item_embeddings.clone()
    table[recommender.is_new] = model.item_tokens.item_embeddings[recommender.is_new]
    assert torch.equal(network.item_embedding.weight[: len(table)], table)
    plain_recommender, plain_network, own = recommender_model(RunConfig("LLaRA", "toy", config_dict=given), data)
    assert torch.equal(plain_recommender.item_embeddings, recommender.item_embeddings)  # what it learned is not written over
    plain = Concluding(plain_network, own, False, recommender.is_new)(questions.history, questions.candidates)
    assert torch.allclose(plain.log_probs.exp(), torch.tensor(0.2))
    assert not (concluded.log_probs == plain.log_probs).any()


def test_dealt_vectors_say_nothing_of_new_candidates(keys, make_trainer):
    """Those of a control, made out of other items' vectors, are not for the recommender."""
    given = {**keys, **COLD, **CONCLUSIONS, "new_item_token": "text", "shuffle_item_embeddings": True}
    trainer, data = make_trainer(given)
    questions = trainer.model.eval()._questions(next(iter(data.test_data))[0])
    assert trainer.model.conclude(questions.history, questions.candidates).is_new.all()


def test_dropped_tokens_are_a_share_of_the_items_and_follow_row_epoch_and_item(keys, make_trainer):
    trainer, data = make_trainer({**keys, "item_token_dropout": 0.3, "max_train_rows": 0, "train_batch_size": 256})
    model = trainer.model
    interaction = next(iter(data.train_data))
    rows, later = model.training_rows(interaction, 0), model.training_rows(interaction, 1)

    def dropped(rows):
        """Of each slot (row number, item), whether it holds a placeholder."""
        prompts = model.encode_training(rows, model.representation)
        ids, items, parts = rows.row_ids[prompts.slot_rows].tolist(), prompts.slot_items.tolist(), prompts.slot_parts.tolist()
        assert set(parts) == {EMBEDDING, HOLDER}
        return [((row, item), part == HOLDER) for row, item, part in zip(ids, items, parts, strict=True)]

    found = dropped(rows)
    # Some 2,500 items: five standard deviations are .046.
    assert sum(dict(found).values()) / len(dict(found)) == pytest.approx(0.3, abs=0.046)
    assert all(dict(found)[pair] == is_dropped for pair, is_dropped in found)  # the same wherever the item stands in the row
    order = torch.arange(len(rows.targets)).flip(0)
    parts = [dict(dropped(rows.take(part))) for part in (order[:100], order[100:])]
    assert parts[0] | parts[1] == dict(found)
    again = dict(dropped(later))
    both = dict(found).keys() & again.keys()
    assert sum(dict(found)[pair] != again[pair] for pair in both) > 0.3 * len(both)
    trainer, data = make_trainer(keys)
    rows = trainer.model.training_rows(next(iter(data.train_data)), 0)
    assert isinstance(rows, TrainingRows)
    assert set(trainer.model.encode_training(rows, model.representation).slot_parts.tolist()) == {EMBEDDING}


def test_an_evaluation_drops_nothing(keys, make_trainer):
    trainer, data = make_trainer({**keys, "item_token_dropout": 0.9})
    plain, _ = make_trainer(keys)
    batch = next(iter(data.test_data))[0]
    found = [each.model.eval().answer_candidates(batch).scores for each in (trainer, plain)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "changes",
    [
        {"new_item_token": "text", **CONCLUSIONS},
        {"new_item_token": "placeholder", "recommender_rows": "earlier", "recommender_at_test": "earlier"},
        {"new_item_token": "neighbours", "recommender_rows": "earlier", "listwise_prior": "recommender", "answer_loss": "listwise"},
    ],
)  # fmt: skip
def test_a_run_answers_the_same_once_loaded(keys, changes):
    returned = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **COLD, **changes})
    cases = [json.loads(line) for line in Path(returned["cases_file"]).read_text(encoding="utf-8").splitlines()]
    assert all(case["target_users"] == 0 for case in cases)
    loaded = load(returned["run_dir"])
    histories = [loaded.items("history", case["history"]) for case in cases]
    candidates = torch.tensor([loaded.items("candidates", case["candidates"]) for case in cases])
    assert torch.allclose(loaded.scores(histories, candidates), torch.tensor([case["scores"] for case in cases]), atol=1e-3)
    recommended = [loaded.names.find(one.item_id) for one in loaded.recommend(cases[0]["history"], k=5)]
    assert not loaded.data.dataset.is_held_out[recommended].any()


def test_a_checkpoint_of_another_token_or_of_other_held_out_items_is_refused(keys):
    given = {**keys, **COLD, "new_item_token": "neighbours"}
    checkpoint = run_recbole_llara("LLaRA", "toy", config_dict=given)["checkpoint"]
    evaluated = run_recbole_llara("LLaRA", "toy", config_dict={**given, "checkpoint": checkpoint})
    assert 0 <= evaluated["test_result"]["hit@1"] <= 1
    for change, told in (
        ({"new_item_token": "text"}, "new_item_token: '10 neighbours' there, 'text' here"),
        ({"new_item_neighbours": 4}, "new_item_token: '10 neighbours' there, '4 neighbours' here"),
        ({"candidate_seed": 1}, "split_digest"),
    ):
        with pytest.raises(UserError, match=told):
            run_recbole_llara("LLaRA", "toy", config_dict={**given, **change, "checkpoint": checkpoint})


def test_tokens_without_meaning_are_told(keys, caplog):
    given = {**keys, **COLD, "new_item_token": "text"}
    with pytest.raises(UserError, match="new_item_token: found text with item_embeddings random, .* expected own"):
        RunConfig("LLaRA", "toy", config_dict={**given, "item_embeddings": "random"})
    RunConfig("TALLRec", "toy", config_dict={**given, "item_embeddings": "random"})  # shows none
    with caplog.at_level(logging.WARNING):
        RunConfig("LLaRA", "toy", config_dict={**given, "new_item_token": "placeholder", "item_token_dropout": 0.1})
        RunConfig("LLaRA", "toy", config_dict={**given, "new_item_token": "placeholder", "strategy": "curriculum"})
        assert "new_item_token" not in caplog.text
        RunConfig("LLaRA", "toy", config_dict={**given, "new_item_token": "placeholder"})
    assert "no training prompt shows [PH]" in caplog.text


@pytest.mark.parametrize("model", ["RSLLM", "TALLRec", "ZeroShotLLM", "Popularity"])
def test_every_system_runs(keys, model):
    given = {**keys, **COLD, "new_item_token": "text"}
    if model == "RSLLM":
        given |= {"strategy": "two_stage", "stage_1_epochs": 1, "epochs": 2}
    elif model != "TALLRec":
        given["epochs"] = 0
    if model == "Popularity":
        given = {key: given[key] for key in ("data_path", "checkpoint_dir", "load_col", "title_field", "use_gpu", "epochs")}
        given |= {key: value for key, value in COLD.items() if not key.startswith("rec_")}
    result = run_recbole_llara(model, "toy", config_dict=given)
    assert 0 <= result["test_result"]["hit@1"] <= 1


def test_shuffled_embeddings_deal_what_was_learned_alone(keys):
    config = RunConfig(
        "LLaRA", "toy", config_dict={**keys, **COLD, "new_item_token": "neighbours", "shuffle_item_embeddings": True}
    )
    data = prepare_data(config)
    model = build_model(config, data)
    is_new, table = model.recommender.is_new, centred(model.recommender.item_embeddings, ~model.recommender.is_new)
    dealt = model.item_tokens.item_vectors(torch.arange(len(table)))
    assert torch.allclose(dealt[~is_new].sort(0).values, table[~is_new].sort(0).values, atol=1e-5)
    assert not torch.allclose(dealt[~is_new], table[~is_new])
