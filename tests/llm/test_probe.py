"""Whatever the family, an LLM's scores are those of plain passes, or it is refused: by windows, biases and layers of every kind."""

import logging

import pytest
import torch
from llm_families import FAMILIES, ONE_BY_ONE, REFUSED, TREE, WINDOW, make_family

from recbole_llara.llm.adapters import tune
from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm, input_embeddings
from recbole_llara.llm.likelihood import answer_pass, candidate_log_probs, trie_log_probs
from recbole_llara.llm.probe import Probe
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import PromptTemplate
from recbole_llara.utils.errors import UserError

L, C = 5, 6
TITLES = ["", *(f"A film of part {item} and {'more ' * (item % 5)}so" for item in range(1, 30)), "Alien", "Alien 3", "Solaris"]
TEXTUAL = REPRESENTATIONS["textual"]


@pytest.fixture(scope="module")
def encoder(make_tokenizer):
    template = PromptTemplate.parse("This user has seen {history}. Choose one of {candidates}. Next:", C)
    return PromptEncoder(make_tokenizer(TITLES, 400), TITLES, [template], representations=[TEXTUAL])


def probed(llm, encoder, generates=False):
    """The reader that is chosen for an LLM."""
    prompt, answer_ids = encoder.longest_prompt(L, C)
    assert prompt.input_ids.shape[1] > 3 * WINDOW
    return Probe(llm, "./llm", prompt, answer_ids, encoder.tokenizer.eos_token_id, encoder.pad_id).run(generates)


def a_batch(encoder):
    """Prompts of three rows of other lengths, and their candidates' answers."""
    history = torch.tensor([[30, 31, 0, 0, 0], [1, 2, 3, 4, 5], [14, 9, 30, 0, 0]])
    candidates = torch.tensor([[30, 31, 32, 1, 2, 3], [31, 30, 9, 4, 14, 32], [5, 6, 7, 8, 9, 10]])
    prompts = encoder.encode(history, candidates, None, TEXTUAL, torch.zeros(3, dtype=torch.int64))
    return prompts, encoder.answer_ids(candidates, TEXTUAL)


def embedded(llm, prompts):
    return EmbeddedPrompts(input_embeddings(llm)(prompts.input_ids).detach(), prompts.attention_mask, prompts.position_ids)


@torch.no_grad()
def by_plain_passes(llm, prompts, answer_ids):
    """[B, C, A] each row and candidate alone, as tokens, without mask or positions."""
    found = torch.zeros(answer_ids.shape)
    for row in range(len(answer_ids)):
        prompt = prompts.input_ids[row][prompts.attention_mask[row].bool()]
        for candidate in range(answer_ids.shape[1]):
            answer = answer_ids[row, candidate][answer_ids[row, candidate] >= 0]
            logits = causal_lm(llm)(input_ids=torch.cat([prompt, answer])[None]).logits[0]
            log_probs = logits.float().log_softmax(1)[len(prompt) - 1 : -1]
            found[row, candidate, : len(answer)] = log_probs.gather(1, answer[:, None])[:, 0]
    return found


@pytest.mark.parametrize("family", [*TREE, *ONE_BY_ONE])
def test_scores_are_those_of_plain_passes(family, encoder, caplog):
    llm = make_family(family, len(encoder.tokenizer))
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="root"):
        read = probed(llm, encoder)
    told = [message for message in caplog.messages if "does not read all candidates' answers in one pass" in message]
    if family in TREE:
        assert read is trie_log_probs and not told
    else:
        assert read is candidate_log_probs
        assert len(told) == 1 and type(llm).__name__ in told[0] and "6 times as long" in told[0]
    prompts, answer_ids = a_batch(encoder)
    found = read(llm, embedded(llm, prompts), answer_ids)
    assert torch.allclose(found, by_plain_passes(llm, prompts, answer_ids), rtol=0, atol=1e-4)
    # Asking has changed nothing: no weight, no draw, no mode.
    assert all(torch.equal(tensor, before[name]) for name, tensor in llm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not any(module.training for module in llm.modules())


@pytest.mark.parametrize("family", REFUSED)
def test_what_sees_the_answer_or_stumbles_over_padding_is_refused(family, encoder):
    expected = "inputs_embeds with padding on its left" if family == "RWKV" else "lets a token see later ones"
    with pytest.raises(UserError, match=f"llm_path is './llm': .*{expected}.*choose another llm_path"):
        probed(make_family(family, len(encoder.tokenizer)), encoder)


@pytest.mark.parametrize("family", ["MPT", "BLOOM", "Mistral", "Gemma 3 with images"])
def test_lora_trains_what_the_probe_lets_through(family, encoder):
    """The loss of training is that of plain passes, and its gradient reaches adapters of the language model, and no others."""
    llm = tune(make_family(family, len(encoder.tokenizer)), "lora", 2, 4, 0.0, "auto").eval()
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    history, items = torch.tensor([[30, 31, 0, 0, 0], [1, 2, 3, 4, 5]]), torch.tensor([[1, 2, 3, 4, 5, 6]]).expand(2, -1)
    prompts = encoder.encode(history, items, items[:, 0], TEXTUAL, torch.zeros(2, dtype=torch.int64))
    answers = answer_pass(llm, embedded(llm, prompts), prompts.labels)
    asked = encoder.encode(history, items, None, TEXTUAL, torch.zeros(2, dtype=torch.int64))
    plain = by_plain_passes(llm, asked, encoder.answer_ids(items[:, :1], TEXTUAL)).sum((1, 2))
    assert torch.allclose(-answers.sums, plain, rtol=1e-5, atol=1e-4)
    answers.sums.sum().backward()
    adapters = {name: parameter for name, parameter in llm.named_parameters() if "lora_" in name}
    assert adapters and not any("vision" in name for name in adapters)
    idle = [name for name, parameter in adapters.items() if parameter.grad is None]
    assert not idle, idle


def test_what_peft_cannot_adapt_is_refused_by_key(encoder):
    llm = make_family("Mamba", len(encoder.tokenizer))
    with pytest.raises(
        UserError, match="lora_target_modules is 'auto' for MambaForCausalLM: .*'out_proj'.*llm_tuning frozen or full"
    ):
        tune(llm, "lora", 2, 4, 0.0, "auto")
    assert probed(tune(llm, "lora", 2, 4, 0.0, ["in_proj", "x_proj"]).get_base_model(), encoder) is candidate_log_probs


def test_an_llm_that_cannot_generate_from_embedded_prompts_is_refused_where_it_is_to(encoder):
    llm = make_family("Gemma 3 with images", len(encoder.tokenizer))
    with pytest.raises(UserError, match="llm_path is './llm': Gemma3For.*cannot generate.*set decoding: score"):
        probed(llm, encoder, generates=True)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "BLOOM", "MPT", "Gemma 3", "Mamba"])
def test_an_llm_that_can_generate_does(family, encoder):
    probed(make_family(family, len(encoder.tokenizer)), encoder, generates=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_halves_a_fault_is_told_from_rounding(dtype, encoder):
    assert probed(make_family("Mistral", len(encoder.tokenizer)).to(dtype), encoder) is trie_log_probs
    assert probed(make_family("MPT", len(encoder.tokenizer)).to(dtype), encoder) is candidate_log_probs
    with pytest.raises(UserError, match="lets a token see"):
        probed(make_family("BERT", len(encoder.tokenizer)).to(dtype), encoder)


def test_a_model_that_needs_more_in_training_is_refused_before_it(encoder, monkeypatch):
    """As some that read images ask for token types, but only in training mode."""
    llm = make_family("Llama", len(encoder.tokenizer))
    forward = type(llm).forward

    def demanding(self, *args, **kwargs):
        if self.training:
            raise ValueError("token_type_ids are required")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(llm), "forward", demanding)
    with pytest.raises(UserError, match="cannot make a pass of training.*token_type_ids are required"):
        probed(llm, encoder)
    assert not llm.training


def test_there_are_as_many_families_as_are_claimed():
    assert len(FAMILIES) >= 16
