"""MoRec: the recommender over titles instead of ids, in training, evaluation and from a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from synthetic_data import add_item_fields, write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.morec import TextEncoder
from recbole_llara.serving.loaded import load
from recbole_llara.trainer.trainer import get_trainer
from recbole_llara.utils.errors import UserError


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**write_toy_dataset(tmp_path), "epochs": 2, "max_train_rows": 60, "max_eval_rows": 12}


def _trainer(keys):
    config = RunConfig("MoRec", "toy", config_dict=keys)
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
    for values in items.buffers():
        values[2] = values[1]
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


def test_an_evaluation_encodes_the_catalogue_once_and_by_the_weights_of_the_moment(toy):
    keys = {**toy, "text_encoder_tuning": "full", "text_batch_size": 16, "eval_batch_size": 5, "learning_rate": 0.1}
    trainer, data = _trainer(keys)
    passes = []
    trainer.model.items.encoder.register_forward_hook(lambda *_: passes.append(1))

    def scores(of):
        of.evaluate(data.valid_data, load_best_model=False)
        return of.last_cases.scores

    def fresh():
        again, _ = _trainer(keys)
        again.model.load_state_dict(trainer.model.state_dict())
        return scores(again)

    before, weights = scores(trainer), {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert len(passes) == 4 and len(data.valid_data) > 1  # 61 titles, 16 at once
    assert torch.equal(before, fresh())
    trainer.model.train().calculate_loss(next(iter(data.train_data))).backward()
    trainer.optimizer.step()
    after = scores(trainer)
    assert not torch.equal(after, before) and torch.equal(after, fresh())
    trainer.model.load_state_dict(weights)
    assert torch.equal(scores(trainer), before)


def test_weights_loaded_in_evaluation_mode_are_those_that_answer(toy):
    first, data = _trainer({**toy, "text_encoder_tuning": "full"})
    second, _ = _trainer({**toy, "text_encoder_tuning": "full"})
    with torch.no_grad():
        for parameter in second.model.items.parameters():
            parameter.mul_(1.5)
        batch = next(iter(data.valid_data))[0]
        expected = second.model.eval().full_sort_predict(batch)
        assert not torch.equal(first.model.eval().full_sort_predict(batch), expected)
        first.model.load_state_dict(second.model.state_dict())
        assert torch.equal(first.model.full_sort_predict(batch), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_the_catalogue_is_encoded_on_the_device_of_the_run(toy, tuning, monkeypatch):
    devices, forward = [], TextEncoder.forward
    monkeypatch.setattr(
        TextEncoder, "forward", lambda self, titles: devices.append(titles.input_ids.device.type) or forward(self, titles)
    )
    config = RunConfig("MoRec", "toy", config_dict={**toy, "use_gpu": True, "text_encoder_tuning": tuning, "epochs": 1})
    data = prepare_data(config)
    trainer = get_trainer(config, build_model(config, data))
    trainer.fit(data.train_data, data.valid_data)
    assert devices[0] == "cpu" and set(devices[1:]) == {"cuda"}  # the first pass is a look at one title


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
    with pytest.raises(UserError, match="rec_model: found BERT4Rec, expected a recommender without a mask token"):
        _trainer({**toy, "rec_model": "BERT4Rec"})
    with pytest.raises(UserError, match="reranker_CAN_NUM: found '100', expected whole numbers from 1 to 61"):
        _trainer({**toy, "rec_model": "SASRecCPR"})
    with pytest.raises(UserError, match="no item embedding table"):
        _trainer({**toy, "rec_model": "FPMC"})


def test_states_behind_a_prompts_words_are_those_of_llara(toy):
    """The same as of a new item's vector, kept for the next run; an encoder that learns is refused with them."""
    given = {**toy, "text_pooling": "prompt"}
    trainer, data = _trainer(given)
    llara = build_model(RunConfig("LLaRA", "toy", config_dict=toy), prepare_data(RunConfig("LLaRA", "toy", config_dict=toy)))
    states = llara.read_texts(["-", *data.catalogue.titles[1:]])
    expected = (states - states[1:].mean(0)) / states[1:].std(0).clamp(min=1e-6)
    assert torch.allclose(trainer.model.items.features, expected, atol=1e-4)
    (kept,) = Path("saved/text_features").glob("*.safetensors")
    before = kept.stat().st_mtime_ns
    run = run_recbole_llara("MoRec", "toy", config_dict=given)
    assert kept.stat().st_mtime_ns == before
    again = run_recbole_llara("MoRec", "toy", config_dict={**given, "checkpoint": run["checkpoint"]})
    assert again["test_result"] == run["test_result"]
    loaded = load(run["run_dir"])
    assert len(loaded.recommend(["i1", "i2"], k=3)) == 3
    with pytest.raises(UserError, match="text_pooling: found prompt with text_encoder_tuning full, expected frozen"):
        RunConfig("MoRec", "toy", config_dict={**given, "text_encoder_tuning": "full"})


@pytest.mark.parametrize("own", [{}, {"text_pooling": "prompt"}, {"text_encoder_tuning": "full"}], ids=str)
def test_fields_are_read_behind_titles_and_popularity_is_not(toy, tmp_path, own):
    add_item_fields(tmp_path)
    fields = ["release_year", "class"]
    keys = {**toy, **own, "epochs": 1}
    trainers = [_trainer({**keys, "item_fields": shown})[0] for shown in (fields, [*fields, "popularity"], None)]
    told, with_popularity, plain = (
        trainer.model.items.input_ids if trainer.model.items.features is None else trainer.model.items.features
        for trainer in trainers
    )
    assert torch.equal(told, with_popularity)
    assert told.shape != plain.shape or not torch.allclose(told, plain)
    run = run_recbole_llara("MoRec", "toy", config_dict={**keys, "item_fields": fields})
    assert len(load(run["run_dir"]).recommend(["i1", "i2"], k=3)) == 3
    asked = {**keys, "item_fields": fields, "checkpoint": run["checkpoint"]}
    assert run_recbole_llara("MoRec", "toy", config_dict=asked)["test_result"] == run["test_result"]
    path = tmp_path / "toy" / "toy.item"
    path.write_text(path.read_text(encoding="utf-8").replace("Action Sci-Fi", "Western"), encoding="utf-8")
    with pytest.raises(UserError, match="texts_sha256: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        run_recbole_llara("MoRec", "toy", config_dict=asked)
