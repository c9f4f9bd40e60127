"""The pretraining's own decoder and guidance, a run cut in two, and what it writes."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.tiny_llama.pretrain import Phase, Pretraining, foundation_stage, opener_stage, selection_stage
from recbole_llara.tiny_llama.tasks import Stage
from recbole_llara.tiny_llama.teaching import FIT_LAYERS, Guidance, answer_attention, decode

SELECTION = Stage(
    candidate_max=5,
    short_share=0.0,
    lookup_share=0.0,
    reader_share=0.0,
    vector_share=1.0,
    closeness=0.999,
    history_max=4,
    hybrid_share=1.0,
    text_share=0.0,
)


@pytest.fixture(scope="module")
def tiny():
    return AutoModelForCausalLM.from_pretrained(TINY_LLAMA_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def selection(make_maker):
    return make_maker().batch(0, SELECTION)


def test_padding_on_the_right_changes_no_hidden_state(tiny):
    ids = torch.randint(3, 500, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last, inside = decode(tiny.model, tiny.get_input_embeddings()(ids))
        short, short_inside = decode(tiny.model, tiny.get_input_embeddings()(ids[:, :20]))
    assert len(inside) == len(FIT_LAYERS)
    for whole, part in zip([last, *inside], [short, *short_inside], strict=True):
        torch.testing.assert_close(whole[:, :20], part, rtol=1e-4, atol=1e-4)


def test_a_selections_candidate_slots_hold_the_candidates_vectors(make_maker):
    maker = make_maker()
    right = total = 0
    for step in range(20):
        batch = maker.batch(step, SELECTION)
        rows = batch.prompts.slot_rows[batch.candidate_slots]  # [B, C]
        assert torch.equal(rows, torch.arange(len(rows))[:, None].expand_as(rows))
        # Without noise the target's vector stands in the history too, to the length: the first slots of the row.
        directions = torch.nn.functional.normalize(batch.slot_vectors, dim=1)
        for row in range(len(rows)):
            slots = (batch.prompts.slot_rows == row).nonzero()[:, 0]
            history = slots[: -batch.candidate_slots.shape[1]]
            likeness = (directions[batch.candidate_slots[row]] @ directions[history].T).amax(1)
            right += int(likeness.argmax() == batch.position[row])
            total += 1
    assert total > 100 and right / total > 0.95


def test_the_attention_guided_is_the_layers_own(selection):
    eager = AutoModelForCausalLM.from_pretrained(TINY_LLAMA_DIR, dtype=torch.float32, attn_implementation="eager").eval()
    ids, labels = selection.prompts.input_ids, selection.prompts.labels
    asking = (labels != IGNORED_LABEL).int().argmax(1)[:, None] - 1 + torch.arange(2)
    with torch.no_grad():
        expected = eager.model(input_ids=ids, output_hidden_states=True, output_attentions=True)
        for number in range(eager.config.num_hidden_layers):
            hidden = expected.hidden_states[number]
            found = answer_attention(eager.model.layers[number], eager.model.rotary_emb, hidden, asking).exp()
            wanted = expected.attentions[number][torch.arange(len(ids))[:, None], :, asking].transpose(1, 2)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_guidance_reads_the_candidates_slots(tiny, selection):
    guidance = Guidance(tiny.config.hidden_size)
    width = tiny.config.hidden_size
    for reader in guidance.readers:
        reader.weight.data = torch.eye(width)[:1]
    hidden = torch.zeros(*selection.prompts.input_ids.shape, width)
    hidden[..., 1] = 1.0
    target = selection.candidate_slots.gather(1, selection.position[:, None])[:, 0]
    hidden[selection.prompts.slot_rows[target], selection.prompts.slot_columns[target]] = torch.eye(width)[0]
    loss, shown = guidance(tiny.model, selection, [hidden] * len(FIT_LAYERS))
    worse, opposite = guidance(tiny.model, selection, [-hidden] * len(FIT_LAYERS))
    assert shown["fit accuracy"] == 1.0 and opposite["fit accuracy"] == 0.0
    assert loss.item() < worse.item()


def test_guidance_of_a_second_token_leaves_out_titles_of_one(tiny, selection):
    one_token = (selection.prompts.labels != IGNORED_LABEL).sum(1) == 2  # the title's token and EOS
    assert one_token.any() and not one_token.all()
    inside = decode(tiny.model, tiny.get_input_embeddings()(selection.prompts.input_ids))[1]
    _, one = Guidance(tiny.config.hidden_size)(tiny.model, selection, inside, 1)
    # Where every answer has one token, a second has nothing to guide.
    labels = torch.full_like(selection.prompts.labels, IGNORED_LABEL)
    labels[:, -2:] = torch.tensor([5, 2])  # a title of one token, EOS
    short = replace(selection, prompts=replace(selection.prompts, labels=labels))
    ones, twos = (Guidance(tiny.config.hidden_size)(tiny.model, short, inside, count)[1] for count in (1, 2))
    assert ones["attention"] == pytest.approx(twos["attention"], rel=1e-5)
    two = Guidance(tiny.config.hidden_size)(tiny.model, selection, inside, 2)[1]
    assert one["attention"] != pytest.approx(two["attention"], rel=1e-3)


def test_guidance_of_letters_is_that_of_their_one_token(tiny, make_maker):
    lettered = make_maker().batch(0, replace(SELECTION, letter_share=1.0))
    inside = decode(tiny.model, tiny.get_input_embeddings()(lettered.prompts.input_ids))[1]
    torch.manual_seed(0)
    guidance = Guidance(tiny.config.hidden_size)
    one, two = (guidance(tiny.model, lettered, inside, count)[1]["attention"] for count in (1, 2))
    assert one == pytest.approx(two, rel=1e-5) and 0 < one < 1


def test_guidance_reaches_both_the_slots_and_the_attention(tiny, selection):
    guidance = Guidance(tiny.config.hidden_size)
    inputs = tiny.get_input_embeddings()(selection.prompts.input_ids).detach().requires_grad_()
    tiny.zero_grad()
    guidance(tiny.model, selection, decode(tiny.model, inputs)[1])[0].backward()
    for number, layer in enumerate(tiny.model.layers):
        # The layer behind the last probe has its attention guided, the last layers are left to the answer's loss.
        assert (layer.self_attn.q_proj.weight.grad is not None) == (number <= FIT_LAYERS[-1] + 1)
        assert (layer.mlp.up_proj.weight.grad is not None) == (number <= FIT_LAYERS[-1])
    assert {name.split(".")[0] for name, _ in guidance.named_parameters()} == {"readers"}


@pytest.mark.slow
def test_a_run_cut_in_two_ends_as_one_that_was_not(tmp_path):
    phases = (Phase(3, 1e-3, foundation_stage), Phase(2, 1e-3, selection_stage), Phase(1, 1e-3, opener_stage))

    def run(out, until):
        training = Pretraining(out, seed=1, vocab_size=600, compiled=False)
        training.maker.themes, training.maker.tokens = 60, 400
        training.run(until, save_every=100)
        return training

    whole = run(tmp_path / "whole", phases)
    run(tmp_path / "cut", phases[:1])
    resumed = run(tmp_path / "cut", phases)
    assert resumed.step == whole.step == 6
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.bfloat16)
    assert torch.equal(written.lm_head.weight, resumed.model.lm_head.weight.bfloat16())
