"""Frozen weights in few bits: trained over, saved and loaded as others are."""

import pytest
import torch

from recbole_llara.llm import quantization
from recbole_llara.utils.errors import UserError


@pytest.mark.parametrize(("bits", "most"), [("8bit", 0.45), ("4bit", 0.35)])
def test_trains_and_answers_over_weights_held_in_few_bits(keys, make_trainer, bits, most):
    pytest.importorskip("bitsandbytes")
    # On CPUs bitsandbytes wants widths of 64, and takes its time.
    keys = {**keys, "llm_path": "tiny", "llm_tuning": "lora", "max_train_rows": 16, "max_eval_rows": 4}
    trainer, data = make_trainer({**keys, "llm_quantization": bits})
    whole, _ = make_trainer(keys)
    sizes = [
        sum(p.numel() * p.element_size() for name, p in t.model.llm.named_parameters() if "proj" in name and "lora" not in name)
        for t in (trainer, whole)
    ]
    assert 0 < sizes[0] < most * sizes[1]
    trainer.fit(data.train_data, data.valid_data, show_progress=False)
    adapters = [p for name, p in trainer.model.llm.named_parameters() if "lora_B" in name]
    assert adapters and all(p.abs().max() > 0 for p in adapters)
    found = trainer.evaluate(data.test_data)
    again, data = make_trainer({**keys, "llm_quantization": bits})
    assert again.evaluate(data.test_data, model_file=trainer.saved_model_file) == found
    scores = trainer.last_cases.scores
    assert torch.isfinite(scores).all() and scores.std() > 0
    with pytest.raises(UserError, match="llm_quantization"):
        whole.load_checkpoint(trainer.saved_model_file)


def test_says_what_to_change(keys, make_trainer, monkeypatch):
    with pytest.raises(UserError, match="llm_quantization: found 4bit with llm_tuning full"):
        make_trainer({**keys, "llm_quantization": "4bit", "llm_tuning": "full"})
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        make_trainer({**keys, "llm_quantization": "8bit"})
