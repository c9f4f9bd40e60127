"""RecBole's models whose keys are numbers of items: refused where the catalogue is smaller, before anything is trained."""

import pytest
from bad_inputs import assert_refused, run
from synthetic_data import write_toy_dataset


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**write_toy_dataset(tmp_path), "max_train_rows": 40}


@pytest.mark.parametrize("model", ["SASRecCPR", "GRU4RecCPR"])
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["reranker_CAN_NUM: found '100'", "whole numbers from 1 to 61", "the 60 items of toy"]),
        (["--reranker_CAN_NUM=62"], ["reranker_CAN_NUM: found '62'", "from 1 to 61"]),
        (["--reranker_CAN_NUM=0"], ["reranker_CAN_NUM: found '0'"]),
        (["--reranker_CAN_NUM=20", "--n_facet=2"], ["n_facet_all: found 5, expected 6"]),
    ],
)
def test_partitions_that_the_catalogue_cannot_have_are_refused(model, arguments, parts, toy, tmp_path, capsys):
    assert_refused(capsys, run(model, toy, arguments), parts, tmp_path / "saved")


@pytest.mark.parametrize("model", ["SASRecCPR", "GRU4RecCPR"])
def test_partitions_as_large_as_the_catalogue_run(model, toy):
    assert run(model, toy, ["--reranker_CAN_NUM=61"]) == 0
