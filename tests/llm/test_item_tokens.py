"""Slots hold what they should: each kind its own vector, learned or frozen as said."""

import shutil
from pathlib import Path

import pytest
import torch
from llm_families import make_family
from transformers import PreTrainedTokenizerFast

from recbole_llara.llm.item_tokens import ItemTokens, centred, shuffled
from recbole_llara.prompt.representation import SLOT_PARTS, Part

N, D, D_REC = 5, 8, 3
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
    tokens = ItemTokens(vocabulary, N, EVERY, table)
    with torch.no_grad():
        tokens.description += 1
        tokens.placeholder -= 1
    parts = (Part.ITEM_ID, Part.DESCRIPTION, Part.ITEM_EMBEDDING, Part.PLACEHOLDER, Part.ITEM_ID)
    found = tokens(_numbers(*parts), torch.tensor([3, 0, 2, 0, 1]))
    expected = [tokens.item_ids[3], tokens.description, tokens.projector(table[2]), tokens.placeholder, tokens.item_ids[1]]
    assert torch.equal(found, torch.stack(expected))


def test_only_what_is_shown_is_made(vocabulary, table):
    tokens = ItemTokens(vocabulary, N, frozenset({Part.TITLE}), None)
    assert [name for name, _ in tokens.named_parameters()] == ["placeholder"]
    with pytest.raises(ValueError, match="item_id"):
        tokens(_numbers(Part.ITEM_ID), torch.tensor([1]))
    with pytest.raises(ValueError, match="no item embeddings"):
        ItemTokens(vocabulary, N, EVERY, None)


@pytest.mark.parametrize("trains", [False, True])
def test_item_embeddings_learn_only_when_told_to(vocabulary, table, trains):
    tokens = ItemTokens(vocabulary, N, EVERY, table, trains)
    tokens(_numbers(Part.ITEM_EMBEDDING), torch.tensor([2])).sum().backward()
    assert ("item_embeddings" in dict(tokens.named_parameters())) is trains
    assert ("item_embeddings" in tokens.state_dict()) is trains  # frozen ones come from the recommender again
    if trains:
        assert tokens.item_embeddings.grad[2].abs().sum() > 0 and tokens.item_embeddings.grad[1].eq(0).all()


def test_new_vectors_start_around_the_vocabulary(vocabulary, table):
    tokens = ItemTokens(vocabulary, 4000, EVERY, torch.zeros(4000, D_REC))
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
