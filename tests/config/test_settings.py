"""Settings are read once, checked, and frozen."""

import pytest
from pydantic import ValidationError

from recbole_llara.config.settings import (
    DataSettings,
    EngineSettings,
    EvaluationSettings,
    LLMSettings,
    LossSettings,
    OptimSettings,
    PromptSettings,
    RecommenderSettings,
    TrainingSettings,
    declared,
)
from recbole_llara.config.validation import Settings, annotation, range_text, type_text
from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError

LLM_CLASSES = (
    *(
        RecommenderSettings,
        LLMSettings,
        EngineSettings,
        PromptSettings,
        LossSettings,
        OptimSettings,
        EvaluationSettings,
        DataSettings,
    ),
)


@pytest.fixture
def values() -> dict[str, object]:
    return {**read_yaml(PROPERTIES / "overall.yaml"), **read_yaml(PROPERTIES / "llm_recommender.yaml")}


def test_every_key_of_the_llm_recommenders_has_a_setting() -> None:
    read = declared(*LLM_CLASSES)
    # RecBole reads this one itself.
    assert set(read_yaml(PROPERTIES / "llm_recommender.yaml")) - read.keys() == {"train_neg_sample_args"}


def test_every_setting_has_a_default(values: dict[str, object]) -> None:
    for settings in LLM_CLASSES:
        assert declared(settings).keys() <= values.keys()
        settings.from_config(values)


def test_stock_models_have_training_defaults() -> None:
    settings = TrainingSettings.from_config(read_yaml(PROPERTIES / "recommender.yaml"))
    assert (settings.learning_rate, settings.train_batch_size) == (1e-3, 256)  # LLaRA sec. 5.1.2


def test_settings_are_frozen(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LLMSettings.from_config(values).lora_r = 4  # type: ignore[misc]


def test_a_missing_key_is_named(values: dict[str, object]) -> None:
    del values["lora_r"]
    with pytest.raises(UserError, match="lora_r"):
        LLMSettings.from_config(values)


@pytest.mark.parametrize(
    ("settings", "key", "value", "expected"),
    [
        (LLMSettings, "lora_r", "8", "expected int"),
        (LLMSettings, "lora_r", True, "expected int"),
        (LLMSettings, "lora_r", 0, r"\[1, inf\)"),
        (LLMSettings, "lora_dropout", 1.0, r"\[0, 1\)"),
        (LLMSettings, "llm_tuning", "lore", "did you mean 'lora'"),
        (LLMSettings, "llm_trust_remote_code", 1, "expected bool"),
        (LLMSettings, "lora_target_modules", "all", "auto or a list"),
        (LLMSettings, "lora_target_modules", [], "at least one module name"),
        (LLMSettings, "lora_target_modules", [1], "expected str or a list of str"),
        (PromptSettings, "representation", "hybird", "did you mean 'hybrid'"),
        (PromptSettings, "strategy", "curiculum", "did you mean 'curriculum'"),
        (OptimSettings, "learning_rate", 0, r"\(0, inf\)"),
        (OptimSettings, "learning_rate", float("nan"), r"\(0, inf\)"),
        (OptimSettings, "learning_rate", None, "expected float"),
        (OptimSettings, "epochs", 1.5, "expected int"),
        (EvaluationSettings, "decoding", "beam", "score, constrained, generate"),
        (EvaluationSettings, "topk", [1, 0], r"\[1, inf\)"),
        (DataSettings, "title_rules", "strip_year", "a list of str"),
    ],
)
def test_wrong_values_are_refused(
    values: dict[str, object], settings: type[Settings], key: str, value: object, expected: str
) -> None:
    with pytest.raises(UserError, match=f"(?s){key}.*{expected}"):
        settings.from_config({**values, key: value})


def test_values_are_converted(values: dict[str, object]) -> None:
    settings = OptimSettings.from_config({**values, "learning_rate": 1, "max_grad_norm": None})
    assert isinstance(settings.learning_rate, float)
    assert settings.max_grad_norm is None
    assert LLMSettings.from_config({**values, "lora_target_modules": ["q_proj"]}).lora_target_modules == ("q_proj",)


def test_types_and_ranges_in_words() -> None:
    kinds = {key: annotation(OptimSettings, key) for key in ("warmup_ratio", "max_grad_norm", "epochs", "weight_decay_on")}
    assert [range_text(kind) for kind in kinds.values()] == ["[0, 1)", "(0, inf)", "[0, inf)", ""]
    assert [type_text(kind) for kind in kinds.values()] == ["float", "float or None", "int", "str"]
    assert type_text(annotation(LLMSettings, "lora_target_modules")) == "str or a list of str"
