from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from recbole_llara.llm.adapters import tune
from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm
from recbole_llara.llm.item_tokens import merge_item_embeddings
from recbole_llara.llm.likelihood import answer_pass, candidate_log_probs, score_candidates, trie_log_probs


def labelled(prompts, answer_lengths, seed=3):
    """Labels on the last tokens of each row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, 97, prompts.attention_mask.shape, generator=generator)
    n_tokens = labels.shape[1]
    return labels.masked_fill(torch.arange(n_tokens) < n_tokens - torch.tensor(answer_lengths)[:, None], -100)


def answer_loss(llm, prompts, labels):
    """Mean over all answer tokens of the batch."""
    answers = answer_pass(llm, prompts, labels)
    return answers.sums.sum() / answers.counts.sum()


def to_right_padding(prompts, labels):
    """The same rows with their padding moved to the right."""
    shifts = (prompts.attention_mask == 0).sum(1).tolist()
    rolled = {
        name: torch.stack([row.roll(-shift, 0) for row, shift in zip(tensor, shifts, strict=True)])
        for name, tensor in prompts.as_dict().items()
    }
    return EmbeddedPrompts(**rolled), torch.stack([row.roll(-shift, 0) for row, shift in zip(labels, shifts, strict=True)])


@pytest.mark.parametrize("lora", [False, True])
def test_equals_the_loss_of_hugging_face(make_llm, make_prompts, architecture, lora):
    llm = make_llm(architecture, lora=lora)
    prompts = make_prompts(llm, [9, 14, 6])
    labels = labelled(prompts, [3, 5, 2])
    expected = llm(**prompts.as_dict(), labels=labels).loss
    assert answer_loss(llm, prompts, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_row_sums_equal_a_plain_loop_over_rows_and_tokens(make_llm, make_prompts, architecture):
    llm = make_llm(architecture)
    prompts = make_prompts(llm, [9, 14, 6])
    labels = labelled(prompts, [3, 5, 2])
    answers = answer_pass(llm, prompts, labels)
    sums, counts = answers.sums, answers.counts
    assert counts.tolist() == [3, 5, 2]
    for row in range(3):
        alone = prompts.row(row)
        logits = llm(inputs_embeds=alone.inputs_embeds).logits[0]
        tokens = labels[row][labels[row] >= 0].tolist()
        first = logits.shape[0] - len(tokens)
        nll = -sum(F.log_softmax(logits[first + step - 1], 0)[token].item() for step, token in enumerate(tokens))
        assert sums[row].item() == pytest.approx(nll, rel=1e-5)


def test_padding_amount_and_side_do_not_change_it(make_llm, make_prompts, architecture):
    llm = make_llm(architecture)
    prompts = make_prompts(llm, [9, 14, 6])
    labels = labelled(prompts, [3, 5, 2])
    expected = answer_loss(llm, prompts, labels).item()
    padded = {name: F.pad(tensor, (0, 0, 7, 0) if tensor.dim() == 3 else (7, 0)) for name, tensor in prompts.as_dict().items()}
    more = answer_loss(llm, EmbeddedPrompts(**padded), F.pad(labels, (7, 0), value=-100)).item()
    right, right_labels = to_right_padding(prompts, labels)
    assert more == pytest.approx(expected, rel=1e-6)
    assert answer_loss(llm, right, right_labels).item() == pytest.approx(expected, rel=1e-6)


def test_head_runs_on_the_answers_columns_only(make_llm, make_prompts):
    llm = make_llm("llama")
    prompts = make_prompts(llm, [9, 14, 6])
    seen = []
    llm.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    answer_pass(llm, prompts, labelled(prompts, [3, 5, 2]))
    assert seen == [(3, 5)]


@pytest.mark.parametrize("llm_tuning", ["lora", "frozen", "full"])
def test_gradients_flow_to_slots_and_tuned_weights_alone(make_llm, make_prompts, architecture, llm_tuning):
    llm = make_llm(architecture)
    prompts = make_prompts(llm, [9, 14, 6])
    llm = tune(llm, llm_tuning, lora_r=2, lora_alpha=4, lora_dropout=0.0, lora_target_modules="auto")
    items = torch.randn(2, 32, requires_grad=True)
    embeds = merge_item_embeddings(prompts.inputs_embeds, torch.tensor([0, 2]), torch.tensor([6, 9]), items)
    answer_loss(llm, replace(prompts, inputs_embeds=embeds), labelled(prompts, [3, 5, 2])).backward()
    assert torch.isfinite(items.grad).all() and (items.grad.abs().sum(1) > 0).all()
    with_gradient = {name for name, parameter in llm.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in llm.named_parameters() if parameter.requires_grad} - unused(llm)
    assert all(torch.isfinite(parameter.grad).all() for parameter in llm.parameters() if parameter.grad is not None)


def unused(llm):
    """Prompts come embedded, so that an input table which is not also the head has no gradient."""
    base = causal_lm(llm)
    table, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    return set() if table is head else {name for name, parameter in llm.named_parameters() if parameter is table}


def test_refuses_labels_that_nothing_predicts(make_llm, make_prompts):
    llm = make_llm("llama")
    prompts = make_prompts(llm, [4, 4])
    with pytest.raises(ValueError, match="no answer token"):
        answer_loss(llm, prompts, torch.full((2, 4), -100))
    with pytest.raises(ValueError, match="first column"):
        answer_loss(llm, prompts, labelled(prompts, [4, 2]))


def test_under_autocast_the_softmax_stays_in_float32(make_llm, make_prompts, architecture):
    llm = make_llm(architecture)
    prompts = make_prompts(llm, [9, 14, 6])
    labels = labelled(prompts, [3, 5, 2])
    expected = answer_loss(llm, prompts, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = answer_loss(llm, prompts, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_tree_are_those_of_candidates_one_by_one(make_llm, make_prompts, checkpointing):
    """Of a loss over all candidates, in adapters and in the prompts' embeddings; answers share beginnings."""
    answers = torch.tensor(
        [[[5, 6, 7, 1], [5, 6, 1, -100], [8, 1, -100, -100]], [[9, 5, 1, -100], [9, 6, 1, -100], [9, 6, 7, 1]]]
    )
    found = []
    for read in (trie_log_probs, candidate_log_probs):
        llm = make_llm("llama", lora=True)
        prompts = make_prompts(llm, [9, 6])
        llm.double()
        prompts = replace(prompts, inputs_embeds=prompts.inputs_embeds.double().requires_grad_())
        if checkpointing:
            causal_lm(llm).gradient_checkpointing_enable({"use_reentrant": False})
            llm.train()
            for layer in llm.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = 0.0
        passes = []
        scores = score_candidates(llm, prompts, answers, read, passes.append)
        assert len(passes) == (1 if read is trie_log_probs else 3)
        F.cross_entropy(scores, torch.tensor([1, 2])).backward()
        reached = {name: p.grad for name, p in llm.named_parameters() if p.grad is not None}
        found.append({**reached, "prompts": prompts.inputs_embeds.grad})
    tree, plain = found
    assert tree.keys() == plain.keys() and any("lora_A" in name for name in tree)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        assert (tree[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
