"""TALLRec learns from words alone; ZeroShotLLM learns nothing; both refuse what they are not."""

import json
from pathlib import Path

import pytest
import torch

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError


def test_tallrec_tunes_lora_on_titles_and_needs_no_recommender(keys, make_trainer):
    trainer, data = make_trainer({**keys, "lora_target_modules": ["q_proj", "v_proj"]}, "TALLRec")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit(data.train_data, data.valid_data)
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in moved)
    assert not list(Path(keys["checkpoint_dir"]).glob("recommenders/*"))


@pytest.mark.parametrize("representation", ["textual", "numerical"])
def test_zero_shot_goes_straight_to_evaluation(keys, representation):
    untrained = {**keys, "epochs": 0, "llm_tuning": "frozen", "representation": representation, "decoding": "generate"}
    paths = run_recbole_llara("ZeroShotLLM", "toy", config_dict=untrained)
    result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
    assert (result["model"], result["rec_model"], result["n"]) == ("ZeroShotLLM", None, 12)
    assert "training_rows_per_second" not in result["timings"]
    again = run_recbole_llara("ZeroShotLLM", "toy", config_dict={**untrained, "checkpoint": paths["checkpoint"]})
    assert again["test_result"] == paths["test_result"]


def test_zero_shot_refuses_training(keys):
    with pytest.raises(UserError, match="epochs: found 1, expected 0"):
        run_recbole_llara("ZeroShotLLM", "toy", config_dict=keys)


@pytest.mark.parametrize("model", ["TALLRec", "ZeroShotLLM"])
def test_prompts_with_vectors_are_refused(keys, model):
    for representation in ("hybrid", "behavioural", "text_id"):
        with pytest.raises(UserError, match=f"representation: found {representation}, expected one of numerical, textual"):
            run_recbole_llara(model, "toy", config_dict={**keys, "epochs": 0, "representation": representation})
    assert not Path(keys["checkpoint_dir"]).exists()
