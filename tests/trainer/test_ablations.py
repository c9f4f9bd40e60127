"""Every ablation of the papers' tables, selected by the shipped studies alone: two optimiser steps of each of its stages."""

import math

import pytest
import torch

from recbole_llara.experiments.study_definition import load_study
from recbole_llara.prompt.representation import Part

ABLATIONS = [
    (study, name)
    for study in ("learning_strategy", "item_representation", "rsllm_ablation", "behaviour")
    for name in load_study(study).systems
]


@pytest.mark.parametrize(("study", "name"), ABLATIONS)
def test_two_steps_of_each_stage(keys, make_trainer, study, name):
    own = dict(load_study(study).systems[name])
    model = own.pop("model")
    small = {key: value for key, value in keys.items() if key != "strategy"}
    trainer, data = make_trainer({**small, "epochs": 2, "stage_1_epochs": 1, "learning_rate": 0.01, **own}, model)
    assert len(trainer.stages) == (
        2 if (own.get("strategy") or ("two_stage" if model == "RSLLM" else "")) == "two_stage" else 1
    )
    batches = list(data.train_data)[:2]
    for number in range(len(trainer.stages)):
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer._enter(number, len(data.train_data))
        trainer.model.train()
        for batch in batches:
            losses = trainer._train_step(trainer.model.training_rows(batch, 0))
            assert all(math.isfinite(value) for value in losses.values())
            trainer.progress.step += 1
        moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
        assert any("lora_B" in key for key in moved)
        shown = trainer.stage.hard.parts
        assert any("item_ids" in key for key in moved) is (Part.ITEM_ID in shown)
        if Part.ITEM_EMBEDDING not in trainer.stage.easy.parts + shown:
            assert not any("projector" in key for key in moved)
    assert set(losses) == _losses(model, own)


def _losses(model, keys):
    """The losses that a system's keys leave."""
    if model != "RSLLM":
        return {"answer"}
    switches = {"item_item": "item_item_weight", "user_item": "user_item_weight"}
    return {"answer"} | {loss for loss, key in switches.items() if keys.get(key, 1.0)}


@pytest.mark.parametrize("model", ["LLaRA", "RSLLM"])
@pytest.mark.parametrize("rec_model", ["GRU4Rec", "Caser", "SASRec"])
def test_both_systems_over_every_recommender(keys, make_trainer, model, rec_model):
    trainer, data = make_trainer({**keys, "rec_model": rec_model, "max_train_rows": 16, "max_eval_rows": 4}, model)
    table = trainer.model.recommender.item_embeddings.clone()
    trainer.fit(data.train_data, data.valid_data)
    assert trainer.model.result_fields()["rec_model"] == rec_model and table.shape[1] == 64
    assert torch.equal(table, trainer.model.recommender.item_embeddings)
