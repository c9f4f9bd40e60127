"""LoRA layers of less traffic against peft's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear

from recbole_llara.llm.lora import LeanLoraLinear, make_lean


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
