"""What the recommender concluded, in the prompt: where it stands, what it holds, what learns, and where it cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.llm.architecture import input_embeddings
from recbole_llara.llm.item_tokens import Conclusions
from recbole_llara.model.answering import evaluation_prompts, score
from recbole_llara.prompt.representation import REPRESENTATIONS, SLOT_PARTS, Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.frozen import item_embedding_table, recommender_model
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

BOTH = {"user_token": True, "recommender_score_token": "rank"}
USER, SCORE = SLOT_PARTS.index(Part.USER), SLOT_PARTS.index(Part.SCORE)


def _prompts(model, rows, representation):
    return model.encoder.encode(rows.history, rows.candidates, rows.targets, representation, rows.template_index)


@pytest.mark.parametrize("name", ["hybrid", "textual", "hybrid_with_dsr"])
def test_where_they_stand(keys, make_trainer, name):
    trainer, data = make_trainer({**keys, **BOTH, "representation": name})
    model = trainer.model
    representation = model.representation
    assert representation.conclusions == (Part.USER, Part.SCORE)
    rows = model.training_rows(next(iter(data.train_data)), 0)
    prompts, plain = _prompts(model, rows, representation), _prompts(model, rows, REPRESENTATIONS[name])
    is_slot = torch.zeros_like(prompts.input_ids, dtype=torch.bool)
    for wanted in (USER, SCORE):
        of_part = prompts.slot_parts == wanted
        is_slot[prompts.slot_rows[of_part], prompts.slot_columns[of_part]] = True
    for row in range(len(rows.targets)):
        own = (prompts.slot_rows == row) & (prompts.slot_parts == SCORE)
        assert prompts.slot_items[own].tolist() == rows.candidates[row].tolist()
        users = (prompts.slot_rows == row) & (prompts.slot_parts == USER)
        assert users.sum() == 1
        assert prompts.slot_columns[users] < prompts.slot_columns[own].min()
        assert not prompts.pooled[row, prompts.slot_columns[own | users]].any()
        # All else is as it was, but for marks that a tokenizer had read together with a title.
        kept = prompts.attention_mask[row].bool() & ~is_slot[row]
        before = plain.attention_mask[row].bool()
        assert model.tokenizer.decode(prompts.input_ids[row][kept]) == model.tokenizer.decode(plain.input_ids[row][before])
    assert model.encoder.longest_prompt(10, 10)[0].input_ids.shape[1] > plain.input_ids.shape[1]


def test_the_easy_task_shows_none(keys, make_trainer):
    trainer, _ = make_trainer({**keys, **BOTH, "strategy": "curriculum"})
    (stage,) = trainer.stages
    assert stage.hard.conclusions and not stage.easy.conclusions


@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec", "Caser"])
def test_the_sequence_output_gives_the_scores(keys, rec_model):
    config = RunConfig("LLaRA", "toy", config_dict={**keys, "rec_model": rec_model})
    data = prepare_data(config)
    _, model, own = recommender_model(config, data)
    history = torch.tensor([[3, 7, 9, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    history = torch.nn.functional.pad(history, (0, config["MAX_ITEM_LIST_LENGTH"] - 10))
    candidates = torch.tensor([[1, 4, 8], [2, 3, 9]])
    asked = Concluding(model, own, with_outputs=True)
    _, output = asked._read(history)
    scores = output @ item_embedding_table(model).T
    found = asked(history, candidates)
    assert torch.allclose(found.log_probs, scores.gather(1, candidates).log_softmax(1), atol=1e-5)
    assert torch.allclose(found.outputs.std(1, unbiased=False), torch.ones(2), atol=1e-2)
    fields = {"item_id_list": history, "item_length": (history > 0).sum(1), "user_id": torch.zeros(2, dtype=torch.int64)}
    with torch.no_grad():
        assert torch.allclose(model.full_sort_predict(Interaction(fields)).view(2, -1), scores, atol=1e-5)
    assert model.forward.__name__ == "forward"


def test_features_of_a_candidate():
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    told = Conclusions(None, probabilities.log(), torch.tensor([[7, 8, 9], [9, 4, 5]]))
    ranks, features = told.features(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([7, 8, 9, 4, 5]))
    assert ranks.tolist() == [2, 0, 0, 0, 2]
    assert torch.allclose(
        features[0], torch.tensor([0.2, 0.2, 1 / 3]).where(torch.tensor([False, True, True]), torch.tensor(0.2).log())
    )


@pytest.mark.parametrize("score", ["rank", "log_prob"])
def test_what_learns(keys, make_trainer, score):
    trainer, data = make_trainer({**keys, "user_token": True, "recommender_score_token": score, "answer_loss": "listwise"})
    model, tokens = trainer.model.train(), trainer.model.item_tokens
    rows = model.training_rows(next(iter(data.train_data)), 0)
    sum(model.step_losses(rows, model.begin_step(rows, model.representation)).values()).backward()
    told = tokens.ranks if score == "rank" else tokens.score_projector.linear_2.weight
    assert told.grad.abs().sum() > 0 and tokens.user_projector.linear_1.weight.grad.abs().sum() > 0
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in model.conclude.model.parameters())
    assert not any("conclude" in name for name, _ in model.named_parameters())


def test_ranks_begin_as_the_words_for_numbers(keys, make_trainer):
    model = make_trainer({**keys, **BOTH})[0].model
    for rank in (0, 9):
        tokens = model.tokenizer(f"x {rank + 1}", add_special_tokens=False)["input_ids"][1:]
        word = input_embeddings(model.llm).weight[tokens].mean(0)
        assert torch.allclose(model.item_tokens.ranks[rank], word)


def test_they_turn_answers(keys, make_trainer):
    """Another order by the recommender gives other scores; the same one gives the same."""
    trainer, data = make_trainer({**keys, **BOTH})
    model = trainer.model.eval()
    batch = next(iter(data.test_data))[0]
    first, again = (model.answer_candidates(batch).scores for _ in range(2))
    conclude = model.conclude

    def upside_down(history, candidates):
        found = conclude(history, candidates)
        return replace(found, log_probs=-found.log_probs)

    model.conclude = upside_down
    assert torch.equal(first, again) and not torch.allclose(model.answer_candidates(batch).scores, first)


@pytest.mark.parametrize("model", ["LLaRA", "RSLLM"])
def test_a_run_and_what_is_loaded_of_it(keys, model):
    stages = {"strategy": "two_stage", "stage_1_epochs": 1, "epochs": 2} if model == "RSLLM" else {}
    returned = run_recbole_llara(model, "toy", config_dict={**keys, **stages, **BOTH})
    cases = [json.loads(line) for line in Path(returned["cases_file"]).read_text(encoding="utf-8").splitlines()]
    loaded = load(returned["run_dir"])
    histories = [loaded.items("history", case["history"]) for case in cases]
    candidates = torch.tensor([loaded.items("candidates", case["candidates"]) for case in cases])
    assert torch.allclose(loaded.scores(histories, candidates), torch.tensor([case["scores"] for case in cases]), atol=1e-3)


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("TALLRec", {"user_token": True}, "found one of them with TALLRec, which reads words"),
        ("LLaRA", {"user_token": True, "item_embeddings": "random"}, "item_embeddings: found random with user_token"),
        (
            "LLaRA",
            {"candidate_order": "recommender", "item_embeddings": "random"},
            "candidate_order recommender, which tell what a",
        ),
        ("LLaRA", {"recommender_score_token": "ranks"}, "recommender_score_token: found 'ranks'"),
        ("LLaRA", {"user_token": True, "rec_model": "BERT4Rec"}, "user_token: the sequence output of BERT4Rec"),
    ],
)
def test_where_they_cannot_be(keys, model, changes, said):
    with pytest.raises(UserError, match=said):
        run_recbole_llara(model, "toy", config_dict={**keys, **changes})


ORDERED = {"candidate_order": "recommender"}


def _listed(prompts, count):
    """[B, count] the items of behavioural tokens in the list of candidates, which closes a prompt."""
    is_item = prompts.slot_parts == SLOT_PARTS.index(Part.ITEM_EMBEDDING)
    rows, items = prompts.slot_rows[is_item], prompts.slot_items[is_item]
    return torch.stack([items[rows == row][-count:] for row in range(len(prompts.input_ids))])


def test_candidates_stand_in_the_recommenders_order(keys, make_trainer):
    """In training and in answers; easy tasks, labels and the columns of scores know nothing of it."""
    trainer, data = make_trainer({**keys, **ORDERED, "strategy": "curriculum"})
    model = trainer.model
    rows = model.training_rows(next(iter(data.train_data)), 0)
    log_probs = model.conclude(rows.history, rows.candidates).log_probs
    best_first = rows.candidates.gather(1, log_probs.argsort(1, descending=True))
    assert not torch.equal(best_first, rows.candidates)
    hard, easy = (model.encode_training(rows, task) for task in (trainer.stages[0].hard, trainer.stages[0].easy))
    assert torch.equal(_listed(hard, best_first.shape[1]), best_first)
    assert torch.equal(easy.input_ids, _prompts(model, rows, trainer.stages[0].easy).input_ids)
    assert torch.equal(hard.labels[:, -3:], model.encode_training(rows, REPRESENTATIONS["hybrid"]).labels[:, -3:])

    model.eval()
    batch = next(iter(data.test_data))[0]
    asked = model._questions(batch)
    best_first = asked.candidates.gather(
        1, model.conclude(asked.history, asked.candidates).log_probs.argsort(1, descending=True)
    )
    assert torch.equal(_listed(evaluation_prompts(model, asked), best_first.shape[1]), best_first)
    scores = model.answer_candidates(batch).scores
    turned = replace(asked, candidates=asked.candidates.flip(1))
    assert torch.allclose(score(model, turned).scores.flip(1), scores, atol=1e-4)


def test_words_alone_in_the_recommenders_order(keys, make_trainer):
    trainer, data = make_trainer({**keys, **ORDERED}, "TALLRec")
    model = trainer.model
    rows = model.training_rows(next(iter(data.train_data)), 0)
    drawn = _prompts(model, rows, REPRESENTATIONS["textual"])
    ordered = model.encode_training(rows, model.representation)
    assert model.recommender is not None and model.item_tokens.projector is None
    assert not torch.equal(ordered.input_ids, drawn.input_ids) and len(ordered.slot_items) == 0


def test_a_run_in_the_recommenders_order_is_loaded_in_no_other(keys):
    returned = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **ORDERED})
    cases = [json.loads(line) for line in Path(returned["cases_file"]).read_text(encoding="utf-8").splitlines()]
    loaded = load(returned["run_dir"])
    histories = [loaded.items("history", case["history"]) for case in cases]
    candidates = torch.tensor([loaded.items("candidates", case["candidates"]) for case in cases])
    assert torch.allclose(loaded.scores(histories, candidates), torch.tensor([case["scores"] for case in cases]), atol=1e-3)
    with pytest.raises(UserError, match="candidate_order"):
        load(returned["run_dir"], candidate_order="drawn")
