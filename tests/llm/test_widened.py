"""New tokens in an LLM's vocabulary: read as their vectors, never an answer, and without a share of the others' probability."""

import math

import pytest
import torch
from llm_families import ONE_BY_ONE, TREE, make_family
from transformers import AutoModelForCausalLM

from recbole_llara.llm.architecture import embedded_vocabulary
from recbole_llara.llm.likelihood import answer_pass
from recbole_llara.llm.widened import silent_token, widen, without_copies
from recbole_llara.utils.errors import UserError

VOCABULARY = 61


def test_the_share_of_copies_is_taken_out():
    # Two tokens of 0.75 and 0.25; with two copies of the second they have 0.5 and 1/6.
    assert without_copies(math.log(0.5), math.log(1 / 6), 2) == pytest.approx(math.log(0.75))
    assert without_copies(math.log(1 / 6), math.log(1 / 6), 2) == pytest.approx(math.log(0.25))
    assert without_copies(-3.0, -50.0, 1000) == pytest.approx(-3.0)


# Heads that cannot be another table than the LLM's own are refused where a run is exported.
@pytest.mark.parametrize("family", [*TREE, *ONE_BY_ONE])
def test_every_family_reads_new_tokens_as_vectors(family, tmp_path):
    llm = make_family(family, VOCABULARY)
    generator = torch.Generator().manual_seed(3)
    given = embedded_vocabulary(llm)
    vectors = torch.randn(7, given.shape[1], generator=generator) * given.float().std()
    ids = torch.randint(2, VOCABULARY, (2, 12), generator=generator)
    slots, items = torch.tensor([[2, 5], [3, 9]]), torch.tensor([[0, 6], [4, 4]])
    rows = torch.arange(2)[:, None]
    embeds = given[ids].index_put((rows, slots), vectors[items].to(given.dtype))
    with torch.no_grad():
        expected = llm(inputs_embeds=embeds, use_cache=False).logits.float().log_softmax(2)
    silent = int(expected[0, -1].topk(5).indices[-1])  # one that is far from silent, so that its copies count
    first = widen(llm, vectors, silent)
    assert first == VOCABULARY
    told = ids.index_put((rows, slots), first + items)
    llm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for one in (llm, again):
        with torch.no_grad():
            logits = one(input_ids=told, use_cache=False).logits.float()
        assert logits.shape[2] == VOCABULARY + 7
        found = logits.log_softmax(2)
        assert (found[..., :first] - expected).abs().max() > 1e-3  # the copies took their share
        for row, place, token in ((0, 11, 7), (1, 11, 30), (1, 5, silent)):
            mended = without_copies(float(found[row, place, token]), float(found[row, place, silent]), 7)
            assert mended == pytest.approx(float(expected[row, place, token]), abs=2e-3)


def test_the_silent_token_is_the_least_likely_in_the_answers(make_llm, make_prompts):
    llm = make_llm("llama")
    prompts = make_prompts(llm, [9, 6])
    labels = torch.full((2, 9), -100)
    labels[:, -2:] = torch.tensor([[5, 1], [8, 1]])
    found = silent_token(llm, labels, prompts)
    with torch.no_grad():
        told = llm(**prompts.as_dict(), use_cache=False).logits[:, -3:-1].float().softmax(2).flatten(0, 1)
    assert told[:, found].max() == told.amax(0).min()
    assert answer_pass(llm, prompts, labels).counts.tolist() == [2, 2]


def test_a_vocabulary_that_cannot_be_widened():
    llm = make_family("Llama", VOCABULARY)
    llm.set_output_embeddings(torch.nn.Linear(32, VOCABULARY + 3))
    with pytest.raises(UserError, match="cannot be widened"):
        widen(llm, torch.zeros(2, 32), 0)
