"""Gradient checkpointing keeps less and changes nothing."""

import pytest
import torch


@pytest.mark.parametrize("llm_tuning", ["lora", "full"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(keys, make_trainer, llm_tuning):
    found = []
    for value in (False, True):
        changed = {"gradient_checkpointing": value, "lora_dropout": 0.1, "llm_tuning": llm_tuning}
        trainer, data = make_trainer({**keys, **changed})
        model, kept = trainer.model.train(), {}

        def pack(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        rows = model.training_rows(next(iter(data.train_data)), 0)
        torch.manual_seed(0)  # of dropout, which the second pass through a block must draw again
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step = model.begin_step(rows, model.representation)
            loss = sum(model.step_losses(rows, step).values())
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
        found.append((torch.cat(gradients), sum(kept.values())))
    (plain, plain_kept), (checkpointed, kept) = found
    assert torch.allclose(plain, checkpointed, atol=1e-6) and plain.abs().max() > 0
    assert kept < 0.6 * plain_kept
