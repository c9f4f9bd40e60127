"""Where memory runs out, training and evaluation go on with less at once and come to the same."""

import pytest
import torch


def test_out_of_memory_halves_the_passes_and_keeps_the_step(keys, make_trainer, caplog):
    """A step of 16 rows in passes of 8 that hold 4 at most: the same weights as in passes of 4 from the start."""
    weights = []
    for size in (4, 8):
        trainer, data = make_trainer({**keys, "micro_batch_size": size})
        model, loss = trainer.model, trainer.model.step_losses
        if size == 8:
            fails_at_second = iter([False, True])

            def step_losses(rows, step, loss=loss, fails=fails_at_second):
                if len(rows.targets) > 4 and next(fails):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
                return loss(rows, step)

            model.step_losses = step_losses
        with caplog.at_level("WARNING"):
            trainer.fit(data.train_data, None, saved=False)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*weights)
    assert caplog.text.count("micro_batch_size 8 becomes 4") == 1


def test_out_of_memory_in_evaluation_answers_fewer_rows_at_once(keys, make_trainer, caplog):
    trainer, data = make_trainer(keys)
    expected = trainer.evaluate(data.test_data, load_best_model=False)
    scores, sizes, answer = trainer.last_cases.scores, [], trainer.model.answer_candidates

    def answer_candidates(interaction):
        sizes.append(len(interaction))
        if len(interaction) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return answer(interaction)

    trainer.model.answer_candidates = answer_candidates
    assert trainer.evaluate(data.test_data, load_best_model=False) == expected
    assert torch.allclose(trainer.last_cases.scores, scores, atol=1e-5)
    assert sizes == [12, 6, 3, 3, 3, 3] and "answered 3 at a time" in caplog.text


def test_other_errors_pass_and_so_does_a_row_too_large(keys, make_trainer):
    for message, error in (("shapes cannot be multiplied", RuntimeError), ("CUDA out of memory.", torch.OutOfMemoryError)):
        trainer, data = make_trainer({**keys, "max_train_rows": 16})

        def fail(*arguments, message=message, error=error):
            raise error(message)

        trainer.model.step_losses = fail
        with pytest.raises(error, match=message):
            trainer.fit(data.train_data, None, saved=False)
