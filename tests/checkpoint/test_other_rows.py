"""Weights that learned from other interactions than a run's training rows: told wherever they are measured."""

import json
import logging
from pathlib import Path

import pytest
from synthetic_data import write_toy_dataset
from toy_run import toy_keys

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.loaded import load


@pytest.fixture(scope="module")
def keys(tmp_path_factory, make_llm, make_tokenizer):
    """The keys of a toy run of an LLM; the stock models' are among them."""
    return toy_keys(tmp_path_factory.mktemp("rows"), make_llm, make_tokenizer) | {"epochs": 1, "max_train_rows": 16}


STOCK = ("data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress")


@pytest.fixture(scope="module")
def by_user(keys):
    """A SASRec that learned from all rows of most users: the test targets of another split among them."""
    given = {key: keys[key] for key in STOCK} | {"protocol": "llara", "epochs": 1}
    return run_recbole_llara("SASRec", "toy", config_dict=given)["checkpoint"]


def _told(written, caplog):
    result = json.loads(Path(written["result_file"]).read_text(encoding="utf-8"))
    warned = [record for record in caplog.records if "was trained on other interactions" in record.message]
    assert len(warned) == len(result["trained_on_other_rows"])
    return result["trained_on_other_rows"]


def test_a_checkpoint_of_another_split(keys, by_user, caplog):
    given = {key: keys[key] for key in STOCK} | {"checkpoint": by_user}
    with caplog.at_level(logging.WARNING):
        assert _told(run_recbole_llara("SASRec", "toy", config_dict=given), caplog) == ["checkpoint"]
        caplog.clear()
        same = given | {"protocol": "llara", "max_train_rows": 8, "seed": 7, "candidate_num": 5}  # other samples and draws
        assert _told(run_recbole_llara("SASRec", "toy", config_dict=same), caplog) == []


def test_a_recommender_of_another_split(keys, by_user, caplog):
    with caplog.at_level(logging.WARNING):
        trained = run_recbole_llara("LLaRA", "toy", config_dict=keys | {"rec_checkpoint": by_user})
        assert _told(trained, caplog) == ["rec_checkpoint"]
        caplog.clear()
        load(trained["run_dir"]).recommend(["i1"])  # nothing is measured
        assert not [record for record in caplog.records if "other interactions" in record.message]


def test_the_order_of_the_file_does_not_matter(keys, tmp_path, caplog):
    given = {key: keys[key] for key in STOCK} | {"epochs": 1, "checkpoint_dir": str(tmp_path / "saved")}
    given |= {"data_path": write_toy_dataset(tmp_path / "data")["data_path"]}
    checkpoint = run_recbole_llara("SASRec", "toy", config_dict=given)["checkpoint"]
    path = tmp_path / "data" / "toy" / "toy.inter"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert _told(run_recbole_llara("SASRec", "toy", config_dict=given | {"checkpoint": checkpoint}), caplog) == []
        caplog.clear()
        path.write_text("\n".join([header, *lines, f"u0\t{lines[5].split()[1]}\t9999"]) + "\n", encoding="utf-8")
        assert _told(run_recbole_llara("SASRec", "toy", config_dict=given | {"checkpoint": checkpoint}), caplog) == [
            "checkpoint"
        ]
