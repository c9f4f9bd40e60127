"""MoRec: the recommender over titles instead of ids, in training, evaluation and from a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from synthetic_data import write_toy_dataset

from recbole_llara.config import LLaRAConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.errors import UserError
from recbole_llara.model import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer import get_trainer


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**write_toy_dataset(tmp_path), "epochs": 2, "max_train_rows": 60, "max_eval_rows": 12}


def _trainer(keys):
    config = LLaRAConfig("MoRec", "toy", config_dict=keys)
    data = prepare_data(config)
    torch.manual_seed(0)
    return get_trainer(config, build_model(config, data)), data


@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec", "Caser"])
def test_it_runs_over_each_recommender_and_comes_back_from_its_checkpoint(toy, rec_model):
    keys = {**toy, "rec_model": rec_model}
    paths = run_recbole_llara("MoRec", "toy", config_dict=keys)
    result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
    assert (result["model"], result["rec_model"], result["text_encoder"], result["n"]) == ("MoRec", rec_model, "tiny", 12)
    again = run_recbole_llara("MoRec", "toy", config_dict={**keys, "checkpoint": paths["checkpoint"]})
    assert again["test_result"] == paths["test_result"]


def test_items_of_one_title_have_one_row_and_padding_has_none(toy):
    trainer, _ = _trainer(toy)
    items = trainer.model.items
    table = items.weight
    assert table[0].eq(0).all() and table[1:].abs().sum(1).gt(0).all()
    items.input_ids[2], items.attention_mask[2] = items.input_ids[1], items.attention_mask[1]
    if items.encoder is None:
        items.features[2] = items.features[1]
    assert torch.equal(items.weight[1], items.weight[2])
    assert trainer.model.recommender.item_embedding is items


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_the_encoder_learns_only_end_to_end_and_at_its_own_rate(toy, tuning):
    keys = {**toy, "text_encoder_tuning": tuning, "text_encoder_learning_rate": 1e-5, "epochs": 1}
    trainer, data = _trainer(keys)
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups})
    assert rates == ([1e-5, 0.001] if tuning == "full" else [0.001])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit(data.train_data, data.valid_data)
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("projector" in name for name in moved)
    assert any("items.encoder" in name for name in moved) is (tuning == "full")
    assert not any(name.endswith("item_embedding.weight") for name in before)  # no id embedding is left


def test_the_recommender_s_own_keys_reach_it(toy):
    trainer, _ = _trainer({**toy, "rec_model": "GRU4Rec", "num_layers": 2, "hidden_size": 24})
    assert trainer.model.recommender.gru_layers.num_layers == 2 and trainer.model.recommender.gru_layers.hidden_size == 24
    with pytest.raises(UserError, match="unknown key 'n_heads'"):
        _trainer({**toy, "rec_model": "GRU4Rec", "n_heads": 2})


def test_what_cannot_be_is_refused(toy):
    with pytest.raises(UserError, match="rec_model: found 'SASRek'"):
        _trainer({**toy, "rec_model": "SASRek"})
    with pytest.raises(UserError, match="text_pooling"):
        _trainer({**toy, "text_pooling": "max"})
    with pytest.raises(UserError, match="title_field"):
        _trainer({**toy, "title_field": None})
    with pytest.raises(UserError, match="no item embedding table"):
        _trainer({**toy, "rec_model": "FPMC"})
