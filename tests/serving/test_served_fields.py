"""A run whose prompts show fields answers as it was trained, wherever it is loaded, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_data import add_item_fields

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

FIELDS = {"item_fields": ["release_year", "class", "popularity"], "full_rank": True}


@pytest.fixture
def folder(make_run, tmp_path):
    """A finished run of LLaRA over items with fields."""
    add_item_fields(tmp_path)
    return Path(make_run(**FIELDS))


def result_of(folder):
    return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))


def asked_again(run, cases):
    """The scores of the run's own test rows."""
    rows = [[[f"id:{item}" for item in case[name]] for case in cases] for name in ("history", "candidates")]
    found = run.recommend_batch(rows[0], k=len(cases[0]["candidates"]), candidates=rows[1])
    return [{item.item_id: item.score for item in items} for items in found]


def scores_of(cases):
    return [pytest.approx(dict(zip(case["candidates"], case["scores"], strict=True)), abs=1e-4) for case in cases]


def test_a_loaded_run_ranks_as_its_evaluation_did(folder):
    cases = read_records(folder / "cases.jsonl")
    run = recbole_llara.load(folder)
    assert asked_again(run, cases) == scores_of(cases)
    assert len(run.data.catalogue.fields) == 3 and any(run.model.encoder.fields)


def test_an_exported_run_answers_and_measures_alike(folder, tmp_path):
    cases = read_records(folder / "cases.jsonl")
    out = export(folder, tmp_path / "out")
    assert asked_again(recbole_llara.load(out), cases) == scores_of(cases)
    assert "| behind titles | release_year, class, popularity |" in (out / "README.md").read_text(encoding="utf-8")
    again = run_recbole_llara(config_file_list=[out / "run.yaml"], config_dict={"checkpoint_dir": str(tmp_path / "elsewhere")})
    assert result_of(again["run_dir"])["metrics"]["test"] == result_of(folder)["metrics"]["test"]
    assert result_of(again["run_dir"])["full_rank"] == result_of(folder)["full_rank"]


@pytest.mark.parametrize("is_exported", [False, True])
@pytest.mark.parametrize(
    ("text", "other", "differs"), [("Drama", "Comedy", "item_fields"), ("Title 3", "Title 3b", "titles_digest")]
)
def test_items_of_other_texts_are_refused(folder, tmp_path, is_exported, text, other, differs):
    path = tmp_path / "toy" / "toy.item"
    place = export(folder, tmp_path / "out") if is_exported else folder
    path.write_text(path.read_text(encoding="utf-8").replace(text, other), encoding="utf-8")
    with pytest.raises(UserError, match=f"does not fit this LLaRA: {differs}: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        recbole_llara.load(place)


def test_another_order_of_the_items_and_columns_changes_nothing(folder, tmp_path):
    cases = read_records(folder / "cases.jsonl")
    path = tmp_path / "toy" / "toy.item"
    header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    changed = ["\t".join([each[0], *each[:0:-1]]) for each in (header, *lines[::-1])]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    inter = tmp_path / "toy" / "toy.inter"
    first, *rows = inter.read_text(encoding="utf-8").splitlines()
    inter.write_text("\n".join([first, *rows[::-1]]) + "\n", encoding="utf-8")
    assert asked_again(recbole_llara.load(folder), cases) == scores_of(cases)


def test_data_in_which_items_are_more_popular_is_refused(folder, tmp_path):
    """Levels are those of the training interactions that are there."""
    path = tmp_path / "toy" / "toy.inter"
    shutil.copy(path, tmp_path / "before")
    more = [f"new{user}\ti{item}\t{user * 100 + item}" for user in range(30) for item in range(5, 12)]
    path.write_text(path.read_text(encoding="utf-8") + "\n".join(more) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="item_fields: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        recbole_llara.load(folder)
    shutil.copy(tmp_path / "before", path)
    recbole_llara.load(folder)
