"""Slots hold what they should: each kind its own vector, learned or frozen as said."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from llm_families import make_family
from transformers import PreTrainedTokenizerFast

from recbole_llara.llm.item_tokens import Conclusions, ItemTokens, Projector, centred, merge_item_embeddings, shuffled
from recbole_llara.prompt.representation import SLOT_PARTS, Part

N, D, D_REC = 5, 8, 3
D_OUT = 4  # of the recommender's sequence output
EVERY = frozenset(SLOT_PARTS)


@pytest.fixture
def vocabulary():
    return torch.randn(40, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table():
    return torch.randn(N, D_REC, generator=torch.Generator().manual_seed(1))


def _numbers(*parts):
    return torch.tensor([SLOT_PARTS.index(part) for part in parts])


def test_each_slot_holds_the_vector_of_its_kind(vocabulary, table):
    tokens = ItemTokens(vocabulary, N, EVERY, table, output_size=D_OUT, rank_vectors=torch.randn(4, D))
    with torch.no_grad():
        tokens.description += 1
        tokens.placeholder -= 1
    parts = (Part.ITEM_ID, Part.DESCRIPTION, Part.ITEM_EMBEDDING, Part.PLACEHOLDER, Part.ITEM_ID, Part.USER, Part.SCORE)
    outputs = torch.randn(2, D_OUT, generator=torch.Generator().manual_seed(2))
    concluded = Conclusions(outputs, torch.tensor([[0.1, 0.9], [0.7, 0.3]]).log(), torch.tensor([[1, 2], [4, 3]]))
    slot_rows = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    found = tokens(_numbers(*parts), torch.tensor([3, 0, 2, 0, 1, 0, 3]), slot_rows, concluded)
    expected = [tokens.item_ids[3], tokens.description, tokens.projector(table[2]), tokens.placeholder, tokens.item_ids[1]]
    expected += [tokens.user_projector(outputs[1]), tokens.ranks[1]]
    assert torch.equal(found, torch.stack(expected))
    three = Conclusions(None, torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[1, 2, 3]]))
    two_ranks = ItemTokens(vocabulary, N, frozenset({Part.SCORE}), None, rank_vectors=torch.randn(2, D))
    found = two_ranks(_numbers(*[Part.SCORE] * 3), torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64), three)
    assert torch.equal(found, two_ranks.ranks[[0, 1, 1]])  # a longer list than there are vectors
    projected = ItemTokens(vocabulary, N, frozenset({Part.SCORE}), None)
    found = projected(_numbers(Part.SCORE), torch.tensor([3]), torch.tensor([1]), concluded)
    assert torch.allclose(found, projected.score_projector(torch.tensor([[math.log(0.3), 0.3, 0.5]])))


def test_only_what_is_shown_is_made(vocabulary, table):
    tokens = ItemTokens(vocabulary, N, frozenset({Part.TITLE}), None)
    assert [name for name, _ in tokens.named_parameters()] == ["placeholder"]
    with pytest.raises(ValueError, match="item_id"):
        tokens(_numbers(Part.ITEM_ID), torch.tensor([1]))
    with pytest.raises(ValueError, match="no item embeddings"):
        ItemTokens(vocabulary, N, EVERY, None)
    with pytest.raises(ValueError, match="no output_size"):
        ItemTokens(vocabulary, N, EVERY, table)


@pytest.mark.parametrize("trains", [False, True])
def test_item_embeddings_learn_only_when_told_to(vocabulary, table, trains):
    tokens = ItemTokens(vocabulary, N, EVERY, table, trains, D_OUT)
    tokens(_numbers(Part.ITEM_EMBEDDING), torch.tensor([2])).sum().backward()
    assert ("item_embeddings" in dict(tokens.named_parameters())) is trains
    assert ("item_embeddings" in tokens.state_dict()) is trains  # frozen ones come from the recommender again
    if trains:
        assert tokens.item_embeddings.grad[2].abs().sum() > 0 and tokens.item_embeddings.grad[1].eq(0).all()


def test_new_vectors_start_around_the_vocabulary(vocabulary, table):
    tokens = ItemTokens(vocabulary, 4000, EVERY, torch.zeros(4000, D_REC), output_size=D_OUT)
    assert torch.equal(tokens.description, vocabulary.mean(0))
    assert torch.allclose(tokens.item_ids.mean(0), vocabulary.mean(0), atol=0.1)
    assert torch.allclose(tokens.item_ids.std(0), vocabulary.std(0), rtol=0.1)


@pytest.mark.parametrize("family", ["Gemma", "Gemma 2", "Gemma 3", "Gemma 3 with images", "Granite", "Llama"])
def test_new_vectors_start_where_the_embedding_layer_puts_words(family, keys, make_trainer, save_llm):
    """Gemma's layer multiplies its table by the root of its width."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(keys["llm_path"])
    llm = make_family(family, len(tokenizer))
    shutil.rmtree(keys["llm_path"])
    keys["llm_path"] = save_llm(Path(keys["llm_path"]), llm, tokenizer)
    trainer, _ = make_trainer({**keys, "representation": "text_id"}, "RSLLM")
    tokens = trainer.model.item_tokens
    words = llm.get_input_embeddings()(torch.arange(len(tokenizer))).detach()
    assert torch.allclose(tokens.placeholder, words.mean(0), atol=1e-5)
    assert torch.allclose(tokens.description, words.mean(0), atol=1e-5)
    assert tokens.item_ids.norm(dim=1).mean().item() == pytest.approx(words.norm(dim=1).mean().item(), rel=0.1)


def test_centred_counts_no_padding_and_shuffled_keeps_it(table):
    moved = centred(table)
    assert torch.allclose(moved[1:].mean(0), torch.zeros(D_REC), atol=1e-6)
    assert moved[1:].std().item() == pytest.approx(1.0)
    dealt = shuffled(table, seed=3)
    assert torch.equal(dealt[0], table[0]) and not torch.equal(dealt, table)
    assert torch.equal(dealt.sort(0).values, table.sort(0).values) and torch.equal(dealt, shuffled(table, seed=3))


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


def test_equals_the_formula_of_the_paper():
    torch.manual_seed(0)
    projector = Projector(rec_dim=3, llm_dim=4)
    projector.requires_grad_(False)
    item = torch.randn(3)
    hidden = [
        sum(float(weight) * float(value) for weight, value in zip(row, item, strict=True)) + float(bias)
        for row, bias in zip(projector.linear_1.weight, projector.linear_1.bias, strict=True)
    ]
    active = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in hidden]
    expected = [
        sum(float(weight) * value for weight, value in zip(row, active, strict=True)) + float(bias)
        for row, bias in zip(projector.linear_2.weight, projector.linear_2.bias, strict=True)
    ]
    assert torch.allclose(projector(item), torch.tensor(expected), atol=1e-6)


def test_has_two_layers_of_the_widths_of_the_paper():
    shapes = {name: tuple(parameter.shape) for name, parameter in Projector(rec_dim=64, llm_dim=128).named_parameters()}
    assert shapes == {
        "linear_1.weight": (128, 64),
        "linear_1.bias": (128,),
        "linear_2.weight": (128, 128),
        "linear_2.bias": (128,),
    }


def test_reads_items_of_another_type():
    projector = Projector(rec_dim=3, llm_dim=4).to(torch.bfloat16)
    assert projector(torch.randn(5, 3)).dtype == torch.bfloat16
