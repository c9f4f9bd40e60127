"""Frozen weights in few bits: trained over, saved and loaded as others are."""

import json
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch import nn
from transformers import Gemma3Config, LlamaConfig, LlamaForCausalLM, MambaConfig, MptConfig
from transformers.pytorch_utils import Conv1D

from recbole_llara.llm import loading
from recbole_llara.llm.adapters import block_linears, tune
from recbole_llara.llm.architecture import causal_lm, hidden_states, input_embeddings
from recbole_llara.llm.loading import (
    context_length,
    evaluation_dtype,
    load_llm,
    resolve_compute_dtype,
    weight_dtype,
)
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.utils.errors import UserError

TITLES = ["The Matrix", "Alien", "M", "Léon: The Professional", "千と千尋の神隠し"]
LLAMA2_TOKENIZER = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "llama-2" / "tokenizer.model"
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": "auto"}


@pytest.fixture
def saved_llm(tmp_path, make_llm, make_tokenizer, architecture):
    """A folder with a model and its tokenizer."""
    folder = tmp_path / f"small-{architecture}"
    make_llm(architecture, vocab_size=320).save_pretrained(folder)
    make_tokenizer(TITLES).save_pretrained(folder)
    return folder


def test_loads_what_was_saved_in_evaluation_mode(saved_llm, make_llm, architecture):
    model, tokenizer = load_llm(str(saved_llm))
    expected = make_llm(architecture, vocab_size=320).state_dict()
    assert not model.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.decode(tokenizer.encode(TITLES[4], add_special_tokens=False)) == TITLES[4]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_padding_reuses_eos_and_the_vocabulary_does_not_grow(saved_llm, make_tokenizer):
    _, tokenizer = load_llm(str(saved_llm))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert len(tokenizer) == len(make_tokenizer(TITLES))


def test_a_padding_token_of_its_own_is_kept(tmp_path, make_llm, make_tokenizer):
    make_llm("llama", vocab_size=320).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(TITLES)
    tokenizer.pad_token = "<s>"
    tokenizer.save_pretrained(tmp_path)
    assert load_llm(str(tmp_path))[1].pad_token_id == 0


def test_sampling_settings_of_the_model_are_dropped(saved_llm):
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3}
    (saved_llm / "generation_config.json").write_text(json.dumps(settings))
    model, _ = load_llm(str(saved_llm))
    assert not set(model.generation_config.to_diff_dict()) & set(settings)


def test_weights_are_held_in_the_type_that_tuning_and_device_ask_for(saved_llm):
    on_cpu, _ = load_llm(str(saved_llm), dtype="bfloat16", llm_tuning="lora", device="cpu")
    on_cuda, _ = load_llm(str(saved_llm), dtype="bfloat16", llm_tuning="lora", device="cuda")
    assert (on_cpu.dtype, on_cuda.dtype) == (torch.float32, torch.bfloat16)


def test_missing_tensors_weights_and_tokenizer_are_told(saved_llm):
    config = json.loads((saved_llm / "config.json").read_text())
    layers = "n_layer" if "n_layer" in config else "num_hidden_layers"
    config.pop("layer_types", None)
    (saved_llm / "config.json").write_text(json.dumps({**config, layers: 3}))
    with pytest.raises(UserError, match="its weights lack"):
        load_llm(str(saved_llm))
    (saved_llm / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights|without a readable causal LM"):
        load_llm(str(saved_llm))
    for file in saved_llm.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer|no vocabulary"):
        load_llm(str(saved_llm))


def test_a_wrong_path_names_the_nearest_right_one(tmp_path, monkeypatch):
    (tmp_path / "llama-2-7b").mkdir()
    (tmp_path / "llama-2-7b" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no such folder.*llama-2-7b"):
        load_llm(str(tmp_path / "lama-2-7b"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'tiny'"):
        load_llm("./tinny")


def test_a_hub_model_out_of_reach_is_the_users_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="org/absent.*the hub cannot be reached"):
        load_llm("org/absent")


@pytest.mark.skipif(not (TINY_LLAMA_DIR / "config.json").is_file(), reason="the embedded LLM's weights are not here")
def test_tiny_is_the_embedded_llm():
    model, tokenizer = load_llm("tiny")
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings


@pytest.mark.skipif(not LLAMA2_TOKENIZER.is_file(), reason="the Llama-2 tokenizer is not in ../shared")
def test_loads_a_llama_with_the_llama_2_tokenizer(tmp_path):
    config = LlamaConfig(vocab_size=32000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(LLAMA2_TOKENIZER.read_bytes())
    model, tokenizer = load_llm(str(tmp_path))
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 32000
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_lora_targets_are_the_linears_of_llama_blocks(make_llm):
    ends = {name.split(".")[-1] for name in block_linears(make_llm("llama"))}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_lora_adapts_every_linear_of_the_blocks_and_nothing_else(make_llm, architecture):
    plain = make_llm(architecture)
    blocks = {"llama": "model.layers.", "qwen2": "model.layers.", "gpt2": "transformer.h."}[architecture]
    expected = {name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    expected.remove("lm_head")
    assert all(name.startswith(blocks) for name in expected)
    llm = tune(plain, "lora", **LORA)
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    adapted = {re.sub(r"base_model\.model\.(.*)\.lora_[AB]\..*", r"\1", name) for name in trained}
    assert adapted == expected
    assert all(".lora_" in name for name in trained)


def test_lora_starts_as_the_model_itself_and_leaves_its_weights(make_llm, make_prompts, architecture, recwarn):
    llm = make_llm(architecture)
    prompts = make_prompts(llm, [5, 8]).as_dict()
    before = llm(**prompts).logits
    llm = tune(llm, "lora", **LORA).eval()
    assert torch.equal(llm(**prompts).logits, before)
    assert not [str(warning.message) for warning in recwarn if "fan_in" in str(warning.message)]


def test_adapters_may_be_in_the_upper_blocks_alone(make_llm):
    llm = tune(make_llm("llama"), "lora", **LORA, lora_layers=1)
    blocks = causal_lm(llm).model.layers
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    assert trained[:-1] == [0] * (len(blocks) - 1) and trained[-1] > 0
    ids = torch.arange(8)[None]
    states = []
    blocks[-1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    llm(input_ids=ids, labels=ids).loss.backward()
    assert not states[0].requires_grad  # nothing goes back below the lowest adapter
    with pytest.raises(UserError, match=f"lora_layers: found 99, expected at most {len(blocks)}"):
        tune(make_llm("llama"), "lora", **LORA, lora_layers=99)


def test_named_lora_targets_are_found_and_unknown_ones_told(make_llm):
    llm = tune(make_llm("llama"), "lora", **{**LORA, "lora_target_modules": ["q_proj", "v_proj"]})
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, p in llm.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"\['c_attn'\].*q_proj"):
        tune(make_llm("llama"), "lora", **{**LORA, "lora_target_modules": ["q_proj", "c_attn"]})
    with pytest.raises(UserError, match="lm_head"):
        tune(make_llm("llama"), "lora", **{**LORA, "lora_target_modules": ["lm_head"]})


def test_frozen_trains_nothing_and_full_everything(make_llm, architecture):
    frozen = tune(make_llm(architecture), "frozen", **LORA)
    full = tune(make_llm(architecture), "full", **LORA)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in full.parameters())
    with pytest.raises(UserError, match="'half'"):
        tune(frozen, "half", **LORA)


@pytest.mark.parametrize("lora", [False, True])
def test_hidden_states_are_what_the_head_reads(make_llm, make_prompts, architecture, lora):
    llm = make_llm(architecture, lora=lora)
    prompts = make_prompts(llm, [5, 8])
    hidden = hidden_states(llm, prompts)
    assert torch.allclose(causal_lm(llm).get_output_embeddings()(hidden), llm(**prompts.as_dict()).logits, atol=1e-5)
    assert input_embeddings(llm).weight.shape[1] == hidden.shape[2]


def test_the_context_is_what_the_config_says_by_whatever_name(make_llm):
    assert context_length(make_llm("gpt2").config) == 256
    assert context_length(MptConfig(max_seq_len=300)) == 300
    assert context_length(Gemma3Config(text_config={"max_position_embeddings": 400})) == 400
    assert context_length(MambaConfig()) is None


def test_auto_computes_in_bfloat16_where_the_cpu_multiplies_it(monkeypatch):
    monkeypatch.setattr(loading.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_compute_dtype("auto", "cpu") == torch.bfloat16
    monkeypatch.setattr(loading.torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert resolve_compute_dtype("auto", "cpu") == torch.float32
    monkeypatch.delattr(loading.torch.cpu, "get_capabilities")
    assert resolve_compute_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_cuda_asks_the_card(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_compute_dtype("auto", "cuda") == (torch.bfloat16 if native else torch.float32)


def test_a_named_type_is_taken_as_it_is_and_an_unknown_one_told():
    assert resolve_compute_dtype("float16", "cpu") == torch.float16
    with pytest.raises(UserError, match="'bf16'.*bfloat16"):
        resolve_compute_dtype("bf16", "cpu")


def test_trained_weights_are_held_in_float32_everywhere():
    assert weight_dtype(torch.bfloat16, "full", "cuda") == torch.float32
    assert weight_dtype(torch.bfloat16, "frozen", "cuda") == torch.bfloat16
    assert weight_dtype(torch.bfloat16, "lora", "cpu") == torch.float32


def test_answers_are_computed_in_the_weights_type_or_a_coarser_one():
    assert evaluation_dtype("auto", torch.float32) == torch.float32
    assert evaluation_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert evaluation_dtype("bfloat16", torch.float32) == torch.bfloat16
    with pytest.raises(UserError, match="eval_dtype: found float32, but the LLM's weights are held in bfloat16"):
        evaluation_dtype("float32", torch.bfloat16)


@pytest.mark.parametrize(("bits", "most"), [("8bit", 0.45), ("4bit", 0.35)])
def test_trains_and_answers_over_weights_held_in_few_bits(keys, make_trainer, bits, most):
    pytest.importorskip("bitsandbytes")
    # On CPUs bitsandbytes wants widths of 64, and takes its time.
    keys = {**keys, "llm_path": "tiny", "llm_tuning": "lora", "max_train_rows": 16, "max_eval_rows": 4}
    trainer, data = make_trainer({**keys, "llm_quantization": bits})
    whole, _ = make_trainer(keys)
    sizes = [
        sum(p.numel() * p.element_size() for name, p in t.model.llm.named_parameters() if "proj" in name and "lora" not in name)
        for t in (trainer, whole)
    ]
    assert 0 < sizes[0] < most * sizes[1]
    trainer.fit(data.train_data, data.valid_data, show_progress=False)
    adapters = [p for name, p in trainer.model.llm.named_parameters() if "lora_B" in name]
    assert adapters and all(p.abs().max() > 0 for p in adapters)
    found = trainer.evaluate(data.test_data)
    again, data = make_trainer({**keys, "llm_quantization": bits})
    assert again.evaluate(data.test_data, model_file=trainer.saved_model_file) == found
    scores = trainer.last_cases.scores
    assert torch.isfinite(scores).all() and scores.std() > 0
    with pytest.raises(UserError, match="llm_quantization"):
        whole.load_checkpoint(trainer.saved_model_file)


def test_says_what_to_change(keys, make_trainer, monkeypatch):
    with pytest.raises(UserError, match="llm_quantization: found '4bit' with llm_tuning 'full'"):
        make_trainer({**keys, "llm_quantization": "4bit", "llm_tuning": "full"})
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        make_trainer({**keys, "llm_quantization": "8bit"})
