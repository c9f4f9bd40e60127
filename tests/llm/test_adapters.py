"""Dropout by tokens: masks against a plain loop, their shares, and what they may not depend on."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from recbole_llara.llm.adapters import RING, LeanLoraLinear, RowDropout, TokenKeys, key_dropout, make_lean, token_keys
from recbole_llara.llm.loading import load_llm


def _keys(rows, length=6, purpose="rows", step=0, seed=0):
    return token_keys(seed, purpose, step, torch.tensor(rows), torch.arange(length).expand(len(rows), -1))


def _layer(p=0.3, width=5, seed=0, layer=0, rows=(0, 1, 2), length=6):
    return RowDropout(p, width, seed, layer, TokenKeys(_keys(list(rows), length)))


def test_a_mask_is_the_part_of_the_ring_that_begins_at_the_token_s_place():
    layer = _layer()
    x = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    found = layer(x)
    dropped = round(0.3 * RING)
    assert int((layer.ring[:RING] == 0).sum()) == dropped
    begins = (layer.keys.values * layer.multiplier >> 15) % RING
    for row in range(3):
        for token in range(6):
            for feature in range(5):
                kept = bool(layer.ring[(int(begins[row, token]) + feature) % RING])
                expected = x[row, token, feature].item() / (1 - dropped / RING) if kept else 0.0
                assert found[row, token, feature].item() == pytest.approx(expected, rel=1e-6)


def test_masks_depend_on_the_token_alone():
    """Not on the other rows, their order, the padding or the device's generator; evaluation drops nothing."""
    layer, x = _layer(rows=(4, 9, 7)), torch.ones(3, 6, 5)
    whole = layer(x)
    torch.manual_seed(1)
    layer.keys.values = _keys([7, 4])
    assert torch.equal(layer(x[:2]), whole[[2, 0]])
    assert torch.equal(layer(x[:2].flatten(0, 1)), whole[[2, 0]].flatten(0, 1))
    padded = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5]])  # two columns of padding on the left
    layer.keys.values = token_keys(0, "rows", 0, torch.tensor([9]), padded)
    assert torch.equal(layer(torch.ones(1, 8, 5))[:, 2:], whole[[1]])
    assert layer.eval()(x) is x


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_masks_have_the_share_asked_for_and_are_unrelated(p):
    """Over rows, tokens, features, layers, steps and purposes: within 4.5 standard errors of independent draws."""
    rows, length, width = list(range(64)), 64, 48
    x = torch.ones(64, length, width)
    first = _layer(p, width, rows=rows, length=length)
    dropped = (first(x) == 0).double()
    n = dropped.numel()
    error = (p * (1 - p) / n) ** 0.5
    assert abs(dropped.mean() - p) < 4.5 * error + 1 / RING
    for axis in range(3):  # every row, every place and every feature has the share
        others = [other for other in range(3) if other != axis]
        assert (dropped.mean(others) - p).abs().max() < 4.5 * error * dropped.shape[axis] ** 0.5

    def correlation(a, b):
        return ((a - p) * (b - p)).mean() / (p * (1 - p))

    limit = 4.5 / (0.9 * n) ** 0.5
    assert abs(correlation(dropped[1:], dropped[:-1])) < limit
    assert abs(correlation(dropped[:, 1:], dropped[:, :-1])) < limit
    assert abs(correlation(dropped[:, :, 1:], dropped[:, :, :-1])) < limit
    changed = [
        _layer(p, width, layer=1, rows=rows, length=length),
        _layer(p, width, seed=1, rows=rows, length=length),
        *(
            RowDropout(p, width, 0, 0, TokenKeys(_keys(rows, length, **change)))
            for change in ({"step": 1}, {"purpose": "items"})
        ),
    ]
    for other in changed:
        assert abs(correlation(dropped, (other(x) == 0).double())) < limit


def test_inputs_wider_than_the_ring_go_round_it():
    layer = RowDropout(0.5, RING + 3, 0, 0, TokenKeys(_keys([0], 1)))
    found = layer(torch.ones(1, 1, RING + 3))[0, 0]
    assert torch.equal(found[:3], found[-3:]) and int((found[:RING] == 0).sum()) == RING // 2


def test_other_tokens_than_those_of_the_pass_are_refused():
    for layer, x in ((_layer(), torch.ones(7, 5)), (RowDropout(0.1, 5, 0, 0, TokenKeys()), torch.ones(3, 6, 5))):
        with pytest.raises(ValueError, match="lora_dropout: a layer reads"):
            layer(x)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_adapter_s_dropout_is_replaced_and_the_state_is_as_before(make_llm, architecture):
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[architecture]
    config = LoraConfig(r=2, lora_dropout=0.1, target_modules=targets, fan_in_fan_out=architecture == "gpt2")
    model = get_peft_model(make_llm(architecture), config)
    before = list(model.state_dict())
    keys = TokenKeys()
    key_dropout(model, 0, keys)
    layers = [module for module in model.modules() if isinstance(module, RowDropout)]
    assert layers and all(layer.keys is keys for layer in layers)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and "lora" in name]
    assert not names and list(model.state_dict()) == before
    keys.values = _keys([3, 4], 7)
    embeddings = torch.randn(2, 7, model.get_input_embeddings().weight.shape[1])
    assert model.train()(inputs_embeds=embeddings).logits.shape[:2] == (2, 7)


@pytest.mark.parametrize("family", ["GPT2", "OPT", "Mixtral", "Bloom"])
def test_an_llm_s_own_noise_is_off(tmp_path, make_tokenizer, save_llm, family):
    """Families whose layers drop or shake what they read: two passes in training mode are one and the same."""
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MixtralConfig, OPTConfig

    tokenizer = make_tokenizer(["a title", "another one"])
    size = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
    config = {
        "GPT2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, **size),
        "OPT": lambda: OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32, **size),
        "Mixtral": lambda: MixtralConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            num_local_experts=4, router_jitter_noise=0.1, **size,
        ),
        "Bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1, attention_dropout=0.1, **size),
    }[family]()  # fmt: skip
    noisy = AutoModelForCausalLM.from_config(config).train()
    tokens = torch.arange(2, 12).view(2, 5)
    with torch.no_grad():
        assert not torch.equal(noisy(input_ids=tokens).logits, noisy(input_ids=tokens).logits)
        quiet, _ = load_llm(save_llm(tmp_path, noisy, tokenizer))
        quiet.train()
        assert torch.equal(quiet(input_ids=tokens).logits, quiet(input_ids=tokens).logits)


@pytest.fixture
def models(make_llm):
    """peft's model and the lean one, adapters of both the same and none of them zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    plain = get_peft_model(make_llm("llama", vocab_size=320), config)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return plain, make_lean(copy.deepcopy(plain))


def outputs_and_gradients(model, dtype=None):
    """Logits [2, 7, V] of the same tokens, and the gradient of each adapter."""
    tokens = torch.arange(14).view(2, 7)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits = model(input_ids=tokens).logits
        logits.float().log_softmax(2)[..., 3].sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_every_plain_layer_is_lean_and_called_as_before(models):
    plain, lean = models
    layers = [module for module in lean.modules() if isinstance(module, Linear)]
    assert layers and all(type(layer) is LeanLoraLinear for layer in layers)
    assert list(lean.state_dict()) == list(plain.state_dict())


def test_same_outputs_and_gradients_as_peft(models):
    (expected, wanted), (found, gradients) = (outputs_and_gradients(model) for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


def test_under_autocast_as_near_to_float32_as_peft(models):
    plain, lean = models
    exact, wanted = outputs_and_gradients(copy.deepcopy(plain))
    far = {}
    for name, model in (("plain", plain), ("lean", lean)):
        found, gradients = outputs_and_gradients(model, torch.bfloat16)
        errors = [(gradients[key] - wanted[key]).norm() / wanted[key].norm() for key in wanted]
        far[name] = (float((found - exact).norm() / exact.norm()), float(torch.stack(errors).mean()))
    assert 0 < far["lean"][0] < 1.3 * far["plain"][0]
    assert 0 < far["lean"][1] < 1.3 * far["plain"][1]


def test_the_same_without_gradients(models):
    plain, lean = models
    tokens = torch.arange(14).view(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(lean(input_ids=tokens).logits, plain(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)


def test_adapters_off_or_merged_are_left_to_peft(models):
    plain, lean = models
    tokens = torch.arange(14).view(2, 7)
    adapted = plain(input_ids=tokens).logits
    with plain.disable_adapter(), lean.disable_adapter():
        bare = lean(input_ids=tokens).logits
        torch.testing.assert_close(bare, plain(input_ids=tokens).logits)
    assert (bare - adapted).abs().max() > 1e-2
    lean.merge_adapter()
    torch.testing.assert_close(lean(input_ids=tokens).logits, adapted, rtol=1e-4, atol=1e-4)


def test_dropout_falls_on_what_the_adapter_reads_alone(models):
    _, lean = models
    for layer in lean.modules():
        if isinstance(layer, LeanLoraLinear):
            layer.lora_dropout["default"] = torch.nn.Dropout(0.999999)
    tokens = torch.arange(14).view(2, 7)
    with lean.disable_adapter():
        bare = lean.eval()(input_ids=tokens).logits
    torch.testing.assert_close(lean.train()(input_ids=tokens).logits, bare)
