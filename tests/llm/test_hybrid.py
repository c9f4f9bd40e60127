import pytest
import torch

from recbole_llara.llm.hybrid import merge_item_embeddings


def test_equals_a_plain_loop_and_leaves_its_input_alone():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, 7, 5, generator=generator)
    places = torch.randperm(21, generator=generator)[:8]
    rows, columns = places // 7, places % 7
    items = torch.randn(8, 5, generator=generator)
    expected, before = embeds.clone(), embeds.clone()
    for slot in range(8):
        expected[rows[slot], columns[slot]] = items[slot]
    assert torch.equal(merge_item_embeddings(embeds, rows, columns, items), expected)
    assert torch.equal(embeds, before)


def test_worked_example_of_the_docstring():
    embeds = torch.tensor([[[float(10 * row + column)] for column in range(4)] for row in range(3)])
    merged = merge_item_embeddings(
        embeds, torch.tensor([0, 0, 2]), torch.tensor([1, 3, 2]), torch.tensor([[-1.0], [-2.0], [-3.0]])
    )
    assert merged.squeeze(2).tolist() == [[0, -1, 2, -2], [10, 11, 12, 13], [20, 21, -3, 23]]


def test_gradient_reaches_the_items_though_the_prompt_is_frozen():
    embeds = torch.randn(2, 3, 4)
    items = torch.randn(1, 4, requires_grad=True)
    merge_item_embeddings(embeds, torch.tensor([1]), torch.tensor([2]), items).square().sum().backward()
    assert torch.allclose(items.grad, 2 * items.detach())


def test_gradient_of_an_overwritten_place_is_zero():
    embeds = torch.randn(1, 3, 4, requires_grad=True)
    merge_item_embeddings(embeds, torch.tensor([0]), torch.tensor([1]), torch.zeros(1, 4)).sum().backward()
    assert embeds.grad[0].tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]


def test_takes_the_type_of_the_prompt_and_keeps_the_items_gradient_in_theirs():
    items = torch.randn(1, 4, requires_grad=True)
    merged = merge_item_embeddings(torch.zeros(1, 2, 4, dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([0]), items)
    merged.float().sum().backward()
    assert merged.dtype == torch.bfloat16
    assert items.grad.dtype == torch.float32


def test_no_slots_change_nothing():
    embeds = torch.randn(2, 3, 4)
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(merge_item_embeddings(embeds, none, none, torch.zeros(0, 4)), embeds)


def test_says_both_counts():
    with pytest.raises(ValueError, match="2 item slots but 3 item embeddings"):
        merge_item_embeddings(torch.zeros(1, 4, 2), torch.zeros(2).long(), torch.arange(2), torch.zeros(3, 2))


def test_says_both_widths():
    with pytest.raises(ValueError, match="3 wide.* 2"):
        merge_item_embeddings(torch.zeros(1, 4, 2), torch.zeros(1).long(), torch.arange(1), torch.zeros(1, 3))
