"""A cached recommender that was damaged is found out and trained again; a whole one never is."""

import json
import logging
import struct

import pytest
import torch
from safetensors.torch import save_file
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.recommender.frozen import META, WEIGHTS, DamagedEntry, prepare_recommender, seal, unseal


def _truncate(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _flip_a_bit(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _change_a_metric(folder):
    meta = json.loads((folder / META).read_text())
    meta["metrics"]["test"]["hit@1"] = 1.0
    (folder / META).write_text(json.dumps(meta))


def _forget_the_digest(folder):
    meta = json.loads((folder / META).read_text())
    del meta["weights_sha256"]
    (folder / META).write_text(json.dumps(meta))


def _name_another_path(folder):
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**meta, "model": "../../../canary", "weights": "/etc/passwd"}))


DAMAGES = {
    "truncated weights": _truncate,
    "a bit of the weights": _flip_a_bit,
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "odd header": lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "truncated facts": lambda folder: (folder / META).write_text((folder / META).read_text()[:-20]),
    "no facts": lambda folder: (folder / META).unlink(),
    "facts of another kind": lambda folder: (folder / META).write_text("[1]"),
    "facts in no UTF-8": lambda folder: (folder / META).write_bytes(b"\xff\xfe{"),
    "an altered metric": _change_a_metric,
    "no digest": _forget_the_digest,
    "other paths": _name_another_path,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's config and data, and its recommender."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = RunConfig("LLaRA", "toy", config_dict={**write_toy_dataset(folder), "rec_epochs": 1})
        data = prepare_data(config)
        yield config, data, prepare_recommender(config, data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_trained_again_with_a_warning(trained, damage, caplog):
    config, data, first = trained
    DAMAGES[damage](first.path)
    with caplog.at_level(logging.WARNING):
        again = prepare_recommender(config, data)
    assert f"The cached recommender {first.path} is damaged" in caplog.text and "it is trained again" in caplog.text
    assert again.seconds > 0 and again.metrics == first.metrics
    assert torch.equal(again.item_embeddings, first.item_embeddings)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert prepare_recommender(config, data).seconds == 0
    assert not caplog.text
    assert sorted(path.name for path in first.path.iterdir()) == [META, WEIGHTS]


def test_a_whole_entry_of_another_recommender_is_not_taken(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / WEIGHTS)
    seal(tmp_path, {"sha256": "one", "metrics": {}})
    assert unseal(tmp_path, "one")["metrics"] == {}
    with pytest.raises(DamagedEntry, match="another recommender"):
        unseal(tmp_path, "other")
