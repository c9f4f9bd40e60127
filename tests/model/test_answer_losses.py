"""``listwise`` and ``sdpo``: what they are, on the same likelihoods that ``score`` ranks by, however a step is cut."""

import json
from pathlib import Path

import pytest
import torch
from toy_run import stirred, stopped_run

from recbole_llara.model.answering import Questions, candidate_scores
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.recommender.retriever import asked_of
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

MODELS = ["LLaRA", "RSLLM", "TALLRec"]


def _losses(model, rows, step=None):
    return model.step_losses(rows, step or model.begin_step(rows, model.representation))


@pytest.mark.parametrize("name", MODELS)
def test_listwise_is_a_softmax_over_what_score_ranks_by(keys, make_trainer, name):
    changes = {"answer_loss": "listwise", "listwise_temperature": 1.5, "token_loss_weight": 0.3, "eval_template": "sampled"}
    model, rows = stirred(*make_trainer({**keys, **changes}, name))
    model.eval()
    model.template_index = lambda *_: rows.template_index
    with torch.no_grad():
        found = _losses(model, rows)
        scores = candidate_scores(model, Questions(rows.history, rows.candidates, rows.row_ids))
    expected = []
    for of_row, shown, target in zip(scores.tolist(), rows.candidates.tolist(), rows.targets.tolist(), strict=True):
        powers = torch.tensor(of_row, dtype=torch.float64) / 1.5
        expected.append(-powers.log_softmax(0)[shown.index(target)].item())
    assert found["listwise"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    own = scores.gather(1, rows.target_columns[:, None])
    step = model.begin_step(rows, model.representation)
    assert found["answer"].item() == pytest.approx(0.3 * -own.sum().item() / step.tokens, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_prior_is_added_within_the_softmax(keys, make_trainer, name):
    changes = {"answer_loss": "listwise", "listwise_prior": "recommender", "eval_template": "sampled", "lora_dropout": 0.0}
    trainer, data = make_trainer({**keys, **changes}, name)
    model, rows = stirred(trainer, data)
    model.template_index = lambda *_: rows.template_index
    model.train()
    with_prior = _losses(model, rows)["listwise"].item()
    prior = model.conclude(rows.history, rows.candidates).log_probs
    model.has_prior = False
    without = _losses(model, rows)["listwise"].item()
    with torch.no_grad():
        scores = candidate_scores(model.eval(), Questions(rows.history, rows.candidates, rows.row_ids))
    summed = (scores + prior).log_softmax(1).gather(1, rows.target_columns[:, None])
    assert with_prior == pytest.approx(-summed.mean().item(), rel=1e-4)
    assert abs(with_prior - without) > 1e-3
    _, network, own = recommender_model(trainer.config, data)
    asked = network.full_sort_predict(asked_of(own, rows.history, torch.zeros_like(rows.targets)))
    assert torch.allclose(prior, asked.view(len(prior), -1).gather(1, rows.candidates).log_softmax(1), atol=1e-5)


def test_a_run_with_a_prior_is_fused_and_loaded(keys):
    changes = {"answer_loss": "listwise", "listwise_prior": "recommender", "fusion": "validation"}
    returned = run_recbole_llara("TALLRec", "toy", config_dict={**keys, **changes})
    result = json.loads(Path(returned["result_file"]).read_text(encoding="utf-8"))
    assert result["fusion"]["name"] == "TALLRec + SASRec" and result["rec_model"] == "SASRec"
    loaded = load(returned["run_dir"])
    assert loaded.fusion.weights == tuple(result["fusion"]["weights"].values()) and not loaded.model.has_prior


def test_without_a_token_loss(keys, make_trainer):
    model, rows = stirred(*make_trainer({**keys, "answer_loss": "listwise", "token_loss_weight": 0.0}))
    assert list(_losses(model, rows)) == ["listwise"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["listwise", "sdpo"])
def test_a_step_does_not_depend_on_its_cut(keys, make_trainer, name, loss):
    weights = {"item_item_weight": 0.0, "user_item_weight": 0.4} if name == "RSLLM" else {}
    model, rows = stirred(*make_trainer({**keys, **weights, "answer_loss": loss, "lora_dropout": 0.2}, name))
    model.train().take_reference()
    with torch.no_grad():
        for value in (p for p in model.parameters() if p.requires_grad):
            value.add_(0.01)
    gradients, sums = [], []
    for size in (len(rows.targets), 3):
        model.zero_grad()
        step, total = model.begin_step(rows, model.representation), 0.0
        for part in torch.arange(len(rows.targets)).split(size):
            value = sum(_losses(model, rows.take(part), step).values())
            value.backward()
            total += value.item()
        step.finish()
        sums.append(total)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).abs().max() <= 1e-3 * gradient.abs().max() + 1e-8, name


def test_candidates_of_the_target_s_text_are_no_negatives(keys, make_trainer):
    model, rows = stirred(*make_trainer({**keys, "answer_loss": "listwise"}))
    model.eval()
    before = _losses(model, rows)["listwise"].item()
    row, other = 0, int(rows.target_columns[0] == 0)
    target, twin = int(rows.targets[row]), int(rows.candidates[row, other])
    encoder = model.encoder
    answers = encoder.answer_ids
    encoder.answer_ids = lambda items, *rest: answers(torch.where(items == twin, target, items), *rest)
    after = _losses(model, rows)["listwise"].item()
    assert after < before
    only = rows.take(torch.tensor([row]))
    encoder.answer_ids = lambda items, *rest: answers(torch.full_like(items, target), *rest)
    assert _losses(model, only)["listwise"].item() == 0.0  # nothing to choose from


def test_sdpo_is_the_paper_s_formula(keys, make_trainer):
    """S-DPO: -log sigma(-log sum_d exp(beta r_d - beta r_p)), r = log pi - log pi_ref."""
    changes = {"answer_loss": "sdpo", "sdpo_beta": 0.7, "token_loss_weight": 0.0}
    model, rows = stirred(*make_trainer({**keys, **changes}))
    model.eval().take_reference()
    questions = Questions(rows.history, rows.candidates, rows.row_ids)
    model.template_index = lambda *_: rows.template_index
    model.eval_template = "sampled"
    with torch.no_grad():
        reference = candidate_scores(model, questions).double()
        for value in (p for p in model.parameters() if p.requires_grad):
            value.add_(0.02)
        policy = candidate_scores(model, questions).double()
        found = _losses(model, rows)["sdpo"].item()
    expected = 0.0
    for ratios, column in zip((policy - reference).tolist(), rows.target_columns.tolist(), strict=True):
        worse = [torch.tensor(0.7 * (ratio - ratios[column])).exp() for place, ratio in enumerate(ratios) if place != column]
        expected -= torch.nn.functional.logsigmoid(-torch.log(torch.stack(worse).sum())).item()
    assert found == pytest.approx(expected / len(rows.targets), rel=1e-3)


def test_the_reference_is_of_the_beginning_and_leaves_the_weights_alone(keys, make_trainer):
    trainer, data = make_trainer({**keys, "answer_loss": "sdpo", "token_loss_weight": 0.0, "lora_dropout": 0.3})
    model, rows = stirred(trainer, data)
    model.train().take_reference()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    whole = model.begin_step(rows, model.representation)
    with model.as_reference():
        pass
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    trainer.steps.take(trainer.optimizer, rows, model.representation, 0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(not torch.equal(before[name], model.get_parameter(name)) for name in trained)
    assert all(torch.equal(before[name], model.reference[name]) for name in trained)
    model.eval()
    assert _losses(model, rows, whole)["sdpo"].item() != pytest.approx(torch.tensor(10.0).log().item(), abs=1e-4)


def test_at_its_beginning_sdpo_prefers_nobody(keys, make_trainer):
    model, rows = stirred(*make_trainer({**keys, "answer_loss": "sdpo", "token_loss_weight": 0.0}))
    model.train().take_reference()
    assert _losses(model, rows)["sdpo"].item() == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-4)


STAGES = {
    "strategy": "two_stage", "stage_1_representation": "hybrid", "stage_1_epochs": 1, "epochs": 2, "stage_1_answer_loss": "token",
    "answer_loss": "sdpo",
}  # fmt: skip


def _log(run):
    return [json.loads(line) for line in (Path(run) / "training.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sdpo_as_a_second_stage(keys):
    returned = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **STAGES})
    steps = [entry for entry in _log(returned["run_dir"]) if "loss" in entry]
    assert [("loss_sdpo" in entry) for entry in steps] == [False] * 3 + [True] * 3
    # Its first step compares the weights that stage 1 left with themselves.
    assert steps[3]["loss_sdpo"] == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-3)


def test_a_stopped_second_stage_goes_on_against_the_same_reference(keys, monkeypatch):
    long = {**keys, **STAGES, "lora_dropout": 0.1}
    undisturbed = run_recbole_llara("LLaRA", "toy", config_dict={**long, "checkpoint_dir": "elsewhere"})
    run = stopped_run(long, 4, monkeypatch)
    run_recbole_llara("LLaRA", "toy", config_dict={**long, "resume": str(run)})
    assert _log(run) == _log(undisturbed["run_dir"])


def test_listwise_learns(keys, make_trainer):
    trainer, data = make_trainer({**keys, "answer_loss": "listwise", "learning_rate": 0.01, "warmup_ratio": 0.0})
    rows = trainer.model.train().training_rows(next(iter(data.train_data)), 0)
    trainer._enter(0, 8)
    found = [trainer._train_step(rows)["listwise"] for _ in range(12)]
    assert found[-1] < 0.8 * found[0]


def test_shares_of_frozen_weights_have_no_reference(keys):
    with pytest.raises(UserError, match="answer_loss: found sdpo with fsdp"):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, "answer_loss": "sdpo", "fsdp": True})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer_loss": "token"}, "listwise_prior: found recommender with answer_loss token"),
        ({"answer_loss": "listwise", "item_embeddings": "random"}, "item_embeddings: found random with listwise_prior"),
    ],
)
def test_where_no_prior_can_be(keys, changes, said):
    with pytest.raises(UserError, match=said):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, **changes, "listwise_prior": "recommender"})
