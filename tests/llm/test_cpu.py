"""Attention as two batched products: the fused kernel's values and gradients, with heads of keys that serve several of queries."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from recbole_llara.llm.cpu import BMM_ATTENTION, bmm_attention, training_attention


@pytest.mark.parametrize("pairs", [6, 3, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_fused_kernel(pairs, masked):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, 7, 4), (2, pairs, 7, 4), (2, pairs, 7, 4)
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
    mask[0, :, :, :2] = False  # padding on the left, which reads itself
    mask |= torch.eye(7, dtype=torch.bool)
    wanted = scaled_dot_product_attention(
        query, key, value, attn_mask=mask if masked else None, is_causal=not masked, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    found, weights = bmm_attention(None, query, key, value, mask if masked else None, 0.3)
    assert weights is None and torch.allclose(found, wanted, atol=1e-6)
    direction = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad((each * direction).sum(), (query, key, value)) for each in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_llama_trains_with_it_in_bf16_on_a_cpu(make_llm):
    llama = make_llm("llama")  # two heads of keys, four of queries
    assert training_attention(llama, torch.bfloat16, "cpu") == BMM_ATTENTION
    for dtype, device in ((torch.float32, "cpu"), (torch.bfloat16, "cuda")):
        assert training_attention(llama, dtype, device) == "sdpa"
    assert training_attention(make_llm("gpt2"), torch.bfloat16, "cpu") == "sdpa"
