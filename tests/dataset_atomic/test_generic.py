"""Any catalogue by the user's own column names; and what the command line does with an older dataset."""

import pandas as pd
import pytest

from recbole_llara.errors import UserError

COLUMNS = "user_id=uid,item_id=sku,timestamp=when,title=name"


@pytest.fixture
def files(tmp_path):
    inter = pd.DataFrame(
        {
            "uid": ["a", "a", "b"],
            "sku": ["1", "2", "1"],
            "when": ["2024-01-31", "2024-02-01T12:00:00", "2024-03-01"],
            "x": [1, 2, 3],
        }
    )
    item = pd.DataFrame({"sku": ["1", "2"], "name": ['A "quoted" tab\there', "Ünï\ncode"]})
    inter.to_csv(tmp_path / "shop.csv", index=False)
    item.to_csv(tmp_path / "goods.tsv", index=False, sep="\t")
    return tmp_path / "shop.csv", tmp_path / "goods.tsv"


def _words(files, *more):
    return ["generic", "--inter", files[0], "--item", files[1], "--columns", COLUMNS, *more]


def test_columns_are_named_and_dates_become_seconds(files, tmp_path, run, read):
    report = run(*_words(files, "--out", tmp_path / "out"))
    assert "2 sequences" in report and "3 interactions" in report
    header, rows = read(tmp_path / "out" / "shop" / "shop.inter")
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    assert [float(row[2]) for row in rows] == [1706659200.0, 1706788800.0, 1709251200.0]
    assert read(tmp_path / "out" / "shop" / "shop.item") == (
        ["item_id:token", "title:token_seq"],
        [["1", 'A "quoted" tab here'], ["2", "Ünï code"]],
    )


def test_a_run_takes_it(files, tmp_path, run, monkeypatch):
    from recbole_llara.config import LLaRAConfig
    from recbole_llara.data.dataset import prepare_data

    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},{1 + (user + step) % 9},{1000 * user + step}" for user in range(30) for step in range(6)]
    files[0].write_text("uid,sku,when\n" + "\n".join(rows) + "\n", encoding="utf-8")
    files[1].write_text("sku\tname\n" + "".join(f"{item}\tThing {item}\n" for item in range(1, 10)), encoding="utf-8")
    run(*_words(files, "--out", tmp_path / "out", "--dataset", "things"))
    keys = {"data_path": str(tmp_path / "out"), "protocol": "leave_one_out", "candidate_num": 4, "title_field": "title"}
    keys["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    data = prepare_data(LLaRAConfig("SASRec", "things", config_dict=keys))
    assert len(data.test_data.dataset) == 30 and sorted(data.catalogue.titles[1:]) == [f"Thing {item}" for item in range(1, 10)]


def test_an_older_dataset_is_kept_unless_it_may_go(files, tmp_path, run):
    run(*_words(files, "--out", tmp_path / "out"))
    with pytest.raises(UserError, match="is there already.*--overwrite"):
        run(*_words(files, "--out", tmp_path / "out"))
    files[1].unlink()
    with pytest.raises(UserError, match="item: found no file"):
        run(*_words(files, "--out", tmp_path / "out", "--overwrite"))
    assert (tmp_path / "out" / "shop" / "shop.item").is_file()  # the old one, whole


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("user_id=uid", "expected 'item_id' for item_id: --columns item_id=YOURS"),
        (COLUMNS + ",colour=x", "columns: found 'colour=x', expected OURS=YOURS"),
        (COLUMNS.replace("title=name", "title=label"), "has the columns sku, name, expected 'label' for title"),
    ],
)
def test_wrong_columns_say_which(files, tmp_path, run, columns, message):
    with pytest.raises(UserError, match=message):
        run("generic", "--inter", files[0], "--item", files[1], "--columns", columns, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [("a,1,\n", "row 1 of .* has an empty cell"), ("a,1,yesterday\n", "timestamp: found 'yesterday'"), ("", "has no rows")],
)
def test_wrong_rows_say_which(files, tmp_path, run, rows, message):
    files[0].write_text("uid,sku,when\n" + rows, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(*_words(files, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_missing_arguments(tmp_path, run):
    with pytest.raises(UserError, match="expected --inter FILE and --item FILE"):
        run("generic", "--out", tmp_path)
    with pytest.raises(UserError, match="expected --raw DIR"):
        run("steam", "--out", tmp_path)


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
def test_parquet_is_read_like_csv(files, tmp_path, run, read, unit):
    """Dates as columns of dates, in any unit; ids as numbers."""
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    table = pd.DataFrame({"uid": ["a", "b"], "sku": [1, 2], "when": pd.to_datetime(["2024-01-31", "1970-01-02"])})
    table["when"] = table["when"].astype(f"datetime64[{unit}]")
    table.to_parquet(tmp_path / "shop.parquet")
    run("generic", "--inter", tmp_path / "shop.parquet", *_words(files, "--out", tmp_path / "out")[3:])
    rows = read(tmp_path / "out" / "shop" / "shop.inter")[1]
    assert [row[:2] for row in rows] == [["a", "1"], ["b", "2"]] and [float(row[2]) for row in rows] == [1706659200, 86400]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        run("generic", "--inter", tmp_path / "broken.parquet", *_words(files, "--out", tmp_path / "other")[3:])
