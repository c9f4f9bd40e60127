"""Atomic files: what RecBole works on are the cells as they stand, the same that the titles are read from."""

import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CandidateDataset
from recbole_llara.data.tables import HOLES, PADDING, read_rows
from recbole_llara.data.titles import load_catalogue

# Anything but what parts cells and rows; characters that CSV readers, str.splitlines and old parsers stumble over are likely.
CELLS = st.text(
    st.one_of(
        st.sampled_from('""\'\\\ufeff\u2028\x85\x0b\x0c\x1c,; é'),
        st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]),
    ),
    max_size=12,
).filter(lambda text: text not in HOLES)


def write(folder: Path, names: list[str], mark: str = "") -> dict[str, object]:
    """A dataset of as many items as names, which stand in a column of tokens."""
    rows = [f"u{user}\ti{(user + step) % len(names)}\t{step}" for user in range(8) for step in range(4)]
    (folder / "shop").mkdir(exist_ok=True)
    tables = {
        "inter": ["user_id:token\titem_id:token\ttimestamp:float", *rows],
        "item": ["item_id:token\tname:token", *(f"i{number}\t{name}" for number, name in enumerate(names))],
    }
    for suffix, lines in tables.items():
        (folder / "shop" / f"shop.{suffix}").write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "name"]},
        "protocol": "leave_one_out",
        "title_field": "name",
        "candidate_num": 2,
    }


def names_of(dataset: CandidateDataset) -> dict[str, str]:
    """What RecBole holds of the column, by item."""
    items = dataset.field2id_token["item_id"][dataset.item_feat["item_id"].to_numpy(int)]
    names = dataset.field2id_token["name"][dataset.item_feat["name"].to_numpy(int)]
    return {item: name for item, name in zip(items.tolist(), names.tolist(), strict=True) if item != PADDING}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(CELLS, min_size=6, max_size=6), mark=st.sampled_from(["", "\ufeff"]))
def test_recbole_and_the_titles_see_the_cells_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], mark: str
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = write(tmp_path, names, mark)
    config = RunConfig("SASRec", "shop", config_dict=keys)
    dataset = CandidateDataset(config)
    assert names_of(dataset) == {f"i{number}": name for number, name in enumerate(names)}
    rows = [cells for _, cells in read_rows(tmp_path / "shop" / "shop.item", "\t", "utf-8")]
    assert [name for _, name in rows[1:]] == names


def test_cells_that_pandas_takes_for_nothing_are_holes_for_recbole_and_titles_for_us(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["None", "NA", "nan", "n/a", "NULL", "plain"]
    keys = write(tmp_path, names)
    config = RunConfig("SASRec", "shop", config_dict=keys)
    dataset = CandidateDataset(config)
    assert set(names_of(dataset).values()) == {PADDING, "plain"}
    assert sorted(load_catalogue(dataset, config).titles[1:]) == sorted(names)
    for text in HOLES:  # the list is pandas' own
        assert pd.read_csv(io.StringIO(f"a,b\n{text},x\n"), dtype=str)["a"].isna().all(), text


def test_sequences_and_numbers_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = write(tmp_path, [f"n{number}" for number in range(6)])
    lines = ["item_id:token\tkinds:token_seq\tprice:float\tshares:float_seq"]
    lines += [f'i{number}\tred  "big {"x " * number}\t{number}.5e-3\t{number} .25' for number in range(6)]
    (tmp_path / "shop" / "shop.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys |= {"load_col": {**keys["load_col"], "item": ["item_id", "kinds", "price", "shares"]}, "title_field": None}
    dataset = CandidateDataset(RunConfig("SASRec", "shop", config_dict=keys))
    assert dataset.field2seqlen["kinds"] == 2 + 5 and dataset.field2seqlen["shares"] == 2
    kinds = dataset.field2id_token["kinds"]
    feat = dataset.item_feat.set_index("item_id").loc[dataset.field2token_id["item_id"]["i3"]]
    assert kinds[list(map(int, feat["kinds"]))].tolist() == ["red", '"big', "x", "x", "x"]
    assert feat["price"] == 3.5e-3 and list(feat["shares"]) == [3, 0.25]
