"""Inside a micro-batch the host never waits for the GPU, and where memory really runs out a step goes on."""

import warnings

import pytest
import torch


def waits(action):
    """Where the host waited for the GPU within an action."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{found.filename}:{found.lineno}" for found in caught if "called a synchronizing" in str(found.message)})


@pytest.mark.parametrize("loss", ["token", "listwise", "sdpo"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("model", ["LLaRA", "RSLLM", "TALLRec"])
def test_no_wait_inside_a_micro_batch(keys, make_trainer, model, dropout, loss):
    changes = {"use_gpu": True, "llm_path": "tiny", "llm_dtype": "bfloat16", "lora_dropout": dropout, "answer_loss": loss}
    trainer, data = make_trainer({**keys, **changes}, model)
    trained = trainer.model.train()
    trained.take_reference()
    rows = trained.training_rows(next(iter(data.train_data)), 0)
    with trained.training_arithmetic():
        step = trained.begin_step(rows, trained.representation)
        if trained.needs_previews:
            step = step.with_previews(rows.places, trained.preview(rows, step))

    def micro_batch():
        with trained.training_arithmetic():
            losses = trained.step_losses(rows.take(torch.arange(4)), step)
        torch.stack(list(losses.values())).sum().backward()

    micro_batch()  # the first fills caches
    assert waits(micro_batch) == []


def test_a_wait_is_seen():
    assert waits(lambda: torch.ones(1, device="cuda").item()) != []


def test_memory_that_runs_out(keys, make_trainer, caplog):
    """Half of what a pass of all rows needs is all there is: passes are halved, the losses stay."""
    changes = {"use_gpu": True, "llm_path": "tiny", "max_train_rows": 256, "train_batch_size": 256, "candidate_num": 20}
    losses, needed = [], 0
    for share in (None, 0.5):
        torch.cuda.empty_cache()
        trainer, data = make_trainer({**keys, **changes, "micro_batch_size": 256})
        if share is not None:
            limit = torch.cuda.memory_reserved() + share * needed
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
        before = torch.cuda.memory_reserved()
        try:
            with caplog.at_level("WARNING"):
                trainer.fit(data.train_data, None, saved=False)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        needed = torch.cuda.max_memory_reserved() - before
        losses.append(trainer.progress.training_log[0]["loss"])
        del trainer
    assert "micro_batch_size 256 becomes 128" in caplog.text
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
