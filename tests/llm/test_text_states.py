"""What an LLM knows of texts: its states of each text read alone, in every family, whatever is read beside it or was tuned on top."""

import pytest
import torch
from llm_families import ONE_BY_ONE, TREE, make_family
from peft import LoraConfig, get_peft_model

from recbole_llara.llm.text_states import text_states
from recbole_llara.prompt.tokens import tokenise_inside

TEXTS = ["Nick Cave", "Star Wars: Episode V - The Empire Strikes Back (1980)", "", "Emma", "Nick Drake, Pink Moon"]
DEEP = {"num_hidden_layers": 6}


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS * 3, 400)


def beginning(tokenizer):
    return tokenizer("This user has seen")["input_ids"]


@torch.no_grad()
def one_by_one(llm, tokenizer, depth):
    """The same states by transformers' own output_hidden_states, a text at a time."""
    before, found = beginning(tokenizer), []
    for of_text in tokenise_inside(tokenizer, [f" {text}" if text else "" for text in TEXTS]):
        states = llm(input_ids=torch.tensor([before + of_text]), output_hidden_states=True, use_cache=False).hidden_states[
            depth
        ][0]
        found.append(states[len(before) :].mean(0) if of_text else states[-1])
    return torch.stack(found)


@pytest.mark.parametrize("family", [*TREE, *ONE_BY_ONE])
def test_every_family_is_read_as_transformers_reads_it(family, tokenizer):
    llm = make_family(family, len(tokenizer))
    depth = max(1, round(llm.config.get_text_config().num_hidden_layers / 3))
    expected = one_by_one(
        llm, tokenizer, depth - (family == "Mamba")
    )  # it gives the first block's states, not its input, first
    for is_whole_pass in (False, True):
        found = text_states(llm, tokenizer, beginning(tokenizer), TEXTS, is_whole_pass)
        assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())
    assert text_states(llm, tokenizer, beginning(tokenizer), []).shape == (0, expected.shape[1])


def test_a_third_of_the_way_up_and_no_further(tokenizer):
    llm, passed = make_family("Llama", len(tokenizer), **DEEP), []
    for number, block in enumerate(llm.model.layers):
        block.register_forward_hook(lambda *_, number=number: passed.append(number))
    found = text_states(llm, tokenizer, beginning(tokenizer), TEXTS)
    assert set(passed) == {0, 1} and torch.allclose(found, one_by_one(llm, tokenizer, 2), atol=1e-5)
    passed.clear()
    text_states(llm, tokenizer, beginning(tokenizer), TEXTS, is_whole_pass=True)
    assert set(passed) == set(range(6))


def test_adapters_are_left_out_and_hooks_are_taken_back(tokenizer):
    llm = make_family("Llama", len(tokenizer), **DEEP)
    plain = text_states(llm, tokenizer, beginning(tokenizer), TEXTS)
    tuned = get_peft_model(llm, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    assert torch.equal(text_states(tuned, tokenizer, beginning(tokenizer), TEXTS), plain)
    assert not any(block._forward_hooks for block in llm.model.layers)
    with torch.no_grad():  # and stand again afterwards
        ids = torch.tensor([beginning(tokenizer)])
        with tuned.disable_adapter():
            without = tuned(input_ids=ids).logits
        assert not torch.allclose(tuned(input_ids=ids).logits, without)


def test_long_texts_are_cut_and_order_does_not_matter(tokenizer, monkeypatch):
    llm = make_family("Llama", len(tokenizer))
    expected = text_states(llm, tokenizer, beginning(tokenizer), TEXTS)
    monkeypatch.setattr("recbole_llara.llm.text_states._TOKENS_AT_ONCE", 1)
    backwards = text_states(llm, tokenizer, beginning(tokenizer), TEXTS[::-1]).flip(0)
    assert torch.allclose(backwards, expected, atol=1e-5)
    monkeypatch.setattr("recbole_llara.llm.text_states.MOST_TOKENS", 2)
    cut = text_states(llm, tokenizer, beginning(tokenizer), [TEXTS[1], TEXTS[1] + " again and again"])
    assert torch.allclose(cut[0], cut[1], atol=1e-6)
