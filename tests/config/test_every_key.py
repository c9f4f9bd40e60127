"""Every key of our files and of RecBole's refuses values of another kind, by its name."""

import math
from typing import Any

import pytest

from recbole_llara.config.keys import RECBOLE_PROPERTIES
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import PROPERTIES, PlainText, read_yaml
from recbole_llara.utils.errors import UserError

TEXT = PlainText("no such thing")
NEVER = {"no": "such thing"}
# Of a default's type -> values that no key of this type takes.
WRONG: dict[type, tuple[Any, ...]] = {
    bool: (TEXT, 1),
    int: (TEXT, -1, 1.5, math.inf, True, [1]),
    float: (TEXT, -1.0, math.nan, True, [0.1]),
    str: (1.5, True, [1.5]),
    list: (1.5, NEVER, [NEVER]),
    dict: (TEXT, 1.5, [1.5]),
    type(None): (math.nan, [NEVER]),
}
ALSO_RIGHT = {"gpu_id": [1]}  # of another type than the default
# Keys of RecBole that no run of this package reads.
UNREAD = {
    "dataset_save_path", "dataloaders_save_path", "valid_metric_bigger", "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD",
    "RELATION_ID_FIELD", "ENTITY_ID_FIELD", "kg_reverse_r", "entity_kg_num_interval", "relation_kg_num_interval",
    "alias_of_entity_id", "alias_of_relation_id", "RATING_FIELD", "LABEL_FIELD", "NEG_PREFIX", "POSITION_FIELD",
}  # fmt: skip


def keys_of(model: str, *files: str) -> list[tuple[str, str, type]]:
    return [(model, key, type(value)) for file in files for key, value in read_yaml(PROPERTIES / f"{file}.yaml").items()]


KEYS = [
    *keys_of("SASRec", "overall", "recommender", "model/SASRec", "protocol/llara"),
    *keys_of("LLaRA", "llm_recommender"),
    *keys_of("RSLLM", "model/RSLLM"),
    *keys_of("MoRec", "model/MoRec"),
    *keys_of("ChatLLM", "model/ChatLLM"),
    *(
        (model, key, type(value))
        for model, file in (
            ("GRU4Rec", "overall"),
            ("GRU4Rec", "dataset/sample"),
            *((name, f"model/{name}") for name in ("SASRec", "GRU4Rec", "Caser", "BERT4Rec", "NextItNet")),
        )
        for key, value in read_yaml(RECBOLE_PROPERTIES / f"{file}.yaml").items()
        if key not in UNREAD
    ),
]


@pytest.mark.parametrize(("model", "key", "kind"), dict.fromkeys(KEYS))
def test_a_value_of_another_kind_is_refused(model: str, key: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for value in WRONG[kind]:
        if value == ALSO_RIGHT.get(key):
            continue
        with pytest.raises(UserError) as refused:
            RunConfig(model, "ml-100k", config_dict={key: value})
            pytest.fail(f"{key}={value!r} passed")
        assert key in str(refused.value) and "\n" not in str(refused.value)
