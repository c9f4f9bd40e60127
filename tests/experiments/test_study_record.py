"""``study.json``: from it every table can be computed again, and it tells of no user, no title and no place."""

import json

import numpy as np
import pytest

from recbole_llara.experiments.study_record import pack, study_record, unpack
from recbole_llara.experiments.study_report import write_study_report
from recbole_llara.experiments.study_summary import summarise

ANSWERS = {"A": np.array([[1, 0, 0, 0, 1], [1, 1, 0, 0, 1]]), "B": np.array([[0, 1, 0, 0, 0], [0, 1, 1, 0, 0]])}


def test_rows_are_packed_from_the_first_on():
    assert pack(np.array([1, 0, 0, 0, 1], dtype=bool)) == "88"
    assert pack(np.array([0, 0, 0, 1], dtype=bool)) == "1"


@pytest.mark.parametrize("n", [1, 4, 7, 8, 943])
def test_packed_rows_come_back(n):
    correct = np.random.default_rng(n).random(n) < 0.5
    assert unpack(pack(correct), n).tolist() == correct.tolist()
    with pytest.raises(ValueError, match="hexadecimal digits, expected"):
        unpack(pack(correct), n + 4)


@pytest.mark.usefixtures("no_pngs")
def test_the_file_holds_what_the_tables_tell(make_study, outcomes_of):
    settings = {"checkpoint_dir": "saved", "protocol": "leave_one_out", "data_path": "/home/me", "api_key": "s", "epochs": 2}
    settings |= {"show_progress": False, "item_embeddings": "/home/me/vectors.npy"}
    study = make_study(compare=(("A", "B"),), seeds=(2020, 2021), settings=settings)
    outcomes = outcomes_of(ANSWERS, llm="/models/Secret-7b")
    write_study_report(study, outcomes)
    text = (study.folder / "study.json").read_text(encoding="utf-8")
    told = json.loads(text)
    (summary,) = summarise(study, outcomes)
    assert told == study_record(study, [summary])
    assert told["settings"] == {"protocol": "leave_one_out", "epochs": 2, "item_embeddings": "vectors.npy"}
    assert told["seeds"] == [2020, 2021]
    assert told["systems"] == study.systems
    of_dataset = told["datasets"]["ml-100k"]
    assert of_dataset["n"] == 5 and of_dataset["target_users"] == [0, 10, 20, 30, 40]
    for name, correct in ANSWERS.items():
        seeds = of_dataset["systems"][name]["seeds"]
        assert [unpack(seed["correct"], 5).astype(int).tolist() for seed in seeds] == correct.tolist()
        assert [seed["metrics"]["test"]["hit@1"] for seed in seeds] == correct.mean(1).tolist()
    (comparison,) = of_dataset["comparisons"]
    assert (comparison["only_one"], comparison["only_other"]) == (2, 1)
    assert of_dataset["systems"]["A"]["llm"] == "Secret-7b"
    for hidden in ("/models", "/home", "saved", "Title", "api_key"):
        assert hidden not in text
