"""Titles cut to the LLM's context: the longest prompt of a run fits, no title is cut in vain, and too small a context is refused."""

import logging

import numpy as np
import pytest
import torch

from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import PromptTemplate
from recbole_llara.prompt.titles import ContextBudget, PromptLengths
from recbole_llara.utils.errors import UserError

L, C = 3, 4
TITLES = ["", "a", "b c", *(" ".join("word" for _ in range(count)) for count in (30, 29, 12, 9, 3, 1))]
TEMPLATES = [
    PromptTemplate.parse("Seen {history}. One of {candidates}. Answer:", C),
    PromptTemplate.parse("Seen before and kept in order: {history}. One of {candidate_num}: {candidates}. Answer:", C),
]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer(TITLES)


# The longest behind the shortest title, so that other items are the longest with them than without.
FIELDS = ["", "(word word word)", "", "(a)", "", *["(b c)"] * 2, "(word, a, b, c, word, a, b, c)", "(word)"]


def encoder_of(tokenizer, budget, *names, max_title_tokens=64, fields=()):
    shown = [REPRESENTATIONS[name] for name in names]
    return PromptEncoder(tokenizer, TITLES, TEMPLATES, max_title_tokens, budget, shown, fields=fields)


def longest_prompt(encoder, name):
    """Tokens of the worst row there is: the longest item over and over in the history, the longest as candidates, the longest answer."""
    representation = REPRESENTATIONS[name]
    items = torch.arange(1, len(TITLES))[:, None]
    alone = encoder.encode_items(items[:, 0], representation).attention_mask.sum(1)
    ranked = (1 + alone.argsort(descending=True)).tolist()
    longest = int((encoder.answer_ids(items, representation) >= 0).sum(2).argmax()) + 1
    history, candidates = torch.full((1, L), ranked[0]), torch.tensor([ranked[:C]])
    rows = [
        encoder.encode(history, candidates, torch.tensor([longest]), representation, torch.tensor([number]))
        for number in range(len(TEMPLATES))
    ]
    return max(row.input_ids.shape[1] for row in rows)


def test_the_longest_prompt_of_an_example():
    lengths = PromptLengths(9, 1, {Part.TITLE: np.array([7, 4, 4])})
    budget = ContextBudget(0, history=2, candidates=3)
    assert lengths.longest(budget, REPRESENTATIONS["hybrid"], 64) == 9 + (2 * 7 + 1 + 2) + (15 + 2 + 3) + 7 + 1
    assert lengths.longest(budget, REPRESENTATIONS["textual"], 5) == 9 + (2 * 5 + 1) + (13 + 2) + 5 + 1


@pytest.mark.parametrize("fields", [(), FIELDS])
@pytest.mark.parametrize("name", list(REPRESENTATIONS))
def test_titles_are_cut_until_the_longest_prompt_fits_and_no_further(tokenizer, name, fields):
    whole = longest_prompt(encoder_of(tokenizer, None, name, fields=fields), name)
    assert encoder_of(tokenizer, ContextBudget(whole, L, C), name, fields=fields).max_title_tokens == 64
    if name == "numerical":
        return
    cuts, lost = [], 60 if Part.TITLE in REPRESENTATIONS[name].parts else 22  # there the answer alone can be cut
    for tokens in range(whole - 1, whole - lost, -7):
        encoder = encoder_of(tokenizer, ContextBudget(tokens, L, C), name, fields=fields)
        assert longest_prompt(encoder, name) <= tokens
        by_hand = encoder_of(tokenizer, None, name, max_title_tokens=encoder.max_title_tokens + 1, fields=fields)
        assert longest_prompt(by_hand, name) > tokens
        cuts.append(encoder.max_title_tokens)
    assert cuts == sorted(cuts, reverse=True) and cuts[-1] < cuts[0]


def test_a_cut_to_the_context_is_that_of_max_title_tokens(tokenizer):
    cut = encoder_of(tokenizer, ContextBudget(150, L, C), "hybrid", "text_only")
    same = encoder_of(tokenizer, None, "hybrid", "text_only", max_title_tokens=cut.max_title_tokens)
    assert cut.titles == same.titles and cut.titles[1:3] == TITLES[1:3]
    assert torch.equal(cut._bank.tokens, same._bank.tokens)


def test_the_log_says_what_was_found_and_why(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = encoder_of(tokenizer, ContextBudget(150, L, C), "hybrid")
    (message,) = [message for message in caplog.messages if "titles are cut to" in message]
    for word in (f"cut to {encoder.max_title_tokens}", "found 64", "MAX_ITEM_LIST_LENGTH 3", "candidate_num 4", "holds 150"):
        assert word in message


def test_a_context_too_small_for_a_few_tokens_of_each_title_is_refused(tokenizer):
    # 30 tokens of template and answer, 7 titles of 4 with a slot each: well above 60.
    with pytest.raises(UserError, match="MAX_ITEM_LIST_LENGTH 3 and candidate_num 4.*cut to 4, but the LLM holds 60.*llm_path"):
        encoder_of(tokenizer, ContextBudget(60, L, C), "hybrid")
    fits = encoder_of(tokenizer, ContextBudget(100, L, C), "hybrid").max_title_tokens
    with pytest.raises(
        UserError, match="candidate_num 4, with item_fields of up to [0-9]+ tokens an item,.*but the LLM holds 100"
    ):
        encoder_of(tokenizer, ContextBudget(100, L, C), "hybrid", max_title_tokens=fits, fields=FIELDS)


# As shops name what differs in one word: what tells them apart stands at the end, in the middle, or is the length.
CASES = ["", *(f"Shockproof slim soft case with ring holder and stand, for phone model {item}" for item in range(1, 31))]
CASES += [
    f"Shockproof slim soft case with ring holder in size {item} with a very long guarantee and a very free return"
    for item in range(30)
]
CASES += ["Shockproof slim soft case", "A hat", "Shockproof slim soft case with ring holder"]


@pytest.mark.parametrize("most", [2, 4, 6, 8, 13, 40])
def test_titles_that_begin_alike_are_cut_so_that_they_differ(make_tokenizer, caplog, most):
    tokenizer = make_tokenizer(CASES, 400)
    with caplog.at_level(logging.WARNING):
        encoder = PromptEncoder(tokenizer, CASES, TEMPLATES, most, None, [REPRESENTATIONS["textual"]])
    answers = encoder.answer_ids(torch.arange(1, len(CASES)), REPRESENTATIONS["textual"])
    distinct = len(answers.unique(dim=0))
    told = [message for message in caplog.messages if "begin with the same" in message]
    whole = [tokenizer.encode(f" {title}", add_special_tokens=False) for title in CASES]
    assert answers.shape[1] <= most + 1
    for item, tokens in enumerate(whole[1:], start=1):
        if len(tokens) <= most:
            assert encoder.titles[item] == CASES[item]
        else:
            assert answers[item - 1, : most // 2].tolist() == tokens[: most // 2]
    if most >= 4:
        assert distinct == len(CASES) - 1 and not any("still the same text" in message for message in told)
    else:
        left = int(told[0].split("where they differ. ")[1].split(" are")[0])
        counts = answers.unique(dim=0, return_counts=True)[1]
        assert left == int(counts[counts > 1].sum()) > 0
    heads = [tuple(tokens[:most]) for tokens in whole[1:]]
    begin_alike = sum(heads.count(head) > 1 for head in heads)
    assert len(told) == (begin_alike > 0) and all(f"{begin_alike} of {len(CASES) - 1} titles" in message for message in told)


def test_titles_of_which_nothing_collides_are_cut_as_ever(tokenizer):
    titles = ["", "a b c d e f g h", "b b c d e f g h", "c d"]
    encoder = PromptEncoder(tokenizer, titles, TEMPLATES, 4, None, [REPRESENTATIONS["textual"]])
    for item, title in enumerate(titles[1:], start=1):
        whole = tokenizer.encode(f" {title}", add_special_tokens=False)
        assert encoder.answer_ids(torch.tensor([item]), REPRESENTATIONS["textual"])[0].tolist()[:-1][: len(whole)] == whole[:4]


def test_a_catalogue_of_one_text_is_refused(tokenizer):
    with pytest.raises(UserError, match="title_field: all 5 items have the same text 'a word'.*expected titles that tell"):
        PromptEncoder(tokenizer, ["", *["a word"] * 5], TEMPLATES, representations=[REPRESENTATIONS["hybrid"]])
    PromptEncoder(tokenizer, ["", *["a word"] * 5], TEMPLATES, representations=[REPRESENTATIONS["numerical"]])
