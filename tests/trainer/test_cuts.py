"""An optimiser step is the same however it is cut into passes: losses and gradients, with dropout, on any device's generator."""

import pytest
import torch

STEP = {"max_train_rows": 16, "lora_dropout": 0.2, "max_grad_norm": 1e6, "learning_rate": 1e-4}
TOLERANCE = 1e-5


@pytest.fixture
def first_step(keys, make_trainer):
    """Trains one optimiser step; returns its losses by name and all gradients."""

    def take(model="RSLLM", prepare=lambda trainer: None, **changes):
        trainer, data = make_trainer({**keys, **STEP, **changes}, model)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, value in trainer.model.named_parameters():
                if "lora_B" in name:  # zero at first, so that nothing would reach lora_A, nor dropout change a state
                    value.normal_(0.0, 0.3, generator=generator)
        trainer.model.double()  # so that what is left of rounding hides nothing
        losses, gradients = {}, {}
        step_losses = trainer.model.step_losses

        def counted(rows, step):
            found = step_losses(rows, step)
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + value.item()
            return found

        def keep(optimizer, arguments, options):
            if not gradients:
                gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

        trainer.model.step_losses = counted
        trainer.optimizer.register_step_pre_hook(keep)
        prepare(trainer)
        trainer.fit(data.train_data, None, saved=False)
        return losses, gradients

    return take


def assert_same(found, expected):
    (losses, gradients), (wanted, wanted_gradients) = found, expected
    assert losses == pytest.approx(wanted, abs=TOLERANCE)
    assert gradients.keys() == wanted_gradients.keys() and gradients
    for name, gradient in wanted_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= TOLERANCE * gradient.abs().max(), name


@pytest.mark.parametrize(
    ("model", "representation", "sizes"),
    [("LLaRA", "hybrid", [5]), ("RSLLM", "hybrid_with_dsr", [2, 8]), ("RSLLM", "text_id", [1, 5])],
)
def test_the_size_of_a_pass_changes_nothing(first_step, model, representation, sizes):
    whole = first_step(model, micro_batch_size=16, representation=representation)
    assert len(whole[0]) == (3 if model == "RSLLM" else 1)
    for size in sizes:
        assert_same(first_step(model, micro_batch_size=size, representation=representation), whole)


def test_dropout_is_at_work(first_step):
    with_dropout, without = first_step(), first_step(lora_dropout=0.0)
    for name, value in without[0].items():
        assert abs(with_dropout[0][name] - value) > 1e-3, name


def test_many_items_are_read_in_parts(first_step):
    """48 rows: in passes of 2 the item tower takes at most 2 * (5 + 4) items at once."""
    changes = {"max_train_rows": 48, "train_batch_size": 48, "candidate_num": 4, "MAX_ITEM_LIST_LENGTH": 5}
    sizes = []

    def listen(trainer):
        encode = trainer.model.encoder.encode_items

        def listened(items, *arguments):
            sizes.append(len(items))
            return encode(items, *arguments)

        trainer.model.encoder.encode_items = listened

    whole = first_step(micro_batch_size=48, **changes)
    assert_same(first_step(prepare=listen, micro_batch_size=2, **changes), whole)
    assert len(sizes) > 2 and max(sizes) <= 18


def test_gradient_checkpointing_changes_nothing(first_step):
    whole = first_step(micro_batch_size=16)
    assert_same(first_step(micro_batch_size=8, gradient_checkpointing=True), whole)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_generator_that_checkpoints_do_not_restore(first_step, monkeypatch, gradient_checkpointing):
    """A GPU's: ``torch.manual_seed`` seeds it, but a checkpoint whose arguments are on the CPU neither keeps nor restores it."""
    device, seed = torch.Generator(), torch.manual_seed

    def manual_seed(number):
        device.manual_seed(number)
        return seed(number)

    def dropout(input, p=0.5, training=True, inplace=False):
        return input * (torch.rand(input.shape, generator=device) >= p) / (1 - p) if training else input

    monkeypatch.setattr(torch, "manual_seed", manual_seed)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    found = first_step(gradient_checkpointing=gradient_checkpointing)
    monkeypatch.setattr("recbole_llara.model.rsllm.checkpoint", lambda tower, *arguments, **options: tower(*arguments))
    assert_same(found, first_step(gradient_checkpointing=gradient_checkpointing))


@pytest.mark.parametrize("where", ["preview", "step_losses", "begin_step"])
def test_out_of_memory_changes_nothing(first_step, caplog, where):
    """Memory runs out in the item tower, before or after the previews: the step begins again with passes of half the rows."""

    def run_out(trainer):
        compute, calls = getattr(trainer.model, where), []

        def fails_once(*arguments):
            calls.append(arguments)
            if len(calls) == (1 if where == "begin_step" else 2):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return compute(*arguments)

        setattr(trainer.model, where, fails_once)

    whole = first_step(micro_batch_size=16)
    caplog.set_level("WARNING")
    losses, gradients = first_step(prepare=run_out, micro_batch_size=8)
    assert "micro_batch_size 8 becomes 4" in caplog.text
    if where == "step_losses":  # the first pass was counted twice
        losses = whole[0]
    assert_same((losses, gradients), whole)


def test_rows_of_other_passes_must_have_been_previewed(keys, make_trainer):
    trainer, data = make_trainer(keys, "RSLLM")
    model = trainer.model
    rows = model.training_rows(next(iter(data.train_data)), 0)
    step = model.begin_step(rows, model.representation)
    with pytest.raises(ValueError, match="a pass of 2 of the step's 16 rows, but none was previewed"):
        model.step_losses(rows.take(torch.tensor([3, 1])), step)
