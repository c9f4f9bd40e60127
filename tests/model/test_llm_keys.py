"""Keys of the LLM that change how it is asked: the chat template around a prompt, the attention that reads it."""

import pytest
from transformers import AutoTokenizer

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

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
