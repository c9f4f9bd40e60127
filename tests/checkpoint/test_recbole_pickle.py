"""RecBole's own ``.pth``: what its trainer wrote is loaded bit by bit, and what a stranger wrote does nothing."""

import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from recbole.trainer import Trainer
from recbole.utils import get_model
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.recommender.frozen import prepare_recommender
from recbole_llara.recommender.stock import load_recommender
from recbole_llara.utils.errors import UserError


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy_dataset(tmp_path)


@pytest.fixture
def build(toy):
    """A RecBole model by its name and keys, its config and data, from a seed."""

    def build(name="SASRec", seed=0, **keys):
        config = RunConfig(name, "toy", config_dict={**toy, "epochs": 1, **keys})
        data = prepare_data(config)
        torch.manual_seed(seed)
        return get_model(name)(config, data.train_data.dataset), config, data

    return build


@pytest.fixture
def write(build, tmp_path):
    """A ``.pth`` of RecBole's trainer, after a step of its optimiser, so that the optimiser's state is in it too."""

    def write(name="SASRec", **keys):
        model, config, data = build(name, **keys)
        trainer = Trainer(config, model)
        trainer.optimizer.zero_grad()
        model.calculate_loss(next(iter(data.train_data))).backward()
        trainer.optimizer.step()
        path = tmp_path / f"{name}.pth"
        trainer._save_checkpoint(3, verbose=False, saved_model_file=str(path))
        return path, model

    return write


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Caser", "SASRecF"])
def test_what_recbole_wrote_is_loaded_bit_by_bit(build, write, name, caplog):
    keys = {"selected_features": ["title"]} if name == "SASRecF" else {}
    keys |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}} if keys else {}
    path, trained = write(name, **keys)
    model, *_ = build(name, seed=1, **keys)
    table = model.state_dict()["item_embedding.weight"].clone()
    loaded = load_recommender(model, path, name)
    assert (loaded.facts["epoch"], loaded.facts["dataset"]) == (3, "toy")
    loaded, expected = model.state_dict(), trained.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert not torch.equal(table, loaded["item_embedding.weight"])
    assert "tells no item ids" in caplog.text


def test_stock_recbole_itself_writes_the_same_kind(toy, tmp_path, monkeypatch):
    """Through its own Config, which pickles classes, enums and YAML's loader along."""
    monkeypatch.setattr("sys.argv", ["run"])
    from recbole.config import Config
    from recbole.data.utils import create_dataset, data_preparation

    own = {
        **toy,
        "train_neg_sample_args": None,
        "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"},
    }
    for key in ("protocol", "title_field", "candidate_num", "use_gpu"):
        own.pop(key)
    config = Config("SASRec", "toy", config_dict={**own, "epochs": 1})
    train_data, *_ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, get_model("SASRec")(config, train_data.dataset))
    trainer._save_checkpoint(0, verbose=False, saved_model_file=str(tmp_path / "stock.pth"))
    keys = {**toy, "rec_checkpoint": str(tmp_path / "stock.pth")}
    run = RunConfig("LLaRA", "toy", config_dict=keys)
    with pytest.raises(UserError, match=r"position_embedding.weight: \[50, 64\] there, \[10, 64\] here.*MAX_ITEM_LIST_LENGTH"):
        prepare_recommender(run, prepare_data(run))
    run = RunConfig("LLaRA", "toy", config_dict={**keys, "MAX_ITEM_LIST_LENGTH": 50})
    recommender = prepare_recommender(run, prepare_data(run))
    assert torch.equal(recommender.item_embeddings, trainer.model.item_embedding.weight)
    assert recommender.metrics == {}


def test_another_model_catalogue_or_shape_is_refused(build, write):
    path, _ = write()
    with pytest.raises(UserError, match="holds a SASRec, expected a GRU4Rec"):
        load_recommender(build("GRU4Rec")[0], path, "GRU4Rec")
    with pytest.raises(
        UserError, match=r"does not fit this SASRec: \d+ weights .*\[61, 64\] there, \[61, 32\] here.*prefix rec_"
    ):
        load_recommender(build(hidden_size=32)[0], path, "SASRec")
    with pytest.raises(UserError, match=r"16 weights .*layer\.2.*: None there, \[64\] here"):
        load_recommender(build(n_layers=3)[0], path, "SASRec")
    model = build()[0]
    model.n_items = 7
    with pytest.raises(UserError, match="knows 61 items of toy, this run has 7"):
        load_recommender(model, path, "SASRec")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("user_inter_num_interval", "[12, inf)"),
        ("item_inter_num_interval", "[1,inf)"),
        ("val_interval", {"timestamp": "[0,inf)"}),
    ],
)
def test_other_filters_are_refused(toy, write, key, value):
    """They leave as many items here; of those that leave other ones, too, a ``.pth`` tells no more."""
    path, _ = write(**{key: value})
    run = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_checkpoint": str(path)})
    with pytest.raises(UserError, match=f"was trained with {key} .*set {key} as it was"):
        prepare_recommender(run, prepare_data(run))
    told = value.replace(" ", "") if isinstance(value, str) else value
    run = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_checkpoint": str(path), key: told})
    assert prepare_recommender(run, prepare_data(run)).path == path


class _Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _saved(path, content, protocol=4):
    torch.save(content, path, pickle_protocol=protocol)


def _plain(path, content):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["config", "state_dict", "optimizer", "whole", "plain pickle"])
def test_a_checkpoint_that_would_run_code_runs_none(build, tmp_path, place, protocol):
    canary, path = tmp_path / "canary", tmp_path / "SASRec.pth"
    bad = [_Calls(os.system, f"touch {canary}"), _Calls(eval, f"open({str(canary)!r}, 'w')"), _Calls(os.mkdir, str(canary))]
    for call in bad:
        content = {"config": {}, "epoch": 0, "state_dict": OrderedDict(), "optimizer": {}, "other_parameter": {}}
        if place == "plain pickle":
            _plain(path, call)
        else:
            _saved(path, call if place == "whole" else {**content, place: call}, protocol)
        with pytest.raises(UserError, match="nothing in it was run"):
            load_recommender(build()[0], path, "SASRec")
        assert not canary.exists()
    pickle.loads(pickle.dumps(bad[0]))  # it would have: the canary is a live one
    assert canary.exists()


def test_stand_ins_import_nothing(build, write, tmp_path):
    """A module that would plant the canary when it is imported, under a name that RecBole could have."""
    canary, path = tmp_path / "canary", tmp_path / "SASRec.pth"
    source = f"crecbole.canary\nClass\n)R0cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'touch {canary}'\ntR."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", source.encode())
    with pytest.raises(UserError, match="'builtins.getattr', which has no place"):
        load_recommender(build()[0], path, "SASRec")
    assert not canary.exists()


def _rewritten(path, change):
    """The same zip with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)


def _bomb(entries):
    """A tensor that claims a terabyte with stride 0."""
    name = next(name for name in entries if name.endswith("data.pkl"))
    return {**entries, name: entries[name].replace(b"K\x3dK\x40\x86", b"J\xff\xff\xff\x7fK\x40\x86", 1)}


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: {name: content for name, content in entries.items() if not name.endswith("data/0")},
        lambda entries: {name: content[:-9] if name.endswith("data/0") else content for name, content in entries.items()},
        lambda entries: {name: content[:99] if name.endswith("data.pkl") else content for name, content in entries.items()},
        lambda entries: {**entries, "other/data.pkl": b"N."},
        lambda entries: {name: b"big" if name.endswith("byteorder") else content for name, content in entries.items()},
        _bomb,
        lambda entries: {},
    ],
    ids=["no bytes", "cut bytes", "cut pickle", "two pickles", "big-endian", "too large", "empty"],
)
def test_a_damaged_one_is_a_user_s_error(build, write, change):
    path, _ = write()
    _rewritten(path, change)
    with pytest.raises(UserError, match="SASRec.pth is a pickle that no RecBole trainer wrote, or a damaged one"):
        load_recommender(build()[0], path, "SASRec")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_recommender(build()[0], path.with_name("none.pth"), "SASRec")
