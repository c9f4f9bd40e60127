import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from recbole_llara.llm.answer_tree import walk
from recbole_llara.llm.architecture import causal_lm, input_embeddings
from recbole_llara.llm.generation import answer_texts, decode_generate
from recbole_llara.llm.likelihood import candidate_log_probs, score_candidates, trie_log_probs

EOS = 1
LENGTHS = [9, 21, 5, 14, 12]
N_CANDIDATES = 6


def draw_answers(seed=5):
    """[B, C, A] answers of 1 to 5 tokens and EOS; beginnings repeat, and row 0 has two equal candidates."""
    generator = torch.Generator().manual_seed(seed)
    n_rows = len(LENGTHS)
    answers = torch.randint(2, 97, (n_rows, N_CANDIDATES, 6), generator=generator)
    answers[:, :3, 0] = answers[:, :1, 0]
    answers[:, :2, 1] = answers[:, :1, 1]
    ends = torch.randint(3, 6, (n_rows, N_CANDIDATES), generator=generator)
    ends[:, -1] = 1
    answers[0, 4], ends[0, 4] = answers[0, 3], ends[0, 3]
    place = torch.arange(6)
    answers = answers.masked_fill(place == ends[:, :, None], EOS)
    return answers.masked_fill(place > ends[:, :, None], -100)


def score_by_loop(llm, prompts, answers):
    """Every candidate appended to its prompt, one full forward pass each."""
    scores = torch.zeros(answers.shape[:2])
    for row in range(answers.shape[0]):
        prompt = prompts.row(row).inputs_embeds
        for candidate in range(answers.shape[1]):
            tokens = answers[row, candidate][answers[row, candidate] >= 0]
            with torch.no_grad():
                logits = llm(inputs_embeds=torch.cat([prompt, input_embeddings(llm)(tokens)[None]], 1)).logits[0]
            log_probs = F.log_softmax(logits[prompt.shape[1] - 1 : -1], 1)
            scores[row, candidate] = log_probs.gather(1, tokens[:, None]).sum()
    return scores


@pytest.fixture(params=[False, True], ids=["plain", "lora"])
def llm(request, make_llm, architecture):
    return make_llm(architecture, lora=request.param)


@pytest.fixture
def prompts(llm, make_prompts):
    return make_prompts(llm, LENGTHS)


def test_scores_equal_a_plain_loop(llm, prompts):
    answers = draw_answers()
    scores = score_candidates(llm, prompts, answers)
    assert torch.allclose(scores, score_by_loop(llm, prompts, answers), rtol=1e-5, atol=1e-5)


def test_scores_under_eager_attention_equal_a_plain_loop(make_llm, make_prompts, architecture):
    llm = make_llm(architecture, attention="eager")
    prompts, answers = make_prompts(llm, LENGTHS), draw_answers()
    scores = score_candidates(llm, prompts, answers)
    assert torch.allclose(scores, score_by_loop(llm, prompts, answers), rtol=1e-5, atol=1e-5)


def test_scores_under_autocast_stay_near(make_llm, make_prompts, architecture):
    llm = make_llm(architecture)
    prompts, answers = make_prompts(llm, LENGTHS), draw_answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_candidates(llm, prompts, answers)
        assert generate(llm, prompts, answers).shape[0] == len(LENGTHS)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, score_by_loop(llm, prompts, answers), rtol=0.05)


def test_token_log_probs_sum_to_the_scores_and_are_0_on_padding(llm, prompts):
    answers = draw_answers()
    log_probs = trie_log_probs(llm, prompts, answers)
    assert (log_probs[answers < 0] == 0).all() and (log_probs[answers >= 0] < 0).all()
    assert torch.allclose(log_probs.sum(2), score_candidates(llm, prompts, answers))


def test_equal_answers_have_exactly_equal_scores(llm, prompts):
    scores = score_candidates(llm, prompts, draw_answers())
    assert scores[0, 3] == scores[0, 4]


def test_one_token_answers_have_no_tree(llm, prompts):
    answers = torch.arange(2, 2 + len(LENGTHS) * 4).reshape(len(LENGTHS), 4, 1)
    scores = score_candidates(llm, prompts, answers)
    assert torch.allclose(scores, score_by_loop(llm, prompts, answers), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def decode_constrained(llm, prompts, answers, read=trie_log_probs):
    return walk(answers, read(llm, prompts, answers))


def constrained_by_hugging_face(llm, prompts, answers):
    """Greedy ``generate`` with a prefix function over the row's answers: an independent implementation."""
    chosen = []
    for row in range(answers.shape[0]):
        wanted = [[token for token in answer if token >= 0] for answer in answers[row].tolist()]

        def allowed(_, sequence, wanted=wanted):
            written = sequence.tolist()
            following = {
                tokens[len(written)] for tokens in wanted if tokens[: len(written)] == written and len(tokens) > len(written)
            }
            return sorted(following) or [EOS]

        alone = prompts.row(row)
        written = llm.generate(
            inputs_embeds=alone.inputs_embeds,
            attention_mask=alone.attention_mask,
            prefix_allowed_tokens_fn=allowed,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=answers.shape[2], eos_token_id=EOS, pad_token_id=EOS
            ),
        )[0].tolist()
        chosen.append(wanted.index(written[: written.index(EOS) + 1]))
    return chosen


@pytest.mark.parametrize("seed", [5, 6])
def test_constrained_equals_generate_with_a_prefix_function(llm, prompts, seed):
    answers = draw_answers(seed=seed)
    chosen = decode_constrained(llm, prompts, answers)
    assert chosen.tolist() == constrained_by_hugging_face(llm, prompts, answers)


def generate(llm, prompts, answers):
    lengths = (answers >= 0).sum(2).amax(1)
    return decode_generate(llm, prompts, lengths, eos_token_id=EOS, pad_token_id=EOS)


def test_generate_equals_a_plain_greedy_loop(llm, prompts):
    answers = draw_answers()
    generated = generate(llm, prompts, answers).tolist()
    for row in range(len(LENGTHS)):
        embeds, expected = prompts.row(row).inputs_embeds, []
        while len(expected) < int((answers[row] >= 0).sum(1).max()):
            with torch.no_grad():
                token = int(llm(inputs_embeds=embeds).logits[0, -1].argmax())
            if token == EOS:
                break
            expected.append(token)
            embeds = torch.cat([embeds, input_embeddings(llm)(torch.tensor([[token]]))], 1)
        assert [token for token in generated[row] if token >= 0] == expected


def test_generate_stops_behind_eos(llm, prompts):
    answers = draw_answers()
    first = generate(llm, prompts, answers)[1, 0].item()
    lengths = (answers >= 0).sum(2).amax(1)
    stopped = decode_generate(llm, prompts, lengths, eos_token_id=first, pad_token_id=first)
    assert (stopped[1] == -100).all()


@pytest.mark.parametrize("padding", [0, 3, 30])
def test_a_row_answers_alone_as_in_any_batch(llm, prompts, padding):
    answers = draw_answers()
    scores = score_candidates(llm, prompts, answers)
    constrained = decode_constrained(llm, prompts, answers)
    generated = generate(llm, prompts, answers)
    for row in range(len(LENGTHS)):
        alone, own = prompts.row(row, padding), answers[row : row + 1]
        alone_scores = score_candidates(llm, alone, own)
        assert alone_scores[0].argsort(stable=True).tolist() == scores[row].argsort(stable=True).tolist()
        assert torch.allclose(alone_scores[0], scores[row], rtol=1e-5, atol=1e-5)
        assert decode_constrained(llm, alone, own).item() == constrained[row].item()
        words = [
            [token for token in tokens if token >= 0]
            for tokens in (generate(llm, alone, own)[0].tolist(), generated[row].tolist())
        ]
        assert words[0] == words[1]


def test_more_padding_of_answers_changes_nothing(llm, prompts):
    answers = draw_answers()
    wider = F.pad(answers, (0, 4), value=-100)
    expected = score_candidates(llm, prompts, answers)
    assert torch.equal(score_candidates(llm, prompts, wider), expected)
    assert torch.equal(
        decode_constrained(llm, prompts, wider),
        decode_constrained(llm, prompts, answers),
    )


def test_sampling_settings_of_the_model_neither_change_nor_warn(llm, prompts, caplog, recwarn):
    answers = draw_answers()
    expected = generate(llm, prompts, answers)
    causal_lm(llm).generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=5,
        repetition_penalty=3.0,
        no_repeat_ngram_size=1,
        min_new_tokens=6,
    )
    recwarn.clear()
    assert torch.equal(generate(llm, prompts, answers), expected)
    assert not recwarn.list and not caplog.records


def test_refuses_right_padding_and_training_mode(make_llm, make_prompts):
    llm = make_llm("llama")
    prompts, answers = make_prompts(llm, LENGTHS), draw_answers()
    right = replace(prompts, attention_mask=prompts.attention_mask.flip(1))
    with pytest.raises(ValueError, match="padded on the left"):
        score_candidates(llm, right, answers)
    llm.train()
    with pytest.raises(ValueError, match="training mode"):
        generate(llm, prompts, answers)


@pytest.mark.parametrize("window", [12, 40])
def test_a_sliding_window_ends_where_a_plain_loop_ends_it(make_prompts, window):
    """Within a prompt and across its end, in a tree of answers of many lengths."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        sliding_window=window,
        eos_token_id=EOS,
    )
    llm = MistralForCausalLM(config).eval()
    answers = draw_answers()
    for lengths in (LENGTHS, [40] * len(LENGTHS)):
        prompts = make_prompts(llm, lengths)
        scores = score_candidates(llm, prompts, answers)
        assert torch.allclose(scores, score_by_loop(llm, prompts, answers), rtol=1e-5, atol=1e-5)
        by_hand = score_candidates(llm, prompts, answers, read=candidate_log_probs)
        assert torch.allclose(scores, by_hand, rtol=1e-5, atol=1e-5)
        assert by_hand[0, 3] == by_hand[0, 4]


def test_candidates_read_one_by_one_are_those_of_the_tree(llm, prompts):
    answers = draw_answers()
    one_by_one = candidate_log_probs(llm, prompts, answers)
    assert torch.allclose(one_by_one, trie_log_probs(llm, prompts, answers), rtol=1e-5, atol=1e-5)
    chosen = decode_constrained(llm, prompts, answers, read=candidate_log_probs)
    assert torch.equal(chosen, decode_constrained(llm, prompts, answers))


def test_texts_of_answers_show_special_tokens_and_keep_every_space(make_tokenizer):
    titles = ["Alien , 3", "Léon", "a </s> b"]
    tokenizer = make_tokenizer(titles)
    ids = [tokenizer.encode(title, add_special_tokens=False, split_special_tokens=True) for title in titles]
    ids.append([*ids[0], 0])
    longest = max(map(len, ids))
    table = torch.tensor([row + [-100] * (longest - len(row)) for row in ids])
    assert answer_texts(tokenizer, table) == [*titles, "Alien , 3<s>"]
    assert json.dumps(answer_texts(tokenizer, torch.full((1, 2), -100))) == '[""]'
