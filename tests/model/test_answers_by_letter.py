"""Runs that answer by letter: what is ranked by, what is learned, and a run that is loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_run import stirred

from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.llm.likelihood import candidate_log_probs, trie_log_probs
from recbole_llara.model.answering import Questions, answer_context, candidate_scores
from recbole_llara.prompt.representation import Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.explain import explain
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

LETTERS = {"answer_form": "letter", "llm_path": "tiny", "llm_tuning": "lora"}  # the toy LLM has no token of a letter
MODELS = ["LLaRA", "RSLLM", "TALLRec"]


@pytest.fixture(params=MODELS)
def trained(request, keys, make_trainer):
    """A model of each kind with adapters that say something, and the rows of a step."""
    model, rows = stirred(*make_trainer({**keys, **LETTERS, "answer_loss": "listwise"}, request.param))
    return model.eval(), rows


def test_scores_are_the_letters_log_probabilities(trained):
    model, rows = trained
    questions = Questions(rows.history, rows.candidates, rows.row_ids)
    with torch.no_grad():
        scores = candidate_scores(model, questions)
        prompts = model.encoder.encode(
            rows.history, rows.candidates, None, model.representation, torch.zeros_like(rows.row_ids), "left"
        )
        logits = causal_lm(model.llm)(**vars(model.embed(prompts))).logits[:, -1].log_softmax(1)  # [B, V]
    letters = [model.tokenizer(f"\n {letter}", add_special_tokens=False)["input_ids"][-1] for letter in "ABCDEFGHIJ"]
    assert torch.allclose(scores, logits[:, letters[: rows.candidates.shape[1]]], atol=1e-4)


def test_losses_are_of_the_letter(trained):
    model, rows = trained
    with torch.no_grad():
        step = model.begin_step(rows, model.representation)
        losses = model.step_losses(rows, step)
        prompts = model.encode_training(rows, model.representation, with_answers=False)
        scores = model.read_answers(*answer_context(model, prompts, rows.candidates, model.representation)).sum(2)
    own = scores.gather(1, rows.target_columns[:, None])
    assert step.tokens == len(rows.targets)
    expected = -scores.log_softmax(1).gather(1, rows.target_columns[:, None]).mean()
    assert losses["listwise"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["answer"].item() == pytest.approx(-0.1 * own.mean().item(), rel=1e-4)


def test_an_llm_that_reads_no_tree_gives_the_same_in_one_pass(trained, monkeypatch):
    model, rows = trained
    prompts = model.encode_training(rows, model.representation, with_answers=False)
    context, passes = answer_context(model, prompts, rows.candidates, model.representation), []
    llm = causal_lm(model.llm)
    monkeypatch.setattr(llm, "forward", lambda *args, own=llm.forward, **named: passes.append(1) or own(*args, **named))
    with torch.no_grad():
        one_by_one = candidate_log_probs(*context)
        assert len(passes) == 1
        assert torch.allclose(one_by_one, trie_log_probs(*context), atol=1e-4)


def test_other_orders_of_the_prompt_give_the_letters_to_others(trained):
    """The item that a letter stands for is told by the prompt: without behaviour or order of the LLM's own, scores go with the place."""
    model, rows = trained
    questions = Questions(rows.history, rows.candidates.flip(1), rows.row_ids)
    with torch.no_grad():
        turned = candidate_scores(model, questions)
        prompts = model.encoder.encode(
            rows.history, rows.candidates.flip(1), None, model.representation, torch.zeros_like(rows.row_ids)
        )
        context = answer_context(model, prompts, rows.candidates, model.representation)
        assert torch.allclose(turned.flip(1), model.read_answers(*context).sum(2), atol=1e-4)


def test_what_is_written_is_a_letter(trained):
    model, rows = trained
    questions = Questions(rows.history, rows.candidates, rows.row_ids)
    with torch.no_grad():
        written, scored = (DECODINGS[name].function(model, questions) for name in ("generate", "score"))
        chosen = DECODINGS["constrained"].function(model, questions)
    assert scored.texts is None and torch.equal(chosen.items, scored.items)
    for text, item, row in zip(written.texts, written.items.tolist(), range(len(rows.targets)), strict=True):
        letter = text.strip()
        place = "ABCDEFGHIJ".find(letter) if len(letter) == 1 else -1
        assert item == (int(rows.candidates[row, place]) if place >= 0 else 0)


@pytest.mark.parametrize("order", ["drawn", "recommender"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_loaded_and_answers_as_it_did(keys, name, order):
    changes = {**LETTERS, "candidate_order": order, "answer_loss": "listwise"}
    returned = run_recbole_llara(name, "toy", config_dict={**keys, **changes})
    cases = [json.loads(line) for line in Path(returned["cases_file"]).read_text(encoding="utf-8").splitlines()]
    assert all(case["answer_text"] == case["answer_title"] for case in cases)
    run = load(returned["run_dir"])
    assert run.model.representation.answer is Part.LETTER
    histories = [run.items("history", case["history"]) for case in cases]
    candidates = torch.tensor([run.items("candidates", case["candidates"]) for case in cases])
    expected = torch.tensor([case["scores"] for case in cases])
    assert torch.allclose(run.scores(histories, candidates), expected, atol=1e-3)
    again = run.scores(histories, candidates)  # out of what was kept of the prompts
    assert torch.allclose(again, expected, atol=1e-3)
    with pytest.raises(UserError, match="answer_form"):
        load(returned["run_dir"], answer_form="title")


def test_a_loaded_run_explains_and_marks_no_more_candidates_than_it_learned(keys):
    returned = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **LETTERS})
    run = load(returned["run_dir"])
    told = explain(run, ["i1", "i2", "i3"])
    assert told.explained.without_history_titles is not None
    count = run.config["candidate_num"]
    assert len(run.recommend(["i1", "i2"], k=3)) == 3
    with pytest.raises(UserError, match=f"found letter and {count + 2} candidates, expected at most {count}"):
        run.recommend(["i1", "i2"], k=3, retrieve_k=count + 2)


def test_both_tasks_of_a_curriculum_answer_by_letter(keys, make_trainer):
    trainer, _ = make_trainer({**keys, **LETTERS, "strategy": "curriculum"})
    (stage,) = trainer.stages
    assert stage.hard.answer is stage.easy.answer is Part.LETTER
    assert replace(stage.hard, answer=Part.TITLE).in_candidates == stage.hard.parts
