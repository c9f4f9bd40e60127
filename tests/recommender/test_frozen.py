import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic_data import write_toy_dataset

from recbole_llara.config.models import resolve_model
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.evaluator.evaluation import CandidateTrainer
from recbole_llara.recommender import frozen
from recbole_llara.recommender.frozen import WEIGHTS, item_embedding_table, prepare_recommender
from recbole_llara.utils.errors import UserError


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # RecBole writes TensorBoard's folder into the working directory


@pytest.fixture
def make_run(tmp_path):
    """A function of further keys that gives an LLM run's config and data."""
    toy = write_toy_dataset(tmp_path)

    def make(dataset="toy", **keys):
        config = RunConfig("LLaRA", dataset, config_dict={**toy, "rec_epochs": 2, **keys})
        return config, prepare_data(config)

    return make


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a recommender is trained")

    return lambda: monkeypatch.setattr(CandidateTrainer, "__init__", fail)


def test_a_second_call_takes_the_same_embeddings_from_the_cache(make_run, no_training):
    first = prepare_recommender(*make_run())
    no_training()
    second = prepare_recommender(*make_run())
    assert torch.equal(first.item_embeddings, second.item_embeddings)
    assert (first.sha256, first.path, first.metrics) == (second.sha256, second.path, second.metrics)
    assert first.seconds > 0 == second.seconds
    assert set(first.metrics) == {"valid", "test"}
    assert first.metrics["test"]["validratio"] == 1.0


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "Caser"])
def test_embeddings_are_detached_float32_of_the_models_own_width(make_run, model):
    config, data = make_run(rec_model=model, rec_epochs=1)
    recommender = prepare_recommender(config, data)
    assert recommender.item_embeddings.shape == (data.dataset.item_num, 64)
    assert recommender.item_embeddings.dtype is torch.float32
    assert not recommender.item_embeddings.requires_grad
    assert recommender.model == model


@pytest.mark.parametrize(
    "keys", [{"rec_learning_rate": 0.01}, {"rec_n_layers": 1}, {"seed": 7}, {"candidate_num": 5}, {"rec_epochs": 1}]
)
def test_the_hash_changes_with_what_matters(make_run, keys):
    config, data = make_run()
    other_config, other_data = make_run(**keys)
    assert frozen.recommender_sha256(config.for_recommender(), data) != frozen.recommender_sha256(
        other_config.for_recommender(), other_data
    )


def test_the_hash_knows_nothing_of_the_llm(make_run, no_training):
    first = prepare_recommender(*make_run())
    no_training()
    config, data = make_run(learning_rate=0.1, epochs=1, train_batch_size=8, decoding="generate", max_train_rows=20)
    assert prepare_recommender(config, data).sha256 == first.sha256


def test_other_interactions_are_another_recommender(make_run, tmp_path):
    config, data = make_run()
    elsewhere = write_toy_dataset(tmp_path / "elsewhere", seed=1)
    other_config, other_data = make_run(data_path=elsewhere["data_path"])
    assert frozen.recommender_sha256(config.for_recommender(), data) != frozen.recommender_sha256(
        other_config.for_recommender(), other_data
    )


def test_the_callers_random_numbers_are_the_same_with_and_without_training(make_run):
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    config, data = make_run()
    seen = []
    for _ in range(2):  # the first trains, the second takes the cache
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        prepare_recommender(config, data)
        seen.append(draws())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert seen[0] == seen[1] == draws()


def test_training_does_not_depend_on_the_callers_random_state(make_run, tmp_path):
    tables = []
    for number in range(2):
        torch.manual_seed(number)
        tables.append(prepare_recommender(*make_run(checkpoint_dir=str(tmp_path / f"saved{number}"))).item_embeddings)
    assert torch.equal(*tables)


def test_an_interrupted_training_caches_nothing(make_run, monkeypatch):
    config, data = make_run()

    def interrupted(trainer, *arguments, **options):
        result = evaluate(trainer, *arguments, **options)
        if trainer.best_epoch is not None:
            raise KeyboardInterrupt
        return result

    evaluate = CandidateTrainer.evaluate
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(CandidateTrainer, "evaluate", interrupted)
        prepare_recommender(config, data)
    assert not [path for path in (Path(config["checkpoint_dir"]) / "recommenders").iterdir() if path.is_dir()]
    assert prepare_recommender(config, data).seconds > 0


def test_a_given_checkpoint_is_used(make_run, no_training):
    trained = prepare_recommender(*make_run())
    no_training()
    given = prepare_recommender(*make_run(rec_checkpoint=str(trained.path), candidate_seed=5))
    assert given.sha256 == trained.sha256  # the same weights, whatever the questions
    assert torch.equal(given.item_embeddings, trained.item_embeddings)


def test_a_given_checkpoint_must_fit(make_run, tmp_path):
    trained = prepare_recommender(*make_run())
    with pytest.raises(UserError, match="does not fit"):
        prepare_recommender(*make_run(rec_checkpoint=str(trained.path), rec_hidden_size=32))
    with pytest.raises(UserError, match="holds a SASRec"):
        prepare_recommender(*make_run(rec_checkpoint=str(trained.path), rec_model="GRU4Rec"))
    fewer = {"item_inter_num_interval": "[5,inf)"}
    with pytest.raises(UserError, match="knows 60 items, this run has 53"):
        prepare_recommender(*make_run(rec_checkpoint=str(trained.path), **fewer))
    with pytest.raises(UserError, match="pickle"):
        prepare_recommender(*make_run(rec_checkpoint=str(tmp_path / "SASRec.pth")))
    with pytest.raises(UserError, match="No checkpoint"):
        prepare_recommender(*make_run(rec_checkpoint=str(tmp_path / "nowhere")))


def test_a_recommender_without_an_item_table_is_refused_before_training(make_run, no_training):
    with pytest.raises(UserError, match="FPMC has no item embedding table"):
        prepare_recommender(*make_run(rec_model="FPMC"))


def test_the_table_is_the_weights_own_memory_without_gradients(make_run):
    config, data = make_run()
    model = resolve_model("SASRec")(config.for_recommender(), data.train_data.dataset)
    table = item_embedding_table(model)
    assert torch.equal(table, model.item_embedding.weight) and not table.requires_grad
    assert table.data_ptr() == model.item_embedding.weight.data_ptr()  # a million items would take 256 MB again


def test_a_mask_token_s_row_is_none_of_the_items(make_run, no_training):
    config, data = make_run(rec_model="BERT4Rec", rec_epochs=1)
    first = prepare_recommender(config, data)
    assert first.item_embeddings.shape == (data.dataset.item_num, 64)
    weights = load_file(first.path / WEIGHTS)["item_embedding.weight"]
    assert len(weights) == data.dataset.item_num + 1 and torch.equal(weights[:-1], first.item_embeddings)
    no_training()
    assert torch.equal(
        prepare_recommender(*make_run(rec_model="BERT4Rec", rec_epochs=1)).item_embeddings, first.item_embeddings
    )


@pytest.mark.parametrize("model", ["SASRecCPR", "GRU4RecCPR"])
def test_partitions_larger_than_the_catalogue_are_refused_before_training(make_run, no_training, model):
    config, data = make_run(rec_model=model)
    no_training()
    with pytest.raises(UserError, match=r"rec_reranker_CAN_NUM: found '100', expected whole numbers from 1 to 61"):
        prepare_recommender(config, data)
