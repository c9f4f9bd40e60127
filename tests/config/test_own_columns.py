"""A dataset that no properties describe: its files say which columns hold times and titles."""

import pytest

from recbole_llara.config.columns import read_header, title_column
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError


@pytest.fixture
def own(keys):
    return {key: value for key, value in keys.items() if key not in ("load_col", "title_field")}


def test_times_and_titles_are_found(own, keys):
    config = RunConfig("LLaRA", "toy", config_dict=own)
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]} and config["title_field"] == "title"
    assert config.for_recommender()["load_col"] == config["load_col"]
    assert any("title_field: title" in note for note in config.notes)
    found, told = prepare_data(config), prepare_data(RunConfig("LLaRA", "toy", config_dict=keys))
    assert found.candidate_sha256 == told.candidate_sha256 and found.catalogue.titles == told.catalogue.titles


def test_a_run_needs_a_dataset_alone(own):
    result = run_recbole_llara("LLaRA", "toy", config_dict=own)
    assert result["test_result"]["validratio"] == 1


def test_what_is_given_stays(own):
    given = {**own, "load_col": {"inter": ["user_id", "item_id"]}, "title_field": "item_id"}
    config = RunConfig("LLaRA", "toy", config_dict=given)
    assert (config["load_col"], config["title_field"]) == (given["load_col"], "item_id")


def test_a_dataset_with_properties_keeps_them(own):
    config = RunConfig("SASRec", "ml-100k", config_dict={key: value for key, value in own.items() if key == "protocol"})
    assert (
        config["load_col"]["inter"] == ["user_id", "item_id", "rating", "timestamp"] and config["title_field"] == "movie_title"
    )


def test_columns_of_other_names(own, tmp_path):
    for suffix in ("inter", "item"):
        path = tmp_path / "toy" / f"toy.{suffix}"
        text = path.read_text(encoding="utf-8").replace("timestamp:", "when:").replace("title:", "Product Title:")
        path.write_text("\ufeff" + text, encoding="utf-8")
    config = RunConfig("LLaRA", "toy", config_dict={**own, "TIME_FIELD": "when"})
    assert config["load_col"] == {"inter": ["user_id", "item_id", "when"]} and config["title_field"] == "Product Title"


def test_two_columns_of_titles_are_not_chosen_between(own, tmp_path):
    path = tmp_path / "toy" / "toy.item"
    path.write_text(
        path.read_text(encoding="utf-8").replace("title:token_seq", "title:token_seq\tsubtitle:token_seq"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="title_field: found None"):
        RunConfig("LLaRA", "toy", config_dict=own)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["item_id", "title"], "title"),
        (["item_id", "movie_title", "class"], "movie_title"),
        (["item_id", "name", "title"], "title"),
        (["item_id", "name"], "name"),
        (["item_id", "username"], None),
        (["item_id", "name", "product_name"], "name"),
        (["item_id", "Product Name"], "Product Name"),
        (["item_id", "artist_name", "track_name"], None),
        (["item_id", "title", "title_en"], None),
        ([], None),
    ],
)
def test_which_column_holds_titles(columns, expected):
    assert title_column(columns) == expected


def test_a_header_of_no_file(tmp_path):
    assert read_header(tmp_path / "nothing.item", "\t", "utf-8") == []
