"""Training rows whose candidates are read as if they were new: their vectors and scores, which rows they are, and what is refused."""

from pathlib import Path

import pytest
import torch

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.llm.item_tokens import standard_of
from recbole_llara.model.build import build_model
from recbole_llara.prompt.representation import SLOT_PARTS, Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.recommender.new_items import NewItemVectors, TextFeatures, as_if_new, fitted_on
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

COLD = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1, 5], "rec_eval_step": 0}
AS_NEW = {**COLD, "new_item_token": "text", "as_new_share": 0.5, "max_train_rows": 0, "train_batch_size": 256}
CONCLUSIONS = {"user_token": True, "recommender_score_token": "log_prob", "candidate_order": "recommender"}
EMBEDDING, SCORE = (SLOT_PARTS.index(part) for part in (Part.ITEM_EMBEDDING, Part.SCORE))


def as_new_rows(model, data):
    """[N, d_rec] by the functions of ``new_items``, from the recommender's own table."""
    table, is_new, texts = model.item_tokens.item_embeddings, model.recommender.is_new, data.catalogue.texts()
    learned = fitted_on(is_new)
    features = TextFeatures(model.read_texts, [texts[item] for item in learned.tolist()])
    vectors = NewItemVectors("text", features, model.recommender.item_embeddings[learned], 10)
    return as_if_new(table, is_new, vectors, texts)


def test_a_share_of_the_rows_has_candidates_as_if_new_and_histories_as_they_are(keys, make_trainer):
    trainer, data = make_trainer({**keys, **AS_NEW, "item_token_dropout": 0.2})
    model, interaction = trainer.model, next(iter(data.train_data))
    rows, later = model.training_rows(interaction, 0), model.training_rows(interaction, 1)
    n, known = model.n_items, (rows.candidates[:, :, None] == rows.history[:, None]).any(2)
    is_drawn = (rows.read_as != rows.candidates).any(1)
    assert 0.3 < float(is_drawn.float().mean()) < 0.7 and not torch.equal(is_drawn, (later.read_as != later.candidates).any(1))
    assert torch.equal(rows.read_as, torch.where(is_drawn[:, None] & ~known, rows.candidates + n, rows.candidates))
    prompts, plain = (model.encode_training(rows, model.representation) for _ in range(2))
    assert torch.equal(prompts.slot_items, plain.slot_items)
    of_rows, items = prompts.slot_rows, prompts.slot_items
    in_history = (rows.history[of_rows] == (items % n)[:, None]).any(1)
    assert torch.equal(items >= n, (prompts.slot_parts == EMBEDDING) & is_drawn[of_rows] & ~in_history)
    some = rows.take(torch.tensor([3, 8, 5]))
    assert torch.equal(some.read_as, rows.read_as[[3, 8, 5]])


def test_vectors_and_scores_of_such_items_are_made_out_of_their_texts(keys, make_trainer):
    trainer, data = make_trainer({**keys, **AS_NEW, **CONCLUSIONS})
    model = trainer.model
    tokens, n, expected = model.item_tokens, model.n_items, as_new_rows(model, data)
    mean, deviation = standard_of(model.item_tokens.item_embeddings, ~model.recommender.is_new)
    items = torch.arange(1, n)
    parts = torch.full_like(items, EMBEDDING)
    model.train()
    assert torch.allclose(tokens(parts, n + items), tokens.projector((expected[1:] - mean) / deviation), atol=1e-4)
    learned = tokens(parts, items)
    assert (
        not torch.isclose(tokens(parts, n + items)[~model.recommender.is_new[1:]], learned[~model.recommender.is_new[1:]])
        .all(1)
        .any()
    )
    rows = model.training_rows(next(iter(data.train_data)), 0)
    concluded = model.conclude(rows.history, rows.read_as)
    _, network, own = recommender_model(trainer.config, data)
    plain = Concluding(network, own, True)(rows.history, rows.candidates)
    # Histories by the rows that were learned, candidates by those that were made: the output of one and the scores of the other.
    own_scores, output = model._conclude_by_mode[False]._read(rows.history)
    scores = (output @ expected.T).gather(1, rows.candidates)
    is_new = rows.read_as >= n
    assert is_new.all(1).any() and (~is_new).all(1).any()
    own_scores = own_scores.view(len(scores), -1).gather(1, rows.candidates)
    both = torch.where(is_new, scores, own_scores).log_softmax(1)
    assert torch.allclose(concluded.log_probs, both, atol=1e-4) and torch.allclose(concluded.outputs, plain.outputs, atol=1e-5)
    prompts = model.encode_training(rows, model.representation)
    order = torch.stack([torch.tensor(sorted(range(5), key=lambda c: -float(both[row, c]))) for row in range(len(both))])
    assert torch.equal(prompts.asked[1], rows.read_as.gather(1, order))
    assert set(prompts.slot_items[prompts.slot_parts == SCORE].tolist()) == set(rows.read_as.flatten().tolist())
    model.eval()
    assert torch.equal(model.conclude(rows.history, rows.candidates).log_probs, own_scores.log_softmax(1))


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("LLaRA", {**CONCLUSIONS, "answer_form": "letter", "answer_loss": "listwise", "llm_path": "tiny"}),
        ("LLaRA", {"answer_loss": "listwise", "listwise_prior": "recommender"}),
        ("LLaRA", {"new_item_token": "neighbours", "recommender_rows": "earlier", "as_new_share": 1.0}),
        ("LLaRA", {"recommender_rows": "earlier", "recommender_at_test": "earlier", **CONCLUSIONS}),
        ("RSLLM", {"strategy": "two_stage", "stage_1_epochs": 1, "epochs": 2, "micro_batch_size": 8}),
    ],
    ids=str,
)
def test_it_trains_and_answers(keys, model, own):
    given = {**keys, **AS_NEW, "train_batch_size": 16, "max_train_rows": 48, **own}
    run = run_recbole_llara(model, "toy", config_dict=given)
    again = run_recbole_llara(model, "toy", config_dict={**given, "checkpoint": run["checkpoint"]})
    assert again["test_result"] == run["test_result"]
    plain = run_recbole_llara(model, "toy", config_dict={**given, "as_new_share": 0.0})
    assert Path(plain["cases_file"]).read_text(encoding="utf-8") != Path(run["cases_file"]).read_text(encoding="utf-8")
    loaded = load(run["run_dir"])
    loaded.add_items([{"item_id": "later", "title": "Title 3 later"}])
    assert len(loaded.recommend(["i1", "i2"], k=3)) == 3


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"new_item_token": "own"}, "as_new_share: found 0.5 with new_item_token own, .*expected 0, or new_item_token text"),
        ({"new_item_token": "placeholder", "item_token_dropout": 0.1}, "with new_item_token placeholder"),
        ({"shuffle_item_embeddings": True}, "with shuffle_item_embeddings True; expected 0"),
        ({"item_embeddings": "random"}, "as_new_share: found 0.5 with item_embeddings random"),
        (
            {"representation": "textual"},
            "as_new_share: found 0.5 with representation textual, which shows no behavioural token",
        ),
        ({"as_new_share": 1.5}, "as_new_share: found 1.5"),
    ],
    ids=str,
)
def test_what_makes_no_vectors_is_refused(keys, own, message):
    with pytest.raises(UserError, match=message):
        RunConfig("LLaRA", "toy", config_dict={**keys, **AS_NEW, **own})


def test_a_recommender_that_does_not_score_by_its_table_is_refused_where_its_scores_are_read(keys):
    given = {**keys, **AS_NEW, "rec_model": "BERT4Rec"}
    config = RunConfig("LLaRA", "toy", config_dict={**given, "candidate_order": "recommender"})
    with pytest.raises(UserError, match="as_new_share: the scores of BERT4Rec do not come from its item table alone"):
        build_model(config, prepare_data(config))
