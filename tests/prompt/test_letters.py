"""Candidates marked by letters, one of which is the answer: where they stand, what they are, and where there are too few."""

from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase

import pytest
import torch
from transformers import AutoTokenizer

from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.letters import letter_tokens
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.utils.errors import UserError

TITLES = ("", "The Matrix", "M", "A", "Cité, or: «Ж»", "B: a film", "Heat (1995)", "The Matrix")
HISTORY = torch.tensor([[1, 2, 3], [4, 0, 0]])
CANDIDATES = torch.tensor([[7, 5, 4], [6, 2, 3]])
TARGETS = torch.tensor([4, 6])
TEMPLATES = torch.tensor([0, 2])
LETTERS = 3 * "".join(f" {letter}" for letter in ascii_uppercase)
FIRST = torch.zeros(2, dtype=torch.int64)
LLAMA_2 = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama-2"


def _lettered(name="hybrid", **changes):
    return replace(REPRESENTATIONS[name], answer=Part.LETTER, **changes)


@pytest.fixture(params=["byte_level", "llama_2"])
def tokenizer(request, make_tokenizer):
    if request.param == "byte_level":
        return make_tokenizer(
            [*TITLES, "This user has watched in the previous. Choose one of these movies Answer:", LETTERS], 600
        )
    if not LLAMA_2.is_dir():
        pytest.skip("the Llama-2 tokenizer is not at ../shared/tokenizers/llama-2")
    return AutoTokenizer.from_pretrained(LLAMA_2)


@pytest.fixture
def encoder(tokenizer):
    shown = [_lettered(), _lettered("textual"), REPRESENTATIONS["hybrid"]]
    return PromptEncoder(tokenizer, TITLES, load_templates("movie", 3), representations=shown, letters=3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_is_the_text_that_a_person_would_write(encoder, tokenizer, side):
    prompts = encoder.encode(HISTORY, CANDIDATES, None, _lettered("textual"), TEMPLATES, side)
    for row in range(2):
        marked = [f"{letter}: {TITLES[item]}" for letter, item in zip("ABC", CANDIDATES[row].tolist(), strict=True)]
        text = encoder.templates[TEMPLATES[row]].render([TITLES[item] for item in HISTORY[row].tolist() if item], marked)
        expected = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist() == expected
    assert torch.equal(prompts.listed, CANDIDATES)


def test_slots_are_those_of_the_same_prompt_without_letters(encoder):
    lettered = encoder.encode(HISTORY, CANDIDATES, None, _lettered(), FIRST)
    plain = encoder.encode(HISTORY, CANDIDATES, None, REPRESENTATIONS["hybrid"], FIRST)
    assert torch.equal(lettered.slot_items, plain.slot_items) and torch.equal(lettered.slot_parts, plain.slot_parts)
    assert torch.equal(lettered.head_lengths, plain.head_lengths)


def test_the_answer_is_one_token_the_letter_of_the_target(encoder, tokenizer):
    prompts = encoder.encode(HISTORY, CANDIDATES, TARGETS, _lettered(), FIRST)
    answers = encoder.answer_ids(CANDIDATES, _lettered(), prompts.listed)
    assert answers.shape == (2, 3, 1)
    for row, letter in enumerate("CA"):
        labels = prompts.labels[row]
        assert [tokenizer.decode(token).strip() for token in labels[labels != IGNORED_LABEL]] == [letter]
        assert prompts.input_ids[row, -1] == labels[-1] == answers[row, "ABC".index(letter), 0]
    assert encoder.answer_lengths(TARGETS, _lettered()).tolist() == [1, 1]
    titles = encoder.answer_ids(TARGETS, REPRESENTATIONS["hybrid"])
    assert torch.equal(encoder.answer_lengths(TARGETS, REPRESENTATIONS["hybrid"]), (titles != IGNORED_LABEL).sum(1))


def test_letters_follow_the_order_of_the_prompt_not_the_items(encoder):
    turned = CANDIDATES.flip(1)
    answers = encoder.answer_ids(CANDIDATES, _lettered(), turned)
    assert torch.equal(answers, encoder.answer_ids(turned, _lettered(), turned).flip(1))


def test_a_letter_needs_its_row(encoder):
    with pytest.raises(ValueError, match="expected listed"):
        encoder.answer_ids(CANDIDATES, _lettered())
    with pytest.raises(ValueError, match="no candidate of its row"):
        encoder.encode(HISTORY, CANDIDATES, torch.tensor([1, 6]), _lettered(), FIRST)


def test_more_candidates_than_letters_are_refused(encoder):
    with pytest.raises(UserError, match="answer_form: found letter and 4 candidates, expected at most 3"):
        encoder.encode(HISTORY, torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]]), None, _lettered(), FIRST)


def test_a_tokenizer_with_too_few_letters_is_refused(tokenizer):
    with pytest.raises(UserError, match="candidate_num: found 703 with answer_form letter"):
        letter_tokens(tokenizer, 703)


def test_letters_are_told_apart(tokenizer):
    for has_space in (True, False):
        marks, answers = letter_tokens(tokenizer, 26, has_space)
        assert len(set(map(tuple, marks))) == len(set(map(tuple, answers))) == 26
        assert {len(answer) for answer in answers} == {1}


@pytest.mark.parametrize("changes", [{}, {"has_score_tokens": True, "has_user_token": True}])
def test_the_budget_knows_the_letters(tokenizer, changes):
    """A context that holds the longest prompt and its answer exactly cuts no title; one token less does."""
    representation = _lettered(**changes)
    templates = load_templates("movie", 3)

    def encoder_of(tokens):
        return PromptEncoder(
            tokenizer,
            TITLES,
            templates,
            budget=tokens and ContextBudget(tokens, 2, 3),
            representations=[representation],
            letters=3,
        )

    longest, answers = encoder_of(None).longest_prompt(2, 3)
    needed = longest.input_ids.shape[1] + answers.shape[2]
    assert encoder_of(needed).max_title_tokens == 64
    assert encoder_of(needed - 1).max_title_tokens < 64
