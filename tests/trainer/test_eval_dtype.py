"""The arithmetic of answers."""

import pytest
import torch

from recbole_llara.llm.architecture import causal_lm, decoder_blocks


@pytest.mark.parametrize("decoding", ["score", "constrained", "generate"])
def test_answers_in_bfloat16(keys, make_trainer, decoding):
    """By ``eval_dtype``, under every decoding; no row is scored again alone, as nearly all would be."""
    (fine, data), (coarse, _) = (
        make_trainer({**keys, "eval_dtype": dtype, "decoding": decoding}) for dtype in ("auto", "bfloat16")
    )
    seen = []
    block = decoder_blocks(causal_lm(coarse.model.llm))[0].mlp.down_proj
    block.register_forward_hook(lambda _, __, output: seen.append((output.dtype, len(output))))
    question = next(iter(data.test_data))[0]
    expected, found = (trainer.model.eval().answer_candidates(question) for trainer in (fine, coarse))
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert {rows for _, rows in seen} == {len(question)}
    if decoding == "score":
        assert found.scores.dtype == torch.float32
        assert not torch.equal(found.scores, expected.scores)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0.02, atol=0.1)
