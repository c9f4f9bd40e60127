"""Titles cut for want of room: the longest prompt of a run fits, no title is cut in vain, and too little room is refused."""

import logging

import numpy as np
import pytest
import torch

from recbole_llara.errors import UserError
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.room import PromptLengths, PromptRoom
from recbole_llara.prompt.template import PromptTemplate

L, C = 3, 4
TITLES = ["", "a", "b c", *(" ".join("word" for _ in range(count)) for count in (30, 29, 12, 9, 3, 1))]
TEMPLATES = [
    PromptTemplate.parse("Seen {history}. One of {candidates}. Answer:", C),
    PromptTemplate.parse("Seen before and kept in order: {history}. One of {candidate_num}: {candidates}. Answer:", C),
]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer(TITLES)


def encoder_of(tokenizer, room, *names, max_title_tokens=64):
    shown = [REPRESENTATIONS[name] for name in names]
    return PromptEncoder(tokenizer, TITLES, TEMPLATES, max_title_tokens, room, shown)


def longest_prompt(encoder, name):
    """Tokens of the worst row there is: the longest title over and over in the history, and the longest as candidates."""
    representation = REPRESENTATIONS[name]
    lengths = [(encoder.answer_ids(torch.tensor([item]), representation).shape[1], item) for item in range(1, len(TITLES))]
    ranked = [item for _, item in sorted(lengths, reverse=True)]
    history, candidates = torch.full((1, L), ranked[0]), torch.tensor([ranked[:C]])
    rows = [
        encoder.encode(history, candidates, candidates[:, 0], representation, torch.tensor([number]))
        for number in range(len(TEMPLATES))
    ]
    return max(row.input_ids.shape[1] for row in rows)


def test_the_longest_prompt_of_an_example():
    lengths = PromptLengths(9, 1, {Part.TITLE: np.array([7, 4, 4])})
    room = PromptRoom(0, history=2, candidates=3)
    assert lengths.longest(room, REPRESENTATIONS["hybrid"], 64) == 9 + (2 * 7 + 1 + 2) + (15 + 2 + 3) + 7 + 1
    assert lengths.longest(room, REPRESENTATIONS["textual"], 5) == 9 + (2 * 5 + 1) + (13 + 2) + 5 + 1


@pytest.mark.parametrize("name", list(REPRESENTATIONS))
def test_titles_are_cut_until_the_longest_prompt_fits_and_no_further(tokenizer, name):
    whole = longest_prompt(encoder_of(tokenizer, None, name), name)
    assert encoder_of(tokenizer, PromptRoom(whole, L, C), name).max_title_tokens == 64
    if name == "numerical":
        return
    cuts, lost = [], 60 if Part.TITLE in REPRESENTATIONS[name].parts else 22  # there the answer alone can be cut
    for tokens in range(whole - 1, whole - lost, -7):
        encoder = encoder_of(tokenizer, PromptRoom(tokens, L, C), name)
        assert longest_prompt(encoder, name) <= tokens
        by_hand = encoder_of(tokenizer, None, name, max_title_tokens=encoder.max_title_tokens + 1)
        assert longest_prompt(by_hand, name) > tokens
        cuts.append(encoder.max_title_tokens)
    assert cuts == sorted(cuts, reverse=True) and cuts[-1] < cuts[0]


def test_a_cut_for_want_of_room_is_that_of_max_title_tokens(tokenizer):
    cut = encoder_of(tokenizer, PromptRoom(150, L, C), "hybrid", "text_only")
    same = encoder_of(tokenizer, None, "hybrid", "text_only", max_title_tokens=cut.max_title_tokens)
    assert cut.titles == same.titles and cut.titles[1:3] == TITLES[1:3]
    assert torch.equal(cut._bank.tokens, same._bank.tokens)


def test_the_log_says_what_was_found_and_why(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = encoder_of(tokenizer, PromptRoom(150, L, C), "hybrid")
    (message,) = caplog.messages
    for word in (f"cut to {encoder.max_title_tokens}", "found 64", "MAX_ITEM_LIST_LENGTH 3", "candidate_num 4", "holds 150"):
        assert word in message


def test_too_little_room_for_a_few_tokens_of_each_title_is_refused(tokenizer):
    # 30 tokens of template and answer, 7 titles of 4 with a slot each: well above 60.
    with pytest.raises(UserError, match="MAX_ITEM_LIST_LENGTH 3 and candidate_num 4.*cut to 4, but the LLM holds 60.*llm_path"):
        encoder_of(tokenizer, PromptRoom(60, L, C), "hybrid")
