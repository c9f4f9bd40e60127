"""Datasets, candidate files and config files that are broken: refused by file, line and column before anything is trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import assert_refused, run
from synthetic_data import write_toy_dataset

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

Change = Callable[[Path], object]
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(tmp_path)
    return write_toy_dataset(tmp_path)


def rewrite(name: str, change: Callable[[list[str]], list[str]], encoding: str = "utf-8") -> Change:
    """A change of the lines of a file of the dataset."""

    def apply(folder: Path) -> None:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        (folder / name).write_text("\n".join(change(lines)) + "\n", encoding=encoding)

    return apply


def line_3(text: str) -> Change:
    """Another third line of the interactions."""
    return rewrite("toy.inter", lambda lines: [*lines[:2], text, *lines[3:]])


def header(text: str) -> Change:
    """Another header of the interactions."""
    return rewrite("toy.inter", lambda lines: [text, *lines[1:]])


def only(count: int) -> Change:
    """The first interactions of each user, so many."""

    def change(lines: list[str]) -> list[str]:
        kept: dict[str, list[str]] = {}
        for line in lines[1:]:
            kept.setdefault(line.split("\t")[0], []).append(line)
        return [lines[0], *(line for user in kept.values() for line in user[:count])]

    return rewrite("toy.inter", change)


# (model, change, further arguments, what the line says: file, found, expected)
DATASETS = {
    "no interactions file": ("SASRec", lambda folder: (folder / "toy.inter").unlink(), [], ["dataset: found 'toy'", "toy.inter"]),
    "an empty file": ("SASRec", rewrite("toy.inter", lambda lines: []), [], ["toy.inter", "the column ''", "NAME:TYPE"]),
    "a header alone": ("SASRec", rewrite("toy.inter", lambda lines: lines[:1]), [], ["toy.inter", "found no line below the first"]),
    "a header without types": (
        "SASRec", header("user_id\titem_id\ttimestamp"), [], ["toy.inter", "found the column 'user_id'", "expected NAME:TYPE"],
    ),
    "an unknown type": (
        "SASRec", header("user_id:token\titem_id:text\ttimestamp:float"), [], ["toy.inter", "'item_id:text'", "token_seq"],
    ),
    "commas": ("SASRec", header("user_id:token,item_id:token,timestamp:float"), [], ["toy.inter", "field_separator ('\\t')"]),
    "a column twice": (
        "SASRec", header("user_id:token\tuser_id:token\ttimestamp:float"), [], ["toy.inter", "'user_id' twice", "expected it once"],
    ),
    "no item column": (
        "SASRec", header("user_id:token\titem:token\ttimestamp:float"), ["--load_col=~"],
        ["toy.inter: found the columns user_id, item, timestamp", "expected item_id (ITEM_ID_FIELD)"],
    ),
    "no user column": (
        "GRU4Rec", header("user:token\titem_id:token\ttimestamp:float"), ["--load_col=~"],
        ["toy.inter: found the columns user, item_id, timestamp", "expected user_id (USER_ID_FIELD)"],
    ),
    "no time column": (
        "Caser", header("user_id:token\titem_id:token\ttime:float"), ["--load_col=~"],
        ["toy.inter: found the columns user_id, item_id, time", "expected timestamp (TIME_FIELD)"],
    ),
    "a time of text": (
        "SASRec", header("user_id:token\titem_id:token\ttimestamp:token"), [],
        ["toy.inter", "found timestamp:token (TIME_FIELD)", "expected timestamp:float"],
    ),
    "users as numbers": (
        "SASRec", header("user_id:float\titem_id:token\ttimestamp:float"), [],
        ["toy.inter", "found user_id:float (USER_ID_FIELD)", "expected user_id:token"],
    ),
    "a short line": ("SASRec", line_3("u0\ti1"), [], ["toy.inter: found 2 columns in line 3", "expected the 3"]),
    "a long line": ("SASRec", line_3("u0\ti1\t5\t6"), [], ["toy.inter: found 4 columns in line 3", "expected the 3"]),
    "a time that is no number": (
        "SASRec", line_3("u0\ti1\t2024-01-01"), [], ["toy.inter: found '2024-01-01' as timestamp in line 3", "expected a number"],
    ),
    "no time": ("SASRec", line_3("u0\ti1\t"), [], ["toy.inter: found 1 rows without a finite timestamp", "line 3", "TIME_FIELD"]),
    "a time that is NaN": ("SASRec", line_3("u0\ti1\tnan"), [], ["toy.inter: found 1 rows without a finite timestamp", "line 3"]),
    "an infinite time": ("SASRec", line_3("u0\ti1\tinf"), [], ["toy.inter: found 1 rows without a finite timestamp", "line 3"]),
    "a date for a number": (
        "SASRec", line_3("u0\ti1\t2024_01_01"), [], ["toy.inter: found '2024_01_01' as timestamp in line 3", "expected a number"],
    ),
    "two files joined": (
        "SASRec", line_3("\ufeffu0\ti1\t5"), [], ["toy.inter: found a byte order mark (U+FEFF) before line 3", "two files joined"],
    ),
    "an item that ends in NUL": (
        "SASRec", line_3("u0\ti1\0\t5"), [], ["toy.inter: found the character NUL in item_id of row 2", "expected text"],
    ),
    "an item called [PAD]": (
        "SASRec", line_3("u0\t[PAD]\t5"), [], ["toy.inter: found '[PAD]' as item_id (ITEM_ID_FIELD)", "rename it"],
    ),
    "a user called [PAD]": (
        "SASRec", line_3("[PAD]\ti1\t5"), [], ["toy.inter: found '[PAD]' as user_id (USER_ID_FIELD)", "rename it"],
    ),
    "no item": ("SASRec", line_3("u0\t\t5"), [], ["toy.inter: found 1 rows without item_id", "line 3", "ITEM_ID_FIELD"]),
    "an item called NA": ("SASRec", line_3("u0\tNA\t5"), [], ["toy.inter: found 1 rows without item_id", "line 3", "NA"]),
    "another encoding": (
        "SASRec", rewrite("toy.inter", lambda lines: [*lines[:2], "u0\ti\xe9\t5", *lines[3:]], "latin-1"), [],
        ["toy.inter: found the byte 0xe9 in line 3", "expected utf-8 (key encoding)"],
    ),
    "users with one interaction": ("SASRec", only(1), [], ["train split has no rows", "40 users", "leave_one_out"]),
    "users with two": ("SASRec", only(2), [], ["split has no rows", "40 users"]),
    "too few users for user_time": (
        "SASRec", rewrite("toy.inter", lambda lines: lines[:49]), ["--protocol=llara"],
        ["valid split has no rows", "4 users", "split_ratio [0.8, 0.1, 0.1]"],
    ),
    "histories too short": ("SASRec", only(3), ["--protocol=llara"], ["train split has no rows", "min_train_history 3"]),
    "fewer items than candidates": (
        "SASRec", rewrite("toy.inter", lambda lines: [line for line in lines if "\ti1" in line or ":" in line]), ["--topk=1"],
        ["items are left as negatives", "expected at least 9", "lower candidate_num"],
    ),
    # --- titles
    "no item file": (
        "LLaRA", lambda folder: (folder / "toy.item").unlink(), [], ["No file", "toy.item", "expected", "column 'title' (title_field)"],
    ),
    "no item file for MoRec": ("MoRec", lambda folder: (folder / "toy.item").unlink(), [], ["No file", "toy.item", "title_field"]),
    "no title column": (
        "LLaRA", lambda folder: None, ["--title_field=name"], ["toy.item has the columns item_id, title", "expected 'name'", "title_field"],
    ),
    "no id column": (
        "LLaRA", rewrite("toy.item", lambda lines: ["id:token\ttitle:token_seq", *lines[1:]]), [],
        ["toy.item has the columns id, title", "expected 'item_id'"],
    ),
    "an empty title": (
        "LLaRA", rewrite("toy.item", lambda lines: [*lines[:4], "i3\t ", *lines[5:]]), [],
        ["1 of 60 items have no title", "toy.item", "i3", "Every item needs one"],
    ),
    "a title with a tab": (
        "LLaRA", rewrite("toy.item", lambda lines: [*lines[:4], "i3\tcut\there", *lines[5:]]), [],
        ["toy.item: found 3 columns in line 5", "expected the 2 of the first line (item_id, title)"],
    ),
    "an item without a line": (
        "LLaRA", rewrite("toy.item", lambda lines: lines[:-1]), [], ["1 of 60 items have no title", "toy.item", "i59"],
    ),
    "titles of another encoding": (
        "LLaRA", rewrite("toy.item", lambda lines: lines, "latin-1"), [],
        ["toy.item: found the byte 0xe9 in line 2", "expected utf-8 (key encoding)"],
    ),
    "an empty item file": ("LLaRA", lambda folder: (folder / "toy.item").write_text(""), [], ["toy.item", "expected 'item_id'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_a_broken_dataset_is_refused(
    name: str, toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, change, arguments, parts = DATASETS[name]
    change(tmp_path / "toy")
    assert_refused(capsys, run(model, toy, arguments), parts, tmp_path / "saved")


def times(text: Callable[[int], str]) -> Change:
    """Other times, each a function of its row's number."""

    def change(lines: list[str]) -> list[str]:
        rows = (line.rpartition("\t")[0] for line in lines[1:])
        return [lines[0], *(f"{row}\t{text(number)}" for number, row in enumerate(rows))]

    return rewrite("toy.inter", change)


ODD_BUT_RIGHT = {
    "times that repeat": times(lambda number: "7"),
    "times before 1970": times(lambda number: str(number - 9000)),
    "times as decimals": times(lambda number: f"{number}.25"),
    "quotes": rewrite("toy.inter", lambda lines: [line.replace("u1\t", '"u1\t') for line in lines]),
    "a byte order mark": lambda folder: (folder / "toy.inter").write_bytes(
        b"\xef\xbb\xbf" + (folder / "toy.inter").read_bytes()
    ),
    "blank lines": rewrite("toy.inter", lambda lines: [*lines[:5], "", *lines[5:], ""]),
}


@pytest.mark.parametrize("name", ODD_BUT_RIGHT)
def test_what_is_odd_but_right_runs(name: str, toy: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    ODD_BUT_RIGHT[name](folder)
    assert run("Popularity", {**toy, "epochs": 0, "max_eval_rows": 0}) == 0
    rows = [line.split("\t") for line in (folder / "toy.inter").read_text(encoding="utf-8-sig").splitlines()[1:] if line]
    last = {user: item for user, item, _ in rows}
    (cases,) = (tmp_path / "saved").glob("Popularity-*/cases.jsonl")
    targets = {case["user"]: case["target"] for case in map(json.loads, cases.read_text(encoding="utf-8").splitlines())}
    assert targets == last  # in the order of the file, which is that of its times


def candidates(rows: list[list[str]], columns: int = 10) -> str:
    lines = [["user_id", "item_id", *(f"candidate_{number + 1}" for number in range(columns))], *rows]
    return "".join("\t".join(line) + "\n" for line in lines)


TEN = [f"i{number}" for number in range(10)]
CANDIDATE_FILES = {
    "empty": (b"", ["own.tsv (candidate_file)", "expected the header user_id, item_id"]),
    "another number": (candidates([], 9).encode(), ["own.tsv (candidate_file)", "candidate_10 (candidate_num)"]),
    "no text": (b"\xff\xfe\x00", ["own.tsv: found the byte 0xff", "expected utf-8"]),
    "a short line": (candidates([["u0", "i1", "i2"]]).encode(), ["own.tsv", "have not the 12 columns", "line 2"]),
    "no target": (candidates([["u0", "i20", *TEN]]).encode(), ["own.tsv", "lack the target among the candidates", "line 2"]),
    "an unknown item": (
        candidates([["u0", "i1", *TEN[:9], "i99"]]).encode(),
        ["own.tsv", "name an item the protocol does not keep"],
    ),
    "a candidate twice": (candidates([["u0", "i1", *TEN[:9], "i1"]]).encode(), ["own.tsv", "repeat a candidate", "line 2"]),
    "rows missing": (
        candidates([["u0", "i1", *TEN]]).encode(),
        ["own.tsv (candidate_file) lacks", "valid rows", "expected a line"],
    ),
}


@pytest.mark.parametrize("name", CANDIDATE_FILES)
def test_a_broken_candidate_file_is_refused(
    name: str, toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, parts = CANDIDATE_FILES[name]
    (tmp_path / "own.tsv").write_bytes(content)
    assert_refused(capsys, run("SASRec", toy, ["--candidate_file=own.tsv"]), parts, tmp_path / "saved")


CONFIG_FILES = {
    "a list": (b"- epochs\n- 3\n", ["mine.yaml", "holds a list", "expected 'key: value' lines"]),
    "a text": (b"epochs\n", ["mine.yaml", "holds a str", "expected 'key: value' lines"]),
    "a Python tag": (b"epochs: !!python/object/apply:os.getcwd []\n", ["mine.yaml", "line 1", "python/object/apply:os.getcwd"]),
    "a key twice": (b"epochs: 1\nseed: 3\nepochs: 2\n", ["mine.yaml", "line 3", "key 'epochs' stands twice"]),
    "no YAML": (b"epochs: [1\nseed: 3\n", ["mine.yaml", "line 2"]),
    "a tab": (b"eval_args:\n\torder: TO\n", ["mine.yaml", "line 2"]),
    "no text": (b"\xff\xfe\x00", ["mine.yaml", "cannot be read"]),
    "a control character": (b"epochs: \x01\n", ["mine.yaml", "is no valid YAML"]),
    "a number as key": (b"1: epochs\n", ["mine.yaml", "the key 1 is a int", "expected text"]),
    "an unknown key": (b"epohcs: 1\n", ["unknown key 'epohcs' (mine.yaml)", "did you mean 'epochs'"]),
    "a wrong value": (b"stopping_step: many\n", ["stopping_step: found 'many' (str)", "expected int"]),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_broken_config_file_is_refused(
    name: str, toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, parts = CONFIG_FILES[name]
    (tmp_path / "mine.yaml").write_bytes(content)
    assert_refused(capsys, run("SASRec", toy, ["--config_files=mine.yaml"]), parts, tmp_path / "saved")


def test_a_config_file_that_is_a_folder_is_refused(toy: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run("SASRec", toy, ["--config_files=toy"]), ["config file 'toy' cannot be read"])


@pytest.mark.parametrize("name", ["log", "log_tensorboard"])
def test_a_file_in_the_place_of_recboles_logs_is_refused(
    name: str, toy: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    with pytest.raises(UserError, match=f"{name}: .* move away what is in its place"):
        run_recbole_llara("Popularity", "toy", config_dict=toy)


WINDOWS = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
READY_MADE = {
    "no history column": ("user_id:token\titem_id:token\nu0\ti1\n", ["toy.train.inter", "expected columns", "'item_id_list'"]),
    "a history of one name": (
        WINDOWS.replace("token_seq", "token") + "u0\ti1\ti2\n",
        ["found item_id_list:token", "item_id_list:token_seq"],
    ),
    "no history": (WINDOWS + "u0\t\ti2\n", ["row 1 of the windows", "has no history", "expected at least one item"]),
    "zeros at the beginning": (
        WINDOWS + "u0\t0 0 i1\ti2\nu1\t0 i1 i2\ti3\nu2\ti1 i2 i3\ti4\n",
        ["toy.*.inter: found '0' 3 times in 2 of", "only at their beginning", "all 3 long", "delete it from item_id_list"],
    ),
    "pads at the end": (
        WINDOWS + "u0\ti1 pad pad\ti2\nu1\ti1 i2 pad\ti3\nu2\ti1 i2 i3\ti4\n",
        ["found 'pad' 3 times in 2 of", "only at their end", "delete it from item_id_list"],
    ),
    "a history that is numbered apart": (
        WINDOWS + "u0\ti1\ti2\n",
        ["alias_of_item_id: found ['x']", "expected item_id_list (ITEM_ID_FIELD and LIST_SUFFIX)"],
    ),
    "no rows": (WINDOWS, ["toy.train.inter", "found no line below the first"]),
}


@pytest.mark.parametrize("name", READY_MADE)
def test_broken_windows_are_refused(
    name: str, toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, parts = READY_MADE[name]
    for split in ("train", "valid", "test"):
        whole = "".join(f"u{user}\ti{user} i{user + 1}\ti{user + 2}\n" for user in range(40))
        (tmp_path / "toy" / f"toy.{split}.inter").write_text(content if split == "train" else WINDOWS + whole)
    toy.pop("load_col")
    arguments = ["--protocol=windows", *(["--alias_of_item_id=[x]"] if "numbered apart" in name else [])]
    assert_refused(capsys, run("SASRec", toy, arguments), parts, tmp_path / "saved")


RIGHT_WINDOWS = {
    "an item 0 among others": [("0 i1 i2", "i3"), ("0 i4 i5", "i6"), ("i5 i6", "i7")],
    "an item taken twice at first": [("0 0 i2", "i3"), ("0 i4", "i6"), ("i5 i6", "0")],
    "a history of one item": [("0 0 0", "i3"), ("i4", "i6"), ("i5 i6", "i2")],
}


@pytest.mark.parametrize("fields", [("user_id", "item_id", "_list"), ("who", "p_id", "_seq")], ids=["usual", "own"])
@pytest.mark.parametrize("name", RIGHT_WINDOWS)
def test_windows_are_read_as_they_stand(
    name: str, fields: tuple[str, str, str], toy: dict[str, object], tmp_path: Path
) -> None:
    user, item, suffix = fields
    header = f"{user}:token\t{item}{suffix}:token_seq\t{item}:token\n"
    rows = [*RIGHT_WINDOWS[name], *((f"i{number}", f"i{number + 1}") for number in range(20))]
    for split in ("train", "valid", "test"):
        lines = "".join(f"{split}{number}\t{history}\t{target}\n" for number, (history, target) in enumerate(rows))
        (tmp_path / "toy" / f"toy.{split}.inter").write_text(header + lines)
    toy |= {"title_field": None, "max_eval_rows": 0, "candidate_num": 5, "USER_ID_FIELD": user, "ITEM_ID_FIELD": item}
    toy.pop("load_col")
    assert run("SASRec", toy, ["--protocol=windows", f"--LIST_SUFFIX={suffix}"]) == 0
    (path,) = (tmp_path / "saved").glob("SASRec-*/cases.jsonl")
    cases = {case["user"]: case for case in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert [cases[f"test{number}"]["target"] for number in range(len(rows))] == [target for _, target in rows]
    assert all(len(case["candidates"]) == 5 for case in cases.values())
