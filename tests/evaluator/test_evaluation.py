import json

import numpy as np
import pytest
import torch
from recbole.utils import init_seed
from synthetic_data import write_toy_dataset

from recbole_llara.checkpoint.weights import read_checkpoint, tensors_sha256
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.data.snapshot import Snapshot
from recbole_llara.evaluator.answer import CandidateAnswers
from recbole_llara.model.build import build_model
from recbole_llara.recommender.stock import load_recommender, stock_trainer
from recbole_llara.utils.errors import Diverged, UserError


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # RecBole writes TensorBoard's folder into the working directory


@pytest.fixture
def make_trainer(tmp_path):
    """A function of a model's name and further keys that gives its trainer and data."""
    toy = write_toy_dataset(tmp_path)

    def make(model="SASRec", **keys):
        config = RunConfig(model, "toy", config_dict={**toy, "epochs": 2, **keys})
        data = prepare_data(config)
        init_seed(config["seed"], True)
        return stock_trainer(config, build_model(config, data)), data

    return make


class Answering(torch.nn.Module):
    """Stands in for an LLM: answers each row by a rule on (candidates, targets)."""

    def __init__(self, rule):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rule = rule

    def answer_candidates(self, interaction):
        return self.rule(interaction[CANDIDATE_FIELD], interaction["item_id"])


def with_rule(trainer, rule):
    trainer.model = Answering(rule)
    return trainer


def test_metrics_equal_a_plain_loop_over_all_scores(make_trainer):
    trainer, data = make_trainer(eval_batch_size=7)
    result = trainer.evaluate(data.test_data, load_best_model=False)
    ranks = []
    for interaction, _, _, targets in data.test_data:
        scores = trainer.model.full_sort_predict(interaction).detach()
        for row, target in enumerate(targets):
            chosen = scores[row, interaction[CANDIDATE_FIELD][row]]
            ranks.append(1 + int((chosen > scores[row, target]).sum()))
    ranks = np.array(ranks)
    assert result["hit@1"] == pytest.approx((ranks <= 1).mean(), abs=1e-4)
    assert result["hit@5"] == pytest.approx((ranks <= 5).mean(), abs=1e-4)
    assert result["mrr@10"] == pytest.approx((1 / ranks).mean(), abs=1e-4)
    assert result["validratio"] == 1.0
    assert trainer.last_cases.correct.tolist() == (ranks == 1).tolist()


def test_answers_do_not_depend_on_the_batch(make_trainer):
    alone, data_alone = make_trainer(eval_batch_size=1)
    together, data = make_trainer(eval_batch_size=64)
    assert alone.evaluate(data_alone.test_data, False) == together.evaluate(data.test_data, False)
    assert torch.equal(alone.last_cases.items, together.last_cases.items)


def test_a_model_without_full_sort_predict_gets_the_same_scores_item_by_item(make_trainer):
    trainer, data = make_trainer(eval_batch_size=16)
    whole = trainer.evaluate(data.test_data, load_best_model=False)
    scores = trainer.last_cases.scores

    def absent(interaction):
        raise NotImplementedError

    trainer.model.full_sort_predict = absent
    assert trainer.evaluate(data.test_data, load_best_model=False) == whole
    torch.testing.assert_close(trainer.last_cases.scores, scores)


def test_an_invalid_answer_is_a_miss_at_every_rank(make_trainer):
    trainer, data = make_trainer()
    rows = len(data.test_data.dataset)

    def first_half_right(candidates, targets):
        items = torch.where(torch.arange(len(targets)) < rows // 2, targets, 0)
        return CandidateAnswers(items, None, ["text"] * len(targets))

    result = with_rule(trainer, first_half_right).evaluate(data.test_data, load_best_model=False)
    assert result["hit@1"] == result["validratio"] == pytest.approx((rows // 2) / rows, abs=1e-4)
    assert not any(key.endswith(("@5", "@10")) for key in result)
    assert trainer.last_cases.valid.sum() == rows // 2


def test_a_wrong_answer_without_ranking_never_counts_as_second(make_trainer):
    trainer, data = make_trainer()

    def wrong(candidates, targets):
        items = torch.where(candidates[:, 0] == targets, candidates[:, 1], candidates[:, 0])
        return CandidateAnswers(items, None, None)

    result = with_rule(trainer, wrong).evaluate(data.test_data, load_best_model=False)
    assert (result["hit@1"], result["validratio"]) == (0.0, 1.0)


def test_early_stopping_on_what_is_not_measured_is_the_users_mistake(make_trainer):
    trainer, data = make_trainer(valid_metric="NDCG@10")
    trainer = with_rule(trainer, lambda candidates, targets: CandidateAnswers(targets, None, None))
    with pytest.raises(UserError, match="valid_metric ndcg@10"):
        trainer._valid_epoch(data.valid_data)


def test_answers_outside_the_candidates_are_an_error(make_trainer):
    trainer, data = make_trainer()
    foreign = with_rule(trainer, lambda candidates, targets: CandidateAnswers(torch.full_like(targets, 10**6), None, None))
    with pytest.raises(ValueError, match="expected one of its candidates"):
        foreign.evaluate(data.test_data, load_best_model=False)


def test_scores_that_are_not_a_number_are_an_error(make_trainer):
    trainer, data = make_trainer()
    with torch.no_grad():
        trainer.model.item_embedding.weight.fill_(torch.nan)
    with pytest.raises(Diverged, match="NaN or infinity"):
        trainer.evaluate(data.test_data, load_best_model=False)


def test_a_loss_that_is_not_a_number_names_the_key_to_change(make_trainer):
    trainer, data = make_trainer(learning_rate=1e30)
    with pytest.raises(Diverged, match="loss is nan.*learning_rate"):
        trainer.fit(data.train_data, data.valid_data, saved=True)


def test_the_best_checkpoint_is_what_evaluation_loads(make_trainer):
    trainer, data = make_trainer(epochs=3)
    _, valid = trainer.fit(data.train_data, data.valid_data, saved=True)
    result = trainer.evaluate(data.test_data)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert trainer.evaluate(data.test_data) == result
    assert trainer.evaluate(data.valid_data) == valid
    facts = read_checkpoint(trainer.saved_model_file).facts
    assert (facts["model"], facts["dataset"], facts["epoch"]) == ("SASRec", "toy", trainer.best_epoch)
    assert facts["snapshot_sha256"] == tensors_sha256(Snapshot.of(data.dataset).tensors())


def test_a_checkpoint_of_another_model_or_width_is_refused(make_trainer):
    trainer, data = make_trainer(epochs=1)
    trainer.fit(data.train_data, data.valid_data)
    with pytest.raises(UserError, match="holds a SASRec, expected a GRU4Rec"):
        make_trainer("GRU4Rec")[0].load_checkpoint(trainer.saved_model_file)
    with pytest.raises(UserError, match="does not fit"):
        make_trainer(hidden_size=32)[0].load_checkpoint(trainer.saved_model_file)
    with pytest.raises(UserError, match="No checkpoint"):
        trainer.load_checkpoint("nowhere.safetensors")


def test_a_file_of_another_kind_is_refused(make_trainer, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UserError, match="no safetensors file"):
        make_trainer()[0].load_checkpoint(path)


def test_an_interrupt_passes_and_keeps_the_best_checkpoint(make_trainer):
    trainer, data = make_trainer(epochs=5)
    validate, rounds = trainer._valid_epoch, []

    def interrupted(*args, **kwargs):
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return validate(*args, **kwargs)

    trainer._valid_epoch = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data.train_data, data.valid_data)
    assert trainer.best_epoch == 0
    assert trainer.evaluate(data.test_data)["validratio"] == 1.0


def test_cases_can_be_written_as_json(make_trainer):
    trainer, data = make_trainer()
    trainer.evaluate(data.test_data, load_best_model=False)
    users = data.dataset.field2id_token["user_id"]
    names = (users, data.catalogue.item_tokens, data.catalogue.titles)
    records = list(trainer.last_cases.records(*names, data.dataset.training_counts))
    first = json.loads(json.dumps(records[0]))
    assert len(records) == len(data.test_data.dataset)
    assert first["user"].startswith("u")
    assert len(first["candidates"]) == len(first["scores"]) == 10
    assert first["target"] in first["candidates"]
    assert first["target"] not in first["history"]
    assert first["answer_title"] == f"Title {first['answer'].removeprefix('i')} é"
    assert first["answer"] == first["candidates"][int(np.argmax(first["scores"]))]


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("SASRec", "n_heads", 4),
        ("SASRec", "hidden_act", "relu"),
        ("SASRec", "layer_norm_eps", 0.1),
        ("HGN", "pooling_type", "max"),
    ],
)
def test_keys_that_make_other_answers_of_the_same_weights_are_refused(make_trainer, model, key, value):
    """Every weight has its shape; nothing but the checkpoint tells."""
    trainer, data = make_trainer(model, epochs=1)
    trainer.fit(data.train_data, data.valid_data)
    weights = trainer.saved_model_file
    other = build_model(RunConfig(model, "toy", config_dict={**trainer.config.external_config_dict, key: value}), data)
    with pytest.raises(UserError, match=rf"does not fit this {model}: {key}: .* there, {value!r} here"):
        load_recommender(other, weights, model)
    learned_otherwise = {**trainer.config.external_config_dict, "learning_rate": 0.5, "loss_type": "BPR"}
    load_recommender(build_model(RunConfig(model, "toy", config_dict=learned_otherwise), data), weights, model)
