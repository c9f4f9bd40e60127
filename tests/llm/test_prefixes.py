"""What an LLM has read of a prompt is not read again, and the answers are the same: in every family, or it is not kept."""

import logging

import pytest
import torch
from llm_families import ONE_BY_ONE, TREE, WINDOW, make_family
from test_probe import TEXTUAL, TITLES, C, L, by_plain_passes, embedded

from recbole_llara.llm.likelihood import answer_scores, candidate_log_probs, trie_log_probs
from recbole_llara.llm.prefixes import FEWEST, PrefixStore, beginnings
from recbole_llara.llm.probe import Probe
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import PromptTemplate

GIGABYTE = 1 << 30
HISTORIES = [[30, 31, 0, 0, 0], [1, 2, 3, 4, 5], [14, 9, 30, 0, 0]]
CANDIDATES = [[30, 31, 32, 1, 2, 3], [31, 30, 9, 4, 14, 32], [5, 6, 7, 8, 9, 10]]


@pytest.fixture(scope="module")
def encoder(make_tokenizer):
    template = PromptTemplate.parse("This user has seen {history}. Choose one of {candidates}. Next:", C)
    return PromptEncoder(make_tokenizer(TITLES, 400), TITLES, [template])


@pytest.fixture
def llm(encoder):
    return make_family("Llama", len(encoder.tokenizer))


def asked(encoder, histories, candidates, representation=TEXTUAL):
    """Prompts and the candidates' answers."""
    histories, candidates = torch.tensor(histories), torch.tensor(candidates)
    prompts = encoder.encode(histories, candidates, None, representation, torch.zeros(len(histories), dtype=torch.int64))
    return prompts, encoder.answer_ids(candidates, representation)


@torch.no_grad()
def answered(store, llm, prompts, answer_ids):
    """Log-probabilities through a store, how many tokens were read for them, and how many were not."""
    before = store.read, store.reused
    found = store.reader(llm, prompts)(llm, embedded(llm, prompts), answer_ids)
    return found, store.read - before[0], store.reused - before[1]


@pytest.mark.parametrize("family", TREE)
def test_answers_are_those_of_prompts_read_whole(family, encoder):
    """Asked anew; then a history that has grown, one that differs at its end, the same one and a new one; windows pass many times."""
    llm, store = make_family(family, len(encoder.tokenizer)), PrefixStore(GIGABYTE)
    batches = [
        (HISTORIES, CANDIDATES),
        (
            [[14, 9, 30, 22, 0], [1, 2, 3, 4, 6], [30, 31, 0, 0, 0], [9, 14, 30, 0, 0]],
            [[5, 6, 7, 8, 9, 10], [31, 30, 9, 14, 4, 32], [1, 2, 3, 4, 5, 6], [32, 31, 30, 29, 28, 27]],
        ),
        (HISTORIES, CANDIDATES),
    ]
    for number, batch in enumerate(batches):
        prompts, answer_ids = asked(encoder, *batch)
        assert prompts.input_ids.shape[1] > 3 * WINDOW
        found, read, reused = answered(store, llm, prompts, answer_ids)
        assert read + reused == int(prompts.attention_mask.sum())
        assert reused == 0 if number == 0 else reused > 100
        with torch.no_grad():
            expected = trie_log_probs(llm, embedded(llm, prompts), answer_ids)
        assert torch.allclose(found, expected, rtol=0, atol=1e-4)
        if number == 1:
            assert torch.allclose(found, by_plain_passes(llm, prompts, answer_ids), rtol=0, atol=1e-4)
        scores, plain = answer_scores(found), answer_scores(expected)
        assert torch.equal(scores.argsort(1, descending=True), plain.argsort(1, descending=True))


@pytest.mark.parametrize("family", [*TREE, *ONE_BY_ONE])
def test_it_is_tried_before_it_is_used(family, encoder, caplog):
    llm = make_family(family, len(encoder.tokenizer))
    prompt, answer_ids = encoder.longest_prompt(L, C)
    probe = Probe(llm, "./llm", prompt, answer_ids, encoder.tokenizer.eos_token_id, encoder.pad_id)
    with caplog.at_level(logging.INFO, logger="root"):
        assert probe.reads_on(trie_log_probs) == (family in TREE)
    told = [message for message in caplog.messages if "prefix_cache is not used" in message]
    assert len(told) == (family in ONE_BY_ONE)
    assert not probe.reads_on(candidate_log_probs)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_keys_that_depend_on_the_length_of_a_prompt_are_not_kept(rope_type, encoder, caplog):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 4096}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    llm = make_family("Llama", len(encoder.tokenizer), rope_parameters=rope)
    probe = Probe(llm, "./llm", *encoder.longest_prompt(L, C), encoder.tokenizer.eos_token_id, encoder.pad_id)
    with caplog.at_level(logging.INFO, logger="root"):
        assert not probe.reads_on(trie_log_probs)
    assert f"scaled by the prompt's length: rope_type {rope_type}" in caplog.text


def test_only_what_is_new_is_read(llm, encoder):
    """By count: an equal history leaves the second list and what follows, a grown one also what stands behind its last old item."""
    store, asked_of = PrefixStore(GIGABYTE), lambda *items: asked(encoder, [[*items, *[0] * (L - len(items))]], CANDIDATES[:1])
    first, answer_ids = asked_of(14, 9, 30)
    length, head = int(first.attention_mask.sum()), int(first.head_lengths[0])
    assert answered(store, llm, first, answer_ids)[1:] == (length, 0)
    assert answered(store, llm, first, answer_ids)[1:] == (length - head, head)
    grown, _ = asked_of(14, 9, 30, 22)
    slid, _ = asked_of(30, 22)

    def common(other):
        ids = [prompts.input_ids[0][prompts.attention_mask[0].bool()].tolist() for prompts in (first, other)]
        return next(place for place, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1])

    words = common(asked_of(31)[0])  # the template's, and the one letter that both titles begin with
    assert FEWEST < words < common(grown) < head
    assert answered(store, llm, grown, answer_ids)[1:] == (int(grown.attention_mask.sum()) - common(grown), common(grown))
    # A history that has lost its oldest item begins anew.
    assert answered(store, llm, slid, answer_ids)[1:] == (int(slid.attention_mask.sum()) - words, words)


def test_a_vector_is_another_token_than_its_stand_in(encoder):
    """Prompts of equal token ids whose slots hold other items, or other parts, do not begin alike."""
    hybrid, text_only, behavioural = (REPRESENTATIONS[name] for name in ("hybrid", "text_only", "behavioural"))
    one, other = (asked(encoder, [[item, 0, 0, 0, 0]], CANDIDATES[:1], behavioural)[0] for item in (4, 5))
    assert torch.equal(one.input_ids, other.input_ids) and beginnings(one) != beginnings(other)
    shown = [beginnings(asked(encoder, HISTORIES[:1], CANDIDATES[:1], each)[0])[0] for each in (hybrid, text_only)]
    assert len(shown[0]) == len(shown[1]) and shown[0] != shown[1]
    # [PH] is the same for all items.
    placeholders = {token for token in shown[1] if token < 0}
    assert len(placeholders) == 1 and len({token for token in shown[0] if token < 0}) == 2


def test_what_the_recommender_concluded_ends_the_beginning(encoder):
    """The user token's vector follows from the whole history, and is no property of the token."""
    told = REPRESENTATIONS["hybrid"].__class__("told", REPRESENTATIONS["hybrid"].parts, has_user_token=True)
    prompts, _ = asked(encoder, HISTORIES, CANDIDATES, told)
    plain, _ = asked(encoder, HISTORIES, CANDIDATES, REPRESENTATIONS["hybrid"])
    for row, (begin, without) in enumerate(zip(beginnings(prompts), beginnings(plain), strict=True)):
        user = int(prompts.slot_columns[(prompts.slot_rows == row) & (prompts.slot_items == 0)][0])
        start = int((prompts.attention_mask[row] == 0).sum())
        assert len(begin) == user - start < int(prompts.head_lengths[row])
        assert begin == without[: len(begin)]


def test_its_memory_is_bounded_and_the_least_recently_asked_goes_first(llm, encoder):
    prompts, answer_ids = asked(encoder, HISTORIES, CANDIDATES)
    whole = PrefixStore(GIGABYTE)
    answered(whole, llm, prompts, answer_ids)
    assert len(whole) == 3
    heads = prompts.head_lengths.tolist()
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, blocks, heads, width, bytes
    assert whole.bytes == per_token * sum(heads)
    store = PrefixStore(per_token * (heads[1] + heads[2]))
    rows = [asked(encoder, [history], [items]) for history, items in zip(HISTORIES, CANDIDATES, strict=True)]
    for row in (0, 1, 0, 2):  # the third is too much for one of the others: the second has to go
        answered(store, llm, *rows[row])
        assert store.bytes <= store.limit
    assert answered(store, llm, *rows[0])[2] == heads[0]
    assert answered(store, llm, *rows[1])[2] < heads[1] / 2  # the template's words are those of all others
    none = PrefixStore(per_token)
    answered(none, llm, *rows[0])
    assert len(none) == none.bytes == 0


def test_other_weights_and_another_arithmetic_forget_everything(llm, encoder):
    prompts, answer_ids = asked(encoder, HISTORIES, CANDIDATES)
    store = PrefixStore(GIGABYTE)
    answered(store, llm, prompts, answer_ids)
    with torch.no_grad():
        llm.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    found, _, reused = answered(store, llm, prompts, answer_ids)
    assert reused == 0 and torch.allclose(found, by_plain_passes(llm, prompts, answer_ids), rtol=0, atol=1e-4)
    assert answered(store, llm, prompts, answer_ids)[2] > 0
    llm.model.norm.weight.data = llm.model.norm.weight.data * 2
    assert answered(store, llm, prompts, answer_ids)[2] == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert answered(store, llm, prompts, answer_ids)[2] == 0
        assert answered(store, llm, prompts, answer_ids)[2] > 0


def test_little_that_is_new_is_not_padded_to_much(llm, encoder, monkeypatch):
    """A row that was asked before goes by itself, beside one with a long new prompt."""
    store, widths = PrefixStore(GIGABYTE), []
    few, answer_ids = asked(encoder, [[30, 0, 0, 0, 0]], [[30, 31, 32, 1, 2, 3]])
    answered(store, llm, few, answer_ids)
    forward = llm.forward
    monkeypatch.setattr(llm, "forward", lambda **given: widths.append(given["inputs_embeds"].shape[:2]) or forward(**given))
    long = [[30, 0, 0, 0, 0], *([[4, 9, 14, 19, 24]] * 3)]
    prompts, answer_ids = asked(encoder, long, [[30, 31, 32, 1, 2, 3], *([[3, 4, 8, 9, 13, 14]] * 3)])
    answered(store, llm, prompts, answer_ids)
    assert [rows for rows, _ in widths] == [1, 3] and widths[0][1] < widths[1][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fault_is_told_from_rounding(dtype, encoder, monkeypatch):
    """As of an LLM that counts the positions of every pass from 0."""
    for family in ("Llama", "Mistral"):
        llm = make_family(family, len(encoder.tokenizer)).to(dtype)
        probe = Probe(llm, "./llm", *encoder.longest_prompt(L, C), encoder.tokenizer.eos_token_id, encoder.pad_id)
        assert probe.reads_on(trie_log_probs)
        forward = llm.forward

        def from_0(forward=forward, **given):
            return forward(**{**given, "position_ids": given["position_ids"] - given["position_ids"].amin(1, keepdim=True)})

        monkeypatch.setattr(llm, "forward", from_0)
        assert not probe.reads_on(trie_log_probs)
