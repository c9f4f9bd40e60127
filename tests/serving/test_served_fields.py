"""A run whose prompts show fields answers as it was trained, wherever it is loaded, or not at all."""

import json
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


def measured_again(folder, keys):
    given = {**keys, **FIELDS, "checkpoint": str(folder / "checkpoint")}
    return result_of(run_recbole_llara("LLaRA", "toy", config_dict=given)["run_dir"])


CHANGES = {
    "a class": ("toy.item", lambda text: text.replace("Drama", "Comedy"), "item_fields"),
    "a title": ("toy.item", lambda text: text.replace("Title 3", "Title 3b"), "titles_digest"),
    # Levels are those of the training interactions that are there.
    "popularity": (
        "toy.inter",
        lambda text: (
            text + "".join(f"new{user}\ti{item}\t{user * 100 + item}\n" for user in range(30) for item in range(5, 12))
        ),
        "item_fields",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_items_of_other_texts_are_not_measured_and_change_no_answer(folder, tmp_path, change, keys):
    """What the prompts of a run say is kept with it."""
    cases = read_records(folder / "cases.jsonl")
    name, changed, differs = CHANGES[change]
    path = tmp_path / "toy" / name
    path.write_text(changed(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=f"does not fit this LLaRA: {differs}: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        measured_again(folder, keys)
    for place in (folder, export(folder, tmp_path / "out")):
        assert asked_again(recbole_llara.load(place), cases) == scores_of(cases)


def test_another_order_of_the_items_and_columns_changes_nothing(folder, tmp_path, keys):
    path = tmp_path / "toy" / "toy.item"
    header, *lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    changed = ["\t".join([each[0], *each[:0:-1]]) for each in (header, *lines[::-1])]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    inter = tmp_path / "toy" / "toy.inter"
    first, *rows = inter.read_text(encoding="utf-8").splitlines()
    inter.write_text("\n".join([first, *rows[::-1]]) + "\n", encoding="utf-8")
    assert measured_again(folder, keys)["metrics"]["test"] == result_of(folder)["metrics"]["test"]


@pytest.mark.parametrize("key", ["title_field", "title_rules", "item_fields"])
def test_other_texts_cannot_be_asked_for(folder, key):
    with pytest.raises(UserError, match=f"{key}: found .*, expected none: the texts of the items are those kept with"):
        recbole_llara.load(folder, **{key: "title" if key == "title_field" else ["x"]})
