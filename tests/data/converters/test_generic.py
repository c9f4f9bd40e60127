"""Any catalogue by the user's own column names; and what the command line does with an older dataset."""

import gzip

import pandas as pd
import pytest

from recbole_llara.utils.errors import UserError

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
    item.to_csv(tmp_path / "goods.csv", index=False)
    return tmp_path / "shop.csv", tmp_path / "goods.csv"


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
    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.data.dataset import prepare_data

    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},{1 + (user + step) % 9},{1000 * user + step}" for user in range(30) for step in range(6)]
    files[0].write_text("uid,sku,when\n" + "\n".join(rows) + "\n", encoding="utf-8")
    files[1].write_text("sku,name\n" + "".join(f"{item},Thing {item}\n" for item in range(1, 10)), encoding="utf-8")
    run(*_words(files, "--out", tmp_path / "out", "--dataset", "things"))
    keys = {"data_path": str(tmp_path / "out"), "protocol": "leave_one_out", "candidate_num": 4, "title_field": "title"}
    keys["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    data = prepare_data(RunConfig("SASRec", "things", config_dict=keys))
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
        ("user_id=", "expected one for user_id: --columns user_id=YOURS; if the first line is no header, --inter_header"),
        (COLUMNS + ",colour=x", "columns: found 'colour=x', expected OURS=YOURS"),
        (COLUMNS.replace("title=name", "title=label"), "has the columns sku, name, expected 'label' for title"),
    ],
)
def test_wrong_columns_say_which(files, tmp_path, run, columns, message):
    with pytest.raises(UserError, match=message):
        run("generic", "--inter", files[0], "--item", files[1], "--columns", columns, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1,\n", "timestamp: found '' in row 1 of .*, expected a number"),
        ("a,1,yesterday\n", "timestamp: found 'yesterday'"),
        ("", "has no rows"),
    ],
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


QUOTES = ['"Weird', '12" record', '"Heroes"', 'a "real" one', '"', '""', "plain"]


def _plain_items(folder):
    lines = ["sku\tname", *(f"{number}\t{title}" for number, title in enumerate(QUOTES, 1))]
    (folder / "plain.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "plain.tsv"


def test_a_quote_in_a_tsv_is_text(files, tmp_path, run, read):
    run(*_words((files[0], _plain_items(tmp_path)), "--out", tmp_path / "out"))
    assert [title for _, title in read(tmp_path / "out" / "shop" / "shop.item")[1]] == QUOTES


def test_a_quote_that_swallows_what_follows_is_refused_by_its_line(files, tmp_path, run):
    with pytest.raises(UserError, match=r"plain.tsv, line 2: a quote opens a cell .*--quoting none"):
        run(*_words((files[0], _plain_items(tmp_path)), "--out", tmp_path / "out", "--quoting", "csv"))
    (tmp_path / "goods.tsv").write_text('sku\tname\n1\t"two\nlines"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"goods.tsv: found 1 columns in line 3, expected the 2 .*--quoting csv"):
        run(*_words((files[0], tmp_path / "goods.tsv"), "--out", tmp_path / "out"))


@pytest.mark.parametrize("row", ["a,1", "a,1,5,6"])
def test_a_row_of_another_length_is_named(files, tmp_path, run, row):
    files[0].write_text(f"uid,sku,when\na,1,3\n{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"shop.csv: found {row.count(',') + 1} columns in line 3, expected the 3"):
        run(*_words(files, "--out", tmp_path / "out"))


def test_a_byte_order_mark_and_gzip_change_nothing(files, tmp_path, run, read):
    run(*_words(files, "--out", tmp_path / "out"))
    for path in files:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    run(*_words([path.with_name(path.name + ".gz") for path in files], "--out", tmp_path / "other"))
    for name in ("shop.inter", "shop.item"):
        assert (tmp_path / "other" / "shop" / name).read_bytes() == (tmp_path / "out" / "shop" / name).read_bytes()


def test_a_byte_order_mark_between_rows_is_refused(files, tmp_path, run):
    """As ``cat`` leaves it: user a would become two."""
    part = files[0].read_bytes()
    files[0].write_bytes(part + b"\xef\xbb\xbfa,2,2024-04-01,3\n")
    with pytest.raises(UserError, match="byte order mark .*were two files joined"):
        run(*_words(files, "--out", tmp_path / "out"))


def test_half_a_surrogate_pair_is_refused(files, tmp_path):
    from recbole_llara.data.tables import Tables, write_dataset

    inter = (["user_id:token", "item_id:token"], [("a", "1")])
    item = (["item_id:token", "title:token_seq"], [("1", "B \ud83d")])
    with pytest.raises(UserError, match="half of a surrogate pair"):
        write_dataset(Tables("shop", {"inter": inter, "item": item}), tmp_path / "out")


def test_what_is_written_is_what_a_run_reads(files, tmp_path, run, monkeypatch):
    """Quotes, tabs, line breaks and marks of every kind between a CSV file and the titles of a run."""
    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.data.dataset import prepare_data

    monkeypatch.chdir(tmp_path)
    titles = [*QUOTES, "tab\there", "two\nlines", "\ufeffmark", "c\u2028d", "e\x0bf"]
    items = range(1, len(titles) + 1)
    pd.DataFrame({"sku": items, "name": titles}).to_csv(files[1], index=False)
    rows = [f"u{user},{1 + (user + step) % len(titles)},{1000 * user + step}" for user in range(30) for step in range(6)]
    files[0].write_text("uid,sku,when\n" + "\n".join(rows) + "\n", encoding="utf-8")
    run(*_words(files, "--out", tmp_path / "out", "--dataset", "things"))
    keys = {"data_path": str(tmp_path / "out"), "protocol": "leave_one_out", "candidate_num": 4, "title_field": "title"}
    keys["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    catalogue = prepare_data(RunConfig("SASRec", "things", config_dict=keys)).catalogue
    by_id = dict(zip(catalogue.item_tokens, catalogue.titles, strict=True))
    assert [by_id[str(item)] for item in items] == [*QUOTES, "tab here", "two lines", "\ufeffmark", "c d", "e f"]
