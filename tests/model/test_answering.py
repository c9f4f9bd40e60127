"""What an answer names where titles are alike: no order of the candidates decides, and what a tokenizer loses hides no item."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import normalizers

from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.architecture import EmbeddedPrompts
from recbole_llara.llm.likelihood import trie_log_probs
from recbole_llara.model.answering import Questions
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import PromptTemplate

TITLES = ["", "Hamlet", "Hamlet", "Alien", "Solaris", "HAMLET", "Hamlet 2, a sequel", "Hamlet 2, a remake"]
ROWS = 400


@pytest.fixture
def make_model(make_llm, make_tokenizer):
    """As much of an LLM recommender as answers rows, with titles alone."""

    def make(decoding, tokenizer=None, max_title_tokens=64):
        tokenizer = tokenizer or make_tokenizer(TITLES)
        tokenizer.pad_token = tokenizer.eos_token
        llm = make_llm("llama", vocab_size=len(tokenizer))
        template = PromptTemplate.parse("Seen {history}. One of {candidates}. Next:", 3)
        return SimpleNamespace(
            listed=lambda history, candidates, representation: candidates,
            llm=llm,
            tokenizer=tokenizer,
            encoder=PromptEncoder(tokenizer, TITLES, [template], max_title_tokens),
            representation=REPRESENTATIONS["textual"],
            embed=lambda prompts: EmbeddedPrompts(
                llm.get_input_embeddings()(prompts.input_ids), prompts.attention_mask, prompts.position_ids
            ),
            read_answers=trie_log_probs,
            prefixes=None,
            decoding=decoding,
            eval_template="first",
            is_sharded=False,
            is_compiled=False,
            settles_near_ties=True,
            device="cpu",
        )

    return make


def answered(model, candidates):
    """The items named where every row, each of another history, asks about the same candidates."""
    shown, rows = torch.tensor([candidates]).expand(ROWS, -1), torch.arange(ROWS)
    with torch.no_grad():
        questions = Questions(3 + (rows[:, None] >> torch.arange(9) & 1), shown, rows)
        return DECODINGS[model.decoding].function(model, questions).items


@pytest.mark.parametrize("decoding", ["score", "constrained"])
@pytest.mark.parametrize("max_title_tokens", [64, 2])
def test_neither_place_nor_target_decides_between_twins(make_model, decoding, max_title_tokens):
    """The history decides, whichever stands first."""
    model = make_model(decoding, max_title_tokens=max_title_tokens)
    first, second = 1, 2
    found = answered(model, [first, second])
    # The prompts say the same whichever of the twins stands first, and so must the answers.
    assert torch.equal(found, answered(model, [second, first]))
    # 400 fair coins: five standard deviations are 50.
    assert abs(int((found == first).sum()) - ROWS / 2) < 50


def test_generated_text_that_fits_twins_names_none(make_model):
    model = make_model("generate")
    says(model, item=1)
    assert answered(model, [1, 2, 3]).eq(0).all()
    assert answered(model, [1, 3, 4]).eq(1).all()
    assert answered(model, [4, 3, 1]).eq(1).all()


def test_what_a_tokenizer_loses_hides_no_item(make_model, make_tokenizer):
    """One that knows small letters alone never spells "Alien", but names it by its tokens; twins stay twins."""
    tokenizer = make_tokenizer([title.lower() for title in TITLES])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    model = make_model("generate", tokenizer)
    says(model, item=3)
    assert answered(model, [1, 3, 4]).eq(3).all()
    says(model, item=1)
    assert answered(model, [1, 3, 5]).eq(0).all()


def says(model, item):
    """Make generation give an item's tokens, whatever is asked."""
    tokens = model.encoder.answer_ids(torch.tensor([item]), model.representation)[:, :-1]  # without the EOS
    model.write_tokens = lambda *_: tokens.expand(ROWS, -1)
