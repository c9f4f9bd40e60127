"""What --help KEY and the page of keys tell."""

from pathlib import Path

import pytest

from recbole_llara.config.help import describe_key, keys_page
from recbole_llara.config.keys import DECLARED, known_keys
from recbole_llara.config.models import MODELS, is_llm_recommender
from recbole_llara.utils.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pages" / "keys.md"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (
            "lora_r",
            ["lora_r (int in [1, inf))", "rank", "default: 8 (LLM recommenders)", "LLaRA's public code", "models: LLM recom"],
        ),
        ("eval_template", ["str: first, sampled, all", "averaged: four times the work"]),
        ("max_grad_norm", ["float or None in (0, inf)", "default: 1.0"]),
        ("candidate_num", ["int in [2, inf), items", "default: 20", "source: LLaRA sec. 5.1.1", "models: every model"]),
        ("api_base", ["https://api.openai.com/v1", "models: ChatLLM", "a run's folder: it cannot"]),
        ("epochs", ["200 (RecBole's models and baselines)", "5 (LLM recommenders)", "13 (RSLLM)"]),
        ("hidden_size", ["hidden_size (int)", "SASRec"]),
        ("rec_hidden_size", ["rec_hidden_size: hidden_size of the frozen recommender"]),
        ("user_inter_num_interval", ["default: [0,inf)", "models: every model"]),
    ],
)
def test_a_key_is_described(key: str, told: list[str]) -> None:
    text = describe_key(key)
    assert all(part in text for part in told), text


def test_every_known_key_has_a_description() -> None:
    for model in (*MODELS, "SASRec"):
        for key in known_keys(model, "SASRec" if is_llm_recommender(model) else None) | DECLARED.keys():
            assert describe_key(key).startswith(key)


@pytest.mark.parametrize(
    ("key", "near"), [("lora_rank", "lora"), ("rec_hiden_size", "rec_hidden_size"), ("rec_protocol", "protocol")]
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(UserError, match=f"--help: found '{key}', expected a key; .*{near}"):
        describe_key(key)


def test_the_page_of_keys_is_up_to_date() -> None:
    """``python -m recbole_llara.config.help > docs/pages/keys.md`` makes it so."""
    assert PAGE.read_text(encoding="utf-8") == keys_page()
