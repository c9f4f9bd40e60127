"""Keys of the LLM that change it or how it is asked: blocks left out, the chat template around a prompt, the attention."""

import json
import signal
from pathlib import Path

import pytest
import torch
from llm_families import make_family
from transformers import AutoModelForCausalLM, AutoTokenizer

import recbole_llara
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.export import export
from recbole_llara.trainer.trainer import LLMTrainer
from recbole_llara.utils.errors import Stopped, UserError

TEMPLATE = (
    "{% for message in messages %}<user>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_llm(keys):
    tokenizer = AutoTokenizer.from_pretrained(keys["llm_path"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(keys["llm_path"])
    return keys


@pytest.mark.parametrize("decoding", ["score", "generate"])
def test_a_chat_s_prompt_is_the_user_s_turn(chat_llm, make_trainer, decoding):
    trainer, data = make_trainer({**chat_llm, "prompt_format": "chat", "decoding": decoding}, "TALLRec")
    encoder = trainer.model.encoder
    question = next(iter(data.valid_data))[0]
    rows = question["item_id_list"], question["candidate_id_list"], question["item_id"]
    prompts = encoder.encode(*rows, trainer.model.representation, rows[2] * 0)
    tokens = prompts.input_ids[0][prompts.attention_mask[0].bool()].tolist()
    text = encoder.tokenizer.decode(tokens)
    title = encoder.titles[int(rows[2][0])]
    assert text.startswith("<user>") and text.count("<user>") == text.count("<assistant>") == 1
    assert text.endswith(f"</s><assistant> {title}</s>")  # behind text that is no special token, a space
    run_recbole_llara("TALLRec", "toy", config_dict={**chat_llm, "prompt_format": "chat", "decoding": decoding})


def test_without_a_chat_template_the_key_is_refused(keys):
    with pytest.raises(UserError, match=r"prompt_format: found chat.*no chat template.*prompt_format: plain"):
        run_recbole_llara("TALLRec", "toy", config_dict={**keys, "prompt_format": "chat"})


def test_attentions_give_the_same_answers(keys):
    metrics = [
        run_recbole_llara("TALLRec", "toy", config_dict={**keys, "attn_implementation": name})["test_result"]
        for name in ("eager", "sdpa")
    ]
    assert metrics[0] == metrics[1]


def test_an_attention_without_gradients_is_refused(keys):
    with pytest.raises(UserError, match=r"attn_implementation: found flex_attention.*CPU.*sdpa or eager"):
        run_recbole_llara("TALLRec", "toy", config_dict={**keys, "attn_implementation": "flex_attention"})


def test_an_attention_that_is_not_installed_says_what_to_install(keys):
    with pytest.raises(UserError, match=r"llm_path.*[Ff]lash"):
        run_recbole_llara("TALLRec", "toy", config_dict={**keys, "attn_implementation": "flash_attention_2"})


@pytest.fixture
def deep(keys):
    """A run over an LLM of five blocks, three of which are kept."""
    tokenizer = AutoTokenizer.from_pretrained(keys["llm_path"])
    make_family("Llama", len(tokenizer), num_hidden_layers=5).save_pretrained(keys["llm_path"])
    return {**keys, "llm_layers": [0, 3, 4], "lora_layers": 2}


def _logits(llm):
    with torch.no_grad():
        return llm(input_ids=torch.arange(2, 42).view(2, 20)).logits


@pytest.mark.parametrize(("tuning", "merge"), [("lora", True), ("lora", False), ("full", False)])
def test_a_run_without_some_blocks_is_loaded_and_exported_without_them(deep, tmp_path, tuning, merge):
    result = run_recbole_llara("TALLRec", "toy", config_dict={**deep, "llm_tuning": tuning})
    run = recbole_llara.load(result["run_dir"])
    expected, logits = run.recommend(["i1", "i2"], k=10), _logits(run.model.llm)
    blocks = {name.split("layers.")[1].split(".")[0] for name, _ in run.model.llm.named_parameters() if "layers." in name}
    assert blocks == {"0", "1", "2"}
    for other in (None, 3, [0, 1, 4]):  # 3 of 5 are 0, 1, 4
        with pytest.raises(UserError, match=r"does not fit this TALLRec: .*llm_layers: \[0, 3, 4\] there, "):
            recbole_llara.load(result["run_dir"], llm_layers=other)
    out = export(result["run_dir"], tmp_path / "out", merge=merge)
    if merge or tuning == "full":
        plain = AutoModelForCausalLM.from_pretrained(out / "llm", dtype=torch.float32)
        assert (plain.config.num_hidden_layers, plain.config.llm_layers) == (3, [0, 3, 4])
        torch.testing.assert_close(_logits(plain), logits, rtol=0, atol=1e-4)
    found = recbole_llara.load(out).recommend(["i1", "i2"], k=10)
    assert [item.item_id for item in found] == [item.item_id for item in expected]
    again = run_recbole_llara(config_file_list=[out / "run.yaml"], config_dict={"checkpoint_dir": str(tmp_path / "elsewhere")})
    assert again["test_result"] == result["test_result"]
    assert "llm_layers [0, 3, 4]" in (out / "README.md").read_text(encoding="utf-8")


def test_a_run_without_some_blocks_goes_on(deep, monkeypatch):
    whole = run_recbole_llara("TALLRec", "toy", config_dict=deep)
    step = LLMTrainer._train_step

    def pressed(self, rows):
        if self.progress.all_steps == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
        patch.setattr(LLMTrainer, "_train_step", pressed)
        run_recbole_llara("TALLRec", "toy", config_dict={**deep, "save_steps": 1})
    (stopped,) = set(Path(deep["checkpoint_dir"]).glob("TALLRec-*")) - {Path(whole["run_dir"])}
    run_recbole_llara(argv=[f"--resume={stopped}"])
    results = [json.loads((Path(path) / "result.json").read_text()) for path in (stopped, whole["run_dir"])]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.parametrize("llm_layers", [6, [0, 5], [1, 0], []])
def test_blocks_that_the_llm_does_not_have_are_refused_before_training(deep, llm_layers):
    with pytest.raises(UserError, match=r"llm_layers: found .*expected 1 to 5, or a list .*LlamaForCausalLM has 5 blocks"):
        run_recbole_llara("LLaRA", "toy", config_dict={**deep, "llm_layers": llm_layers})
    assert not list(Path(deep["checkpoint_dir"]).glob("**/*.safetensors"))
