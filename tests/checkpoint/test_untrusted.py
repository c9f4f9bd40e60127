"""What a stranger may have written runs nothing: planted in each place that is read, a canary is never laid."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_data import write_toy_dataset

from recbole_llara.checkpoint.weights import HEADER_FACTS, HEADER_KEY, read_checkpoint
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.recommender.frozen import prepare_recommender
from recbole_llara.utils.errors import UserError


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that every planted command would create; the test ends by looking for it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def toy(tmp_path, canary):
    return write_toy_dataset(tmp_path)


def _tags(canary):
    return [
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"!!python/object/new:os.system ['touch {canary}']",
        f"!!python/object/apply:builtins.open [{str(canary)!r}, w]",
        f"!!python/name:os.system touch {canary}",
    ]


def test_yaml_tags_make_no_objects(toy, canary, tmp_path):
    for tag in _tags(canary):
        path = tmp_path / "keys.yaml"
        path.write_text(f"learning_rate: {tag}\n")
        with pytest.raises(UserError, match=r"keys.yaml.*line 1"):
            RunConfig("LLaRA", "toy", [path], toy)
        for keys, argv in (({"learning_rate": tag}, ()), ({}, [f"--learning_rate={tag}"])):
            with pytest.raises(UserError, match="learning_rate: found .!!python"):
                RunConfig("LLaRA", "toy", config_dict={**toy, **keys}, argv=argv)
        path.write_text(f"systems: {tag}\n")
        with pytest.raises(UserError):
            load_study(str(path))


EXPRESSIONS = [
    "__import__('os').system('touch {canary}')",
    "[__import__('os').system('touch {canary}'),inf)",
    "[3,__import__('os').mkdir('{canary}')]",
    "(lambda: open('{canary}', 'w'))()",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_texts(toy, canary, expression):
    """RecBole evaluates the texts of its config dict and its command line; none of ours comes there."""
    text = expression.format(canary=canary)
    for key in ("user_inter_num_interval", "item_inter_num_interval", "learning_rate", "topk", "seed", "val_interval"):
        for keys, argv in (({key: text}, ()), ({}, [f"--{key}={text}"])):
            with pytest.raises(UserError, match=key):
                config = RunConfig("SASRec", "toy", config_dict={**toy, **keys}, argv=argv)
                prepare_data(config)
    with pytest.raises(UserError, match=r"val_interval\.timestamp: found"):
        RunConfig("SASRec", "toy", config_dict={**toy, "val_interval": {"timestamp": text}})


@pytest.mark.parametrize("interval", ["[3,inf)", "(0, 5]", "[-1e3,.5]", "[1,2];[4,6)", [3, 5]])
def test_intervals_are_taken(toy, interval):
    RunConfig("SASRec", "toy", config_dict={**toy, "val_interval": {"timestamp": interval}})
    if ";" not in interval:
        RunConfig("SASRec", "toy", config_dict={**toy, "item_inter_num_interval": interval})


@pytest.mark.parametrize("interval", ["", "5", "[5,3]", "[5,inf", "[nan,3]", "[1,2,3]", 5, {"a": 1}])
def test_what_is_no_interval_is_refused(toy, interval):
    with pytest.raises(UserError, match="item_inter_num_interval: found .*, expected an interval such as"):
        RunConfig("SASRec", "toy", config_dict={**toy, "item_inter_num_interval": interval})


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "toy/../../secret", "..", "a\x00b", "toy\n", "$(touch canary)"])
def test_names_lead_nowhere_else(toy, name):
    with pytest.raises(UserError, match="dataset: found"):
        RunConfig("SASRec", name, config_dict=toy)
    for key in ("protocol", "domain", "model", "rec_model"):
        with pytest.raises(UserError, match=f"{key}: found"):
            RunConfig(**{"model": "LLaRA", "dataset": "toy", "config_dict": {**toy, **({} if key == "model" else {key: name})},
                           **({"model": name} if key == "model" else {})})  # fmt: skip


def _safetensors(path, header, content=b""):
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


def test_odd_safetensors_are_a_user_s_error(toy, tmp_path):
    path, weight = tmp_path / "model.safetensors", {"weight": torch.zeros(2)}
    whole = dict.fromkeys(HEADER_FACTS, 1) | {"model": "SASRec", "other_parameter": {}}
    for header in (
        b"",
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}',
        b"\x80\x04N.",
    ):
        _safetensors(path, header)
        with pytest.raises(UserError, match="model.safetensors"):
            read_checkpoint(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(UserError, match="is no safetensors file"):
        read_checkpoint(path)
    for told in ("{", "[]", "{}", json.dumps({**whole, "other_parameter": []}), "cos\nsystem\n(S'touch canary'\ntR."):
        save_file(weight, path, metadata={HEADER_KEY: told})
        with pytest.raises(UserError, match="header"):
            read_checkpoint(path)


def test_a_checkpoint_sets_no_attribute_that_its_model_does_not_keep(toy, tmp_path):
    """RecBole sets whatever a checkpoint keeps beside its weights, ``forward`` as well."""
    config = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_epochs": 1})
    trained = prepare_recommender(config, prepare_data(config))
    facts, tensors = read_checkpoint(trained.path / "model.safetensors").facts, load_file(trained.path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps({**facts, "other_parameter": {"forward": "canary"}})})
    run = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_checkpoint": str(path)})
    with pytest.raises(UserError, match="keeps no forward beside its weights"):
        prepare_recommender(run, prepare_data(run))
