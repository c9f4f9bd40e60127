"""A catalogue as people save it: one command takes it in, or an error names the option; what it then says to run, runs."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shlex
import zipfile

import pandas as pd
import pytest

from recbole_llara import cli
from recbole_llara.config.columns import columns_like
from recbole_llara.utils.errors import UserError

FIRST = ("Silent", "Amber", "Paper", "Hollow", "Winter")
SECOND = ("Harbor", "Lantern", "Orchard", "Compass", "Sparrow", "Meadow")
TITLES = [f"{first} {second}" for first in FIRST for second in SECOND]  # 30
IDS = [f"{number:010}" for number in range(30)]  # as ISBNs: with zeros before
ROWS = [
    (f"u{user}", IDS[(7 * user + step * (1 + user % 3)) % 30], 1000 * user + step) for user in range(20) for step in range(8)
]


def _text(header, rows, separator=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting).writerows([header, *rows])
    return file.getvalue()


def _plain(header, rows, separator):
    return "".join(separator.join(map(str, row)) + "\n" for row in [header, *rows])


def _save(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


ITEMS = list(zip(IDS, TITLES, strict=True))
INTER = _text(("user_id", "item_id", "timestamp"), ROWS)
ITEM = _text(("item_id", "title"), ITEMS)


@pytest.fixture
def convert(tmp_path, run):
    """Converts texts as files; the report."""

    def of(inter, item, *words, names=("shop.csv", "goods.csv"), encoding="utf-8"):
        files = ["--inter", _save(tmp_path / names[0], inter, encoding)]
        files += [] if item is None else ["--item", _save(tmp_path / names[1], item, encoding)]
        return run("generic", *files, "--dataset", "own", "--out", tmp_path / "out", "--overwrite", *words)

    return of


@pytest.fixture
def written(tmp_path, read):
    """Both written files: rows without their header, titles by id."""

    def files():
        header, rows = read(tmp_path / "out" / "own" / "own.inter")
        return header, rows, {row[0]: row[1] for row in read(tmp_path / "out" / "own" / "own.item")[1]}

    return files


def _same(written, times=None, titles=TITLES):
    _, rows, by_id = written()
    assert [tuple(row[:2]) for row in rows] == [row[:2] for row in ROWS]
    assert [float(row[2]) for row in rows] == [float(time) for time in times or [row[2] for row in ROWS]]
    assert by_id == dict(zip(IDS, titles, strict=True))


def _train(report, tmp_path, monkeypatch):
    """Run the command that a report ends with, at toy size."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(report.partition("next:\n")[2])
    assert words.pop(0) == "recbole-llara"
    tiny = {"epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "show_progress": False}
    files = {"checkpoint_dir": tmp_path / "saved", "result_file": tmp_path / "result.json", "use_gpu": False}
    assert cli.main([*words, *(f"--{key}={value}" for key, value in (tiny | files).items())]) == 0
    return json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))


# --- separators, quotes, encodings, compression, JSON -------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::"])
def test_separators_are_found(convert, written, separator):
    header = (("user_id", "item_id", "timestamp"), ("item_id", "title"))
    convert(_plain(header[0], ROWS, separator), _plain(header[1], ITEMS, separator))
    _same(written)


@pytest.mark.parametrize("separator", ["#", " "])
def test_a_separator_is_given(convert, written, separator):
    inter = _plain(("user_id", "item_id", "timestamp"), ROWS, separator)
    with pytest.raises(UserError, match=r"shop.csv: columns may be separated by .* found none of them in .*--separator"):
        convert(inter, ITEM)
    item = _text(("item_id", "title"), ITEMS, separator)
    convert(inter, item, "--separator", separator)
    _same(written)


def test_a_wrong_separator_is_told(convert):
    with pytest.raises(UserError, match="has the columns user_id,item_id,timestamp, .*--separator"):
        convert(INTER, ITEM, "--separator", ";")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_in_quotes(convert, written, separator):
    titles = [*TITLES[:-2], 'the "real" one; or, not', "two\nlines"]
    item = _text(("item_id", "title"), zip(IDS, titles, strict=True), separator, "\r\n", csv.QUOTE_ALL)
    convert(_text(("user_id", "item_id", "timestamp"), ROWS, separator, "\r\n", csv.QUOTE_ALL), item)
    _same(written, titles=[*titles[:-1], "two lines"])


def test_quotes_behind_a_backslash(convert, written):
    """As the release of Book-Crossing has them."""
    item = ITEM.replace("Silent Harbor", r'"A \"Silent\", loud Harbor"')
    convert(INTER, item)
    assert written()[2][IDS[0]] == 'A "Silent", loud Harbor'
    with pytest.raises(UserError, match="a quote opens a cell .*--quoting none.*--quoting escaped"):
        convert(INTER, item, "--quoting", "csv")


def test_open_quotes(convert, written):
    """A title such as ``"Weird``: text between tabs; between commas refused, unless told."""
    titles = ['"Weird', '12" record', *TITLES[2:]]
    convert(INTER, _plain(("item_id", "title"), zip(IDS, titles, strict=True), "\t"), names=("shop.csv", "goods.tsv"))
    _same(written, titles=titles)
    assert "WARNING" not in convert(INTER, _plain(("item_id", "title"), [*ITEMS[:-1], (IDS[29], 'the "real" one')], "\t"))
    report = convert(INTER, _text(("item_id", "title"), [*ITEMS[:-1], (IDS[29], 'the "real" one')], "\t"))
    assert "1 stand in quotes as CSV writers leave them" in report and "--quoting csv" in report
    item = _plain(("item_id", "title"), zip(IDS, titles, strict=True), ",")
    with pytest.raises(UserError, match=r"goods.csv, line 2: a quote opens .*--quoting none"):
        convert(INTER, item)
    convert(INTER, item, "--quoting", "none")
    _same(written, titles=titles)


ACCENTS = ["El Jardín de Señora", "Käthe", "Crème – brûlée", *TITLES[3:]]
EMOJI = ["霸王别姬 🎬", "مرحبا", "Ünï", *TITLES[3:]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_unicode_is_found_and_needs_no_word(convert, written, encoding):
    report = convert(INTER, _text(("item_id", "title"), zip(IDS, EMOJI, strict=True)), encoding=encoding)
    _same(written, titles=EMOJI)
    assert "WARNING" not in report


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_western_europe_is_found_and_told(convert, written, encoding):
    titles = [title.replace("–", "-") for title in ACCENTS] if encoding == "latin-1" else ACCENTS
    item = _text(("item_id", "title"), zip(IDS, titles, strict=True)).encode(encoding)
    report = convert(INTER, item)
    _same(written, titles=titles)
    assert "goods.csv is no UTF-8 and was read as cp1252" in report and "Jardín, Señora, Käthe" in report
    convert(INTER, item, "--encoding", encoding)
    _same(written, titles=titles)


@pytest.mark.parametrize(
    ("encoding", "title"),
    [("cp1251", "Война и мир"), ("gbk", "霸王别姬"), ("shift_jis", "千と千尋の神隠し"), ("utf-16-le", "ab")],
)
def test_other_alphabets_want_their_encoding(convert, written, encoding, title):
    titles = [title, *TITLES[1:]]
    item = _text(("item_id", "title"), zip(IDS, titles, strict=True)).encode(encoding)
    with pytest.raises(UserError, match="goods.csv: found .*--encoding"):
        convert(INTER, item)
    if encoding != "utf-16-le":  # in which ASCII is another text
        convert(INTER, item, "--encoding", encoding)
        _same(written, titles=titles)


def test_a_wrong_or_unknown_encoding_is_refused(convert):
    item = ITEM.replace("Silent", "Señor").encode("latin-1")
    with pytest.raises(UserError, match="found the byte 0xf1 in line 2, expected utf-8"):
        convert(INTER, item, "--encoding", "utf-8")
    with pytest.raises(UserError, match="encoding: found 'utf9'"):
        convert(INTER, item, "--encoding", "utf9")


def test_titles_damaged_before_are_told(convert):
    report = convert(INTER, ITEM.replace("Silent Harbor", "El JardÃ\xadn").replace("Silent Lantern", "Caf\ufffd"))
    assert "1 look encoded twice, such as 'El JardÃ\\xadn' for 'El Jardín'" in report and "1 hold U+FFFD" in report


def _zipped(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("folder/shop.csv", text)
        archive.writestr("__MACOSX/folder/._shop.csv", b"\0\1")
    return file.getvalue()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, _zipped])
@pytest.mark.parametrize("name", ["shop.csv", "shop.csv.gz"])
def test_compressed_files_are_known_by_their_bytes(convert, written, compress, name):
    convert(compress(INTER.encode()), ITEM, names=(name, "goods.csv"))
    _same(written)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_broken_download_is_refused(convert, compress):
    with pytest.raises(UserError, match="breaks off or is damaged"):
        convert(compress(INTER.encode() * 20)[:-30], ITEM)


def test_workbooks_and_archives_of_several_files_are_refused(convert):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(UserError, match="workbook of Excel.*CSV UTF-8"):
        convert(file.getvalue(), ITEM, names=("shop.xlsx", "goods.csv"))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", INTER)
        archive.writestr("b.csv", ITEM)
    with pytest.raises(UserError, match=r"holds 2 files \(a.csv, b.csv\), expected one: unpack it"):
        convert(file.getvalue(), ITEM)


def _json(form, objects):
    if form == "lines":
        return "".join(json.dumps(entry) + "\n" for entry in objects)
    return json.dumps(objects, indent=2 if form == "pretty" else None, ensure_ascii=False)


@pytest.mark.parametrize("form", ["lines", "array", "pretty"])
def test_json(convert, written, form):
    """Amazon's names, milliseconds, an object within, what is null, and an id of more digits than a float has."""
    reviews = [
        {"user_id": user, "asin": "A", "parent_asin": item, "rating": 4.5, "timestamp": 1_600_000_000_000 + time}
        for user, item, time in ROWS
    ]
    reviews[0]["user_id"] = 12345678901234567890
    goods = [{"parent_asin": item, "title": title, "categories": ["A", ["B"]], "price": None} for item, title in ITEMS]
    report = convert(_json(form, reviews), _json(form, goods), names=("reviews.jsonl", "meta.jsonl"))
    header, rows, by_id = written()
    assert header == ["user_id:token", "item_id:token", "timestamp:float", "rating:float"]
    assert rows[0] == ["12345678901234567890", IDS[0], "1600000000", "4.5"] and rows[1][2] == "1600000000.001"
    assert by_id == dict(ITEMS) and "2020-09-13 12:26:40" in report and "taken for ms" in report


def test_json_in_blocks(convert, written, monkeypatch):
    monkeypatch.setattr("recbole_llara.data.converters.raw_table._BLOCK", 37)
    lines = _json("lines", [dict(zip(("user_id", "item_id", "timestamp"), row, strict=True)) for row in ROWS])
    convert(lines, _json("pretty", [{"item_id": item, "title": title} for item, title in ITEMS]))
    _same(written)


def test_names_within_objects(convert, written):
    lines = [{"_id": {"$oid": user}, "item": {"id": item}, "t": {"$date": 5}} for user, item, _ in ROWS]
    convert(_json("lines", lines), ITEM, "--columns", "user_id=_id.$oid,item_id=item.id,timestamp=t.$date", "--duplicates=keep")
    assert [row[:2] for row in written()[1]] == [list(row[:2]) for row in ROWS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'user_id': 'a', 'item_id': 'b'}\n", "object 1 is no JSON .a literal of Python.*converter.md"),
        ('{"user_id": "a"}\n{"user_id": \n', "object 2 is no JSON"),
        ('[{"user_id": "a"}, 5]', "found '5' as object 2, expected"),
        ('{"user_id": "a"}\nnonsense\n', "object 2 is no JSON"),
    ],
)
def test_what_is_no_json_is_refused(convert, text, message):
    with pytest.raises(UserError, match=message):
        convert(text, ITEM, names=("a.jsonl", "goods.csv"))


# --- columns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["User-ID", "ISBN", "Book-Rating"], [["User-ID"], ["ISBN"], []]),
        (
            ["rating", "title", "asin", "parent_asin", "user_id", "timestamp"],
            [["user_id"], ["asin", "parent_asin"], ["timestamp"]],
        ),
        (["userId", "movieId", "rating", "timestamp"], [["userId"], ["movieId"], ["timestamp"]]),
        (["reviewerID", "asin", "unixReviewTime", "reviewTime"], [["reviewerID"], ["asin"], ["unixReviewTime", "reviewTime"]]),
        (["review_id", "user_id", "business_id", "stars", "date"], [["user_id"], ["business_id"], ["date"]]),
        (["InvoiceNo", "StockCode", "InvoiceDate", "CustomerID"], [["CustomerID"], ["StockCode"], ["InvoiceDate"]]),
        (["a", "b"], [[], [], []]),
    ],
)
def test_columns_by_their_names(columns, found):
    assert [columns_like(ours, columns) for ours in ("user_id", "item_id", "timestamp")] == found


def test_of_several_ids_the_one_of_both_files_is_taken(convert, written):
    rows = [(user, "x", item, time) for user, item, time in ROWS]
    inter = _text(("user_id", "asin", "parent_asin", "timestamp"), rows)
    convert(inter, ITEM.replace("item_id", "parent_asin"))
    _same(written)
    with pytest.raises(UserError, match="item_id may be any of asin, parent_asin.*--columns item_id=YOURS"):
        convert(inter, ITEM)


def test_ids_of_two_names(convert, written):
    inter, item = INTER.replace("item_id", "artistID"), ITEM.replace("item_id", "id").replace("title", "name")
    convert(inter, item)
    _same(written)
    item = ITEM.replace("item_id", "key")
    with pytest.raises(UserError, match="has the columns key, title, expected one for item_id"):
        convert(inter, item)
    convert(inter, item, "--columns", "item_id=artistID,item.item_id=key")
    _same(written)


def test_one_file_of_both(convert, written):
    titles = dict(ITEMS)
    inter = _text(("user", "item", "when", "product title"), [(*row, titles[row[1]]) for row in ROWS])
    convert(inter, None)
    _same(written)


def test_a_year_of_release_is_no_time(convert, read, tmp_path):
    convert(_text(("user", "item", "title", "year"), [(*row[:2], f"T {row[1]}", 1999) for row in ROWS]), None)
    assert read(tmp_path / "out" / "own" / "own.item")[1][0] == [IDS[0], f"T {IDS[0]}", "1999"]


def test_no_titles_at_all(convert, written):
    with pytest.raises(UserError, match="title: found no column of titles .*--item FILE.*--missing_titles=id"):
        convert(INTER, None)
    convert(INTER, None, "--missing_titles=id")
    _same(written, titles=IDS)


def test_files_without_a_header(convert, written):
    """As u.data and u.item of MovieLens have it."""
    inter = "".join(f"{user}\t{item}\t5\t{time}\n" for user, item, time in ROWS)
    item = "".join(f"{item}|{title}|more\n" for item, title in ITEMS)
    with pytest.raises(UserError, match="--inter_header NAME,NAME"):
        convert(inter, item)
    convert(inter, item, "--inter_header", "user_id,item_id,rating,timestamp", "--item_header", "item_id,title")
    _same(written)
    with pytest.raises(UserError, match="inter_header: found 5 names, expected at most the 4 columns"):
        convert(inter, item, "--inter_header", "a,b,c,d,e")


def test_atomic_files_go_in(convert, written):
    convert(INTER.replace("user_id,item_id,timestamp", "user_id:token,item_id:token,timestamp:float"), ITEM)
    _same(written)


def test_windows_are_no_interactions(convert):
    rows = [(user, f"{item} {item}", item) for user, item, _ in ROWS]
    with pytest.raises(UserError, match="found the column item_id_list .*--protocol=windows"):
        convert(_plain(("user_id:token", "item_id_list:token_seq", "item_id:token"), rows, "\t"), ITEM)


def test_a_name_with_properties_is_refused(convert):
    with pytest.raises(UserError, match="dataset: found the name 'steam'.*--dataset"):
        convert(INTER, ITEM, "--dataset", "steam")


# --- times --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_units_of_times(convert, written, unit, factor):
    times = [1_600_000_000 + row[2] for row in ROWS]
    report = convert(
        _text(("user_id", "item_id", "timestamp"), [(*row[:2], (1_600_000_000 + row[2]) * factor) for row in ROWS]), ITEM
    )
    _same(written, times)
    assert ("taken for" in report) == (unit != "s")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("%Y-%m-%d %H:%M:%S", []),
        ("%Y-%m-%dT%H:%M:%SZ", []),
        ("%d/%m/%Y %H:%M:%S", ["--time_format", "%d/%m/%Y %H:%M:%S"]),
        ("%a %b %d %H:%M:%S +0000 %Y", ["--time_format", "%a %b %d %H:%M:%S %z %Y"]),
    ],
)
def test_dates(convert, written, form, words):
    times = [1_600_000_000 + row[2] for row in ROWS]
    dates = pd.to_datetime(times, unit="s").strftime(form)
    inter = _text(("user_id", "item_id", "timestamp"), [(*row[:2], date) for row, date in zip(ROWS, dates, strict=True)])
    if words:
        with pytest.raises(UserError, match="timestamp: found .* in row 1 of .*--time_format"):
            convert(inter, ITEM)
    convert(inter, ITEM, *words)
    _same(written, times)


def test_no_times(convert, written):
    inter = _text(("user_id", "item_id"), [row[:2] for row in ROWS])
    assert "the order of the file counts as the order of time" in convert(inter, ITEM)
    _same(written, range(1, len(ROWS) + 1))


@pytest.mark.parametrize("name", ["purchase day", "x"])
def test_times_are_not_passed_over(convert, written, name):
    """By the column's name, or by its dates."""
    inter = _text(("user_id", "item_id", name), [(*row[:2], "2024-01-31") for row in ROWS])
    with pytest.raises(UserError, match=f"timestamp: .*but {name} may be one; expected --columns timestamp=YOURS"):
        convert(inter, ITEM)
    convert(inter, ITEM, "--columns", "timestamp=")
    _same(written, range(1, len(ROWS) + 1))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([20240131, 20240201], "found 20240131 .*--time_format=%Y%m%d.*--time_unit=s"),
        ([1_600_000_000, 1_600_000_000_000], "look like times of different units.*--time_unit="),
    ],
)
def test_times_that_may_be_two_things_are_refused(convert, times, message):
    inter = _text(("user_id", "item_id", "timestamp"), [(*row[:2], times[number % 2]) for number, row in enumerate(ROWS)])
    with pytest.raises(UserError, match=message):
        convert(inter, ITEM)


def test_days_as_numbers(convert, written):
    inter = _text(("user_id", "item_id", "timestamp"), [(*row[:2], 20240131) for row in ROWS])
    convert(inter, ITEM, "--time_format", "%Y%m%d")
    assert {row[2] for row in written()[1]} == {"1706659200"}
    convert(inter, ITEM, "--time_unit", "s")
    assert {row[2] for row in written()[1]} == {"20240131"}


def test_options_of_times_that_do_not_fit(convert):
    dates = _text(("user_id", "item_id", "timestamp"), [(*row[:2], "2024-01-31") for row in ROWS])
    with pytest.raises(UserError, match="time_unit: found times .* that are no numbers"):
        convert(dates, ITEM, "--time_unit", "ms")
    with pytest.raises(UserError, match="time_unit: found ms beside --time_format"):
        convert(dates, ITEM, "--time_unit", "ms", "--time_format", "%Y")


# --- what is left out -----------------------------------------------------------------------------------------------------


def test_items_without_a_title(convert, written):
    item = "".join(line for line in ITEM.splitlines(keepends=True) if not line.startswith(IDS[3])).replace(
        f"{IDS[5]},{TITLES[5]}", f"{IDS[5]}, "
    )
    lost = [row for row in ROWS if row[1] in (IDS[3], IDS[5])]
    with pytest.raises(UserError, match=rf"2 of 30 items have no title, .*{len(lost)} of 160 interactions.*=drop .*=id"):
        convert(INTER, item)
    report = convert(INTER, item, "--missing_titles=drop")
    _, rows, by_id = written()
    assert [tuple(row[:2]) for row in rows] == [row[:2] for row in ROWS if row not in lost] and len(by_id) == 28
    assert "left out: 2 of 30 items have no title" in report
    convert(INTER, item, "--missing_titles=id")
    assert written()[2] == dict(ITEMS) | {IDS[3]: IDS[3], IDS[5]: IDS[5]}


def test_ids_that_do_not_meet_are_shown(convert):
    item = _text(("item_id", "title"), [(int(item), title) for item, title in ITEMS])  # the zeros are lost
    with pytest.raises(UserError, match="30 of 30 items have no title, such as 0000000000.*has ids such as 0, 1, 2: are these"):
        convert(INTER, item)
    with pytest.raises(UserError, match="are these the same ids"):
        convert(INTER, item, "--missing_titles=drop")


def test_html_in_titles(convert, written):
    item = ITEM.replace(TITLES[3], "Tom &amp;amp; Vera&#39;s <b>Best</b><br/>Soap").replace(TITLES[4], "AT&T <3 R&D <Untitled>")
    report = convert(INTER, item)
    assert [written()[2][IDS[number]] for number in (3, 4)] == ["Tom & Vera's Best Soap", "AT&T <3 R&D <Untitled>"]
    assert "HTML in 1 became text" in report and "--html=keep" in report
    convert(INTER, item, "--html=keep")
    assert written()[2][IDS[3]] == "Tom &amp;amp; Vera&#39;s <b>Best</b><br/>Soap"


def test_duplicates(convert, written):
    rows = [*ROWS, ROWS[0], (*ROWS[0][:2], 10**6)]  # the same again, and the same item later
    inter = _text(("user_id", "item_id", "timestamp"), rows)
    report = convert(inter, ITEM)
    assert len(written()[1]) == 161 and "left out: 1 interactions that repeat user, item and time" in report
    assert "repeats: 1 of 161" in report
    convert(inter, ITEM, "--duplicates=keep")
    assert len(written()[1]) == 162
    with pytest.raises(UserError, match="1 of 162 interactions repeat .*the 161th; .*--duplicates=drop"):
        convert(inter, ITEM, "--duplicates=refuse")


def test_rows_without_an_id(convert, written):
    inter = INTER + f"NA,{IDS[0]},5\n,{IDS[0]},6\n"
    with pytest.raises(UserError, match="user_id: found 'NA' in row 161 of .*2 of 162 rows have none; --max_malformed=0.013"):
        convert(inter, ITEM)
    report = convert(inter, ITEM, "--max_malformed=0.013")
    _same(written)
    assert "left out: 2 interactions without user_id, the first has 'NA' in row 161" in report


def test_odd_ids_stay(convert, written):
    """Blanks, quotes, emoji, digits without end and zeros before are an id's own; white space around it is not."""
    odd = ["a b", 'x"y', "🎬", "9" * 30, "007", "1e5", "True", "[ItemEmb]"]
    rows = [(f" {odd[number % 8]}", *row[1:]) for number, row in enumerate(ROWS)]
    report = convert(_text(("user_id", "item_id", "timestamp"), rows), ITEM)
    assert [row[0] for row in written()[1]] == [row[0].strip() for row in rows]
    assert "white space at the ends of 8 was taken away" in report


def test_ids_that_would_become_one_are_refused(convert, written):
    rows = [("a\tb", *ROWS[0][1:]), ("a b", *ROWS[1][1:]), *ROWS]
    with pytest.raises(UserError, match=r"user_id: found 'a\\tb' and 'a b', which an atomic file cannot tell apart"):
        convert(_text(("user_id", "item_id", "timestamp"), rows), ITEM)
    assert "tabs and line breaks in 1 became spaces, the first: 'a\\tb'" in convert(
        _text(("user_id", "item_id", "timestamp"), [rows[0], *ROWS]), ITEM
    )
    assert written()[1][0][0] == "a b"


def test_ids_that_a_spreadsheet_rounded_are_told(convert):
    inter, item = (text.replace(IDS[0], "9.78E+12") for text in (INTER, ITEM))
    assert "item_id: 1 look like 9.78E+12" in convert(inter, item)


def test_ratings(convert, written):
    inter = _text(
        ("user_id", "item_id", "timestamp", "rating"), [(*row, "" if number else 3.5) for number, row in enumerate(ROWS)]
    )
    assert "rating: 159 are empty" in convert(inter, ITEM)
    assert [row[3] for row in written()[1]] == ["3.5"] + [""] * 159
    with pytest.raises(UserError, match="rating: found 'like'.*--columns rating="):
        convert(inter.replace("3.5", "like"), ITEM)
    convert(inter.replace("3.5", "like"), ITEM, "--columns", "rating=")
    _same(written)


def test_several_titles_of_an_item(convert, written):
    report = convert(INTER, ITEM + f"{IDS[0]},Another Harbor\n")
    assert written()[2][IDS[0]] == TITLES[0] and "1 items have several; the first is kept" in report
    reviews = _text(
        ("user_id", "item_id", "timestamp", "title"), [(*row, f"Great {number}") for number, row in enumerate(ROWS)]
    )
    assert "most items have several: is that column the title of a review?" in convert(reviews, None)


# --- the whole way ----------------------------------------------------------------------------------------------------------

CASES = {
    "book-crossing": (
        _text(("User-ID", "ISBN", "Book-Rating"), [(user[1:], item, 0) for user, item, _ in ROWS], ";", "\r\n", csv.QUOTE_ALL),
        _text(("ISBN", "Book-Title", "Book-Author"), [(*row, "A. Writer") for row in zip(IDS, ACCENTS, strict=True)], ";", "\r\n", csv.QUOTE_ALL).encode("cp1252"),
        [],
    ),
    "amazon-json": (
        gzip.compress(_json("lines", [{"user_id": user, "parent_asin": item, "rating": 4.0, "timestamp": 1_600_000_000_000 + time} for user, item, time in ROWS]).encode()),
        _json("lines", [{"parent_asin": item, "title": title if item != IDS[7] else None} for item, title in ITEMS]),
        ["--missing_titles=drop"],
    ),
    "missing-titles": (INTER, _text(("item_id", "title"), [row for row in ITEMS if row[0] not in IDS[3:6]]), ["--missing_titles=id"]),
    "html-titles": (INTER, ITEM.replace(TITLES[3], "Tom &amp; Vera&#39;s &quot;Best&quot; Soap"), []),
    "bom": ("\ufeff" + INTER, "\ufeff" + ITEM, []),
    "emoji": (INTER, _text(("item_id", "title"), zip(IDS, EMOJI, strict=True)), []),
    "open-quote": (INTER, _plain(("item_id", "title"), [(IDS[0], '"Crooked Tales'), *ITEMS[1:]], "\t"), []),
    "atomic": (_plain(("user_id:token", "item_id:token", "timestamp:float"), ROWS, "\t"), _plain(("item_id:token", "title:token_seq"), ITEMS, "\t"), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_report_says_to_run_runs(case, convert, written, tmp_path, monkeypatch):
    inter, item, words = CASES[case]
    report = convert(inter, item, *words)
    tested, validated = (int(re.search(rf"(\d+) {what} rows", report)[1]) for what in ("test", "validation"))
    result = _train(report, tmp_path, monkeypatch)
    assert result["n"] == tested == validated == 20
    _, rows, by_id = written()
    assert result["dataset"] == "own" and len({row[1] for row in rows}) == len(by_id)


@pytest.mark.parametrize("n_items", [3, 4, 7, 11, 30])
@pytest.mark.parametrize("lengths", [(2, 3, 4, 9), (3, 3, 3, 3), (30, 5, 4, 3), (33, 33, 5, 5)])
def test_the_protocol_that_is_said_to_fit_fits(lengths, n_items, convert, tmp_path, monkeypatch):
    """Short histories, small catalogues, users who leave few negatives, and users who have had every item."""
    rows = [(f"u{user}", IDS[(user + step) % n_items], step) for user in range(20) for step in range(lengths[user % 4])]
    report = convert(_text(("user_id", "item_id", "timestamp"), rows), ITEM)
    result = _train(report, tmp_path, monkeypatch)
    if "--protocol=leave_one_out" in report:
        assert result["n"] == 5 * sum(length >= 3 for length in lengths)
    else:
        assert "no user has 4 interactions" in report


def test_a_dataset_that_no_protocol_fits(convert, written):
    report = convert(_text(("user_id", "item_id"), [(f"u{user}", IDS[user]) for user in range(20)]), ITEM)
    assert "no protocol fits: 20 users with 1 interactions at most" in report and "next:" not in report
    assert len(written()[1]) == 20


def test_nothing_is_written_where_it_cannot_be(tmp_path, run):
    files = ["--inter", _save(tmp_path / "shop.csv", INTER), "--item", _save(tmp_path / "goods.csv", ITEM)]
    for words, message in (
        (["--out", tmp_path, "--dataset", "a/b"], "dataset: found 'a/b', expected the name of a folder"),
        (["--out", tmp_path / "shop.csv"], "out: found a file at .*shop.csv"),
        (["--out", tmp_path, "--dataset", "goods.csv", "--overwrite"], "out: found a file at .*goods.csv"),
    ):
        with pytest.raises(UserError, match=message):
            run("generic", *files, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["goods.csv", "shop.csv"]


def test_an_older_dataset_is_told_of_before_all_is_read(tmp_path, run):
    (tmp_path / "out" / "shop").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        run("generic", "--inter", tmp_path / "shop.csv", "--item", tmp_path / "goods.csv", "--out", tmp_path / "out")
