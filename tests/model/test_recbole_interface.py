"""Our LLM recommenders as RecBole's models: its own Trainer, unchanged, trains and evaluates them, and its case study reads them."""

import math

import numpy as np
import pytest
import torch
from recbole.trainer import Trainer
from recbole.utils.case_study import full_sort_scores, full_sort_topk
from torch.optim.optimizer import register_optimizer_step_pre_hook

TWO_STAGES = {"strategy": "two_stage", "epochs": 2, "stage_1_epochs": 1}
CHANGES = {"LLaRA": {"strategy": "curriculum"}, "RSLLM": TWO_STAGES}


@pytest.fixture(params=["LLaRA", "RSLLM"])
def name(request):
    return request.param


def test_recbole_s_trainer_trains_and_evaluates_as_ours_does(keys, make_trainer, name):
    ours, data = make_trainer({**keys, **CHANGES[name]}, name)
    model = ours.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = Trainer(ours.config, model)
    _, valid = theirs.fit(data.train_data, data.valid_data, saved=False)
    assert model.steps_taken == ours.config["epochs"] * len(data.train_data)
    assert model.other_parameter() == {"steps_taken": model.steps_taken}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any("lora" in key for key in moved) and any("projector" in key for key in moved)
    assert all(torch.isfinite(torch.tensor(loss)) for loss in theirs.train_loss_dict.values())
    for loader in (data.valid_data, data.test_data):
        found = theirs.evaluate(loader, load_best_model=False)
        expected = ours.evaluate(loader, load_best_model=False)
        assert found == expected and found["validratio"] == 1
    assert valid == theirs.evaluate(data.valid_data, load_best_model=False)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_its_loss_is_our_step(keys, make_trainer, name, dropout):
    """Losses and gradients of every step of an epoch, ours in passes of 8 rows; the weights stay as they are."""
    changes = {"lora_dropout": dropout, "learning_rate": 1e-12, "max_grad_norm": 1e9, "micro_batch_size": 8}
    keys = {**keys, **CHANGES[name], **changes}
    trainer, data = make_trainer(keys, name)
    model, ours, theirs = _with_adapters(trainer.model), [], []
    hook = register_optimizer_step_pre_hook(lambda *_: ours.append(_gradients(model)))  # a stage has an optimiser of its own
    trainer.fit(data.train_data, None, saved=False)
    hook.remove()
    losses = [entry["loss"] for entry in trainer.progress.training_log]

    again, data = make_trainer(keys, name)
    model = _with_adapters(again.model).train()
    found = []
    for _epoch in range(again.config["epochs"]):
        for interaction in data.train_data:
            model.zero_grad()
            loss = model.calculate_loss(interaction)
            loss.backward()
            found.append(loss.item())
            theirs.append(_gradients(model))
    assert found == pytest.approx(losses, rel=1e-4) and len(found) == len(losses) > 2
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys() and mine
        for parameter, gradient in mine.items():
            assert (its[parameter] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-12, parameter


def _with_adapters(model):
    """In float64, with adapters that let gradients through."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0.0, 0.3, generator=generator)
    return model.double()


def _gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_scores_of_all_items_rank_the_candidates_and_nothing_else(keys, make_trainer):
    trainer, data = make_trainer({**keys, "decoding": "generate"})
    model = trainer.model.eval()
    interaction = next(iter(data.test_data))[0]
    candidates, scores = interaction["candidate_id_list"], model.full_sort_predict(interaction)
    assert scores.shape == (len(interaction), model.n_items)
    assert torch.equal(torch.isfinite(scores).nonzero()[:, 1].view_as(candidates), candidates.sort(1).values)
    model.decoding = "score"
    answers = model.answer_candidates(interaction)
    assert torch.allclose(scores.gather(1, candidates), answers.scores, rtol=1e-6)
    assert torch.equal(scores.argmax(1), answers.items)
    assert torch.equal(model.predict(interaction), scores.gather(1, interaction["item_id"][:, None])[:, 0])
    interaction["item_id"] = torch.zeros_like(interaction["item_id"])
    assert (model.predict(interaction) == -math.inf).all()


@pytest.fixture(params=[False, True], ids=["all numbers", "denormal numbers are zero"])
def flushing(request):
    """Whether the CPU takes numbers below 1.2e-38 for zero, as it does under the command line."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


def test_equal_likelihoods_are_ranked_as_ours_are(keys, make_trainer, flushing):
    """An LLM that finds every answer equally likely: no tie is left to ``topk``."""
    trainer, data = make_trainer(keys)
    model = trainer.model.eval()
    interaction = next(iter(data.test_data))[0]
    model.read_answers = lambda llm, prompts, answer_ids, before_pass=None: torch.zeros(answer_ids.shape)
    scores = model.full_sort_predict(interaction)
    finite = scores[torch.isfinite(scores)].view(len(interaction), -1)
    assert all(len(row.unique()) == finite.shape[1] for row in finite)
    assert torch.equal(scores.argmax(1), model.answer_candidates(interaction).items)


def test_recbole_s_case_study(keys, make_trainer):
    trainer, data = make_trainer(keys)
    dataset = data.test_data.dataset
    users = np.unique(dataset.inter_feat["user_id"].numpy())[:3]
    scores = full_sort_scores(users, trainer.model, data.test_data, device=trainer.device)
    values, items = full_sort_topk(users, trainer.model, data.test_data, k=3, device=trainer.device)
    for user, row, best in zip(users, scores, items, strict=True):
        candidates = dataset.inter_feat["candidate_id_list"][dataset.inter_feat["user_id"] == user][0]
        assert set(torch.isfinite(row).nonzero()[:, 0].tolist()) == set(candidates.tolist())
        assert set(best.tolist()) <= set(candidates.tolist())
    assert torch.equal(values, scores.topk(3).values)


def test_rows_without_candidates_are_refused(keys, make_trainer):
    trainer, data = make_trainer(keys)
    interaction = next(iter(data.test_data))[0]
    del interaction.interaction["candidate_id_list"]
    with pytest.raises(ValueError, match="expected candidate_id_list too.*recbole_llara.load"):
        trainer.model.eval().full_sort_predict(interaction)
