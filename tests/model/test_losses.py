"""The contrastive losses against plain loops; equal targets."""

import math

import pytest
import torch

from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.model.rsllm import in_batch_contrast


def _cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def _among_themselves(anchors, others, targets, temperature=0.5):
    """Rows that are their own others."""
    return in_batch_contrast(anchors, others, targets, torch.arange(len(targets)), temperature)


def _loop(anchors, others, targets, temperature):
    """RSLLM eq. 3 and 4, one row and one negative at a time."""
    losses = []
    for i, anchor in enumerate(anchors):
        kept = [j for j in range(len(others)) if j == i or targets[j] != targets[i]]
        powers = {j: math.exp(_cosine(anchor, others[j]) / temperature) for j in kept}
        losses.append(-math.log(powers[i] / sum(powers.values())))
    return losses


@pytest.mark.parametrize("targets", [[7, 4, 9], [7, 4, 7], [7, 7, 7]])
def test_info_nce_equals_a_plain_loop(targets):
    generator = torch.Generator().manual_seed(0)
    anchors, others = (torch.randn(3, 5, generator=generator) for _ in range(2))
    found = _among_themselves(anchors, others, torch.tensor(targets))
    assert found.tolist() == pytest.approx(_loop(anchors.tolist(), others.tolist(), targets, 0.5), abs=1e-6)
    if targets == [7, 7, 7]:
        assert found.eq(0).all()  # no negatives, nothing to learn


def test_rows_may_be_some_of_those_that_give_the_negatives():
    generator = torch.Generator().manual_seed(1)
    anchors, others = (torch.randn(5, 4, generator=generator) for _ in range(2))
    targets, some = torch.tensor([7, 4, 7, 1, 4]), torch.tensor([3, 0])
    found = in_batch_contrast(anchors[some], others, targets, some, 0.5)
    assert torch.allclose(found, _among_themselves(anchors, others, targets)[some])


def test_a_row_without_negatives_has_no_gradient_and_no_nan():
    anchors = torch.randn(1, 4, requires_grad=True)
    _among_themselves(anchors, torch.randn(1, 4), torch.tensor([3])).sum().backward()
    assert anchors.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cosines_are_float32_under_autocast(dtype):
    """The same loss and gradients as without, to the last digits of float32."""
    found = []
    for enabled in (False, True):
        generator = torch.Generator().manual_seed(2)
        anchors, others = (torch.randn(6, 5, generator=generator, requires_grad=True) for _ in range(2))
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = _among_themselves(anchors, others, torch.tensor([7, 4, 7, 1, 4, 2])).sum()
        loss.backward()
        assert loss.dtype == torch.float32
        found.append(torch.cat([loss.detach()[None], anchors.grad.flatten(), others.grad.flatten()]))
    assert torch.allclose(*found, rtol=1e-6, atol=1e-6)


def test_masked_mean_equals_a_plain_loop():
    states = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    for row in range(3):
        kept = [states[row, column] for column in range(4) if mask[row, column]]
        assert torch.allclose(masked_mean(states, mask)[row], sum(kept) / len(kept))
    with pytest.raises(ValueError, match="row 1 has no token"):
        masked_mean(states, mask & torch.tensor([[1], [0], [1]]).bool())
