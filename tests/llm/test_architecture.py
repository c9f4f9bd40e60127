"""Compiled decoder blocks: the same losses, gradients and answers."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from recbole_llara.utils.errors import UserError


def step_of(trainer, interaction):
    """Loss and gradients of one step."""
    model = trainer.model.train()
    rows = model.training_rows(interaction, 0)
    loss = sum(model.step_losses(rows, model.begin_step(rows, model.representation)).values())
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_give_the_same_step_and_answers(keys, make_trainer):
    (eager, data), (compiled, _) = (make_trainer({**keys, "torch_compile": value}) for value in (False, True))
    interaction = next(iter(data.train_data))
    counters.clear()
    loss, gradients = step_of(compiled, interaction)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    expected, wanted = step_of(eager, interaction)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert (gradients - wanted).norm() <= 1e-4 * wanted.norm()
    counters.clear()
    scores = [trainer.model.eval().answer_candidates(next(iter(data.test_data))[0]).scores for trainer in (eager, compiled)]
    torch.testing.assert_close(*scores)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0, "evaluation is not compiled"
    compiled.model.answer_candidates(next(iter(data.valid_data))[0])
    compiled.model.answer_candidates(next(iter(data.test_data))[0][:3])
    assert counters["stats"]["unique_graphs"] == graphs, "other batches are compiled again"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_texts_are_read_by_blocks_as_they_were_written(keys, make_trainer):
    """For the vectors of new items their first blocks are stopped halfway through a pass, which compiled code cannot be."""
    cold = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1], "rec_eval_step": 0}
    (eager, _), (compiled, _) = (make_trainer({**keys, **cold, "torch_compile": value}) for value in (False, True))
    assert torch.equal(compiled.model.item_tokens.made_embeddings, eager.model.item_tokens.made_embeddings)


def test_without_a_compiler_it_says_so(keys, make_trainer, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="torch_compile: found no C\\+\\+ compiler"):
        make_trainer({**keys, "torch_compile": True})
    with pytest.raises(UserError, match="expected one of them"):
        make_trainer({**keys, "torch_compile": True, "fsdp": True})
