"""The candidate TSV: what is written is read back, its hash is the file's, and faults are named."""

import hashlib

import numpy as np
import pytest

from recbole_llara.data.candidates import CandidateRows, candidate_sha256, load_candidate_file, save_candidates
from recbole_llara.utils.errors import UserError

USERS = np.array(["[PAD]", "ann", "bob b", "cyd"])
ITEMS = np.array(["[PAD]", *(f"i {number}" for number in range(1, 8))])
USER_IDS = {token: number for number, token in enumerate(USERS)}
ITEM_IDS = {token: number for number, token in enumerate(ITEMS)}
ROWS = CandidateRows(np.array([3, 1, 2]), np.array([7, 2, 2]), np.array([[1, 7, 3], [2, 5, 6], [4, 3, 2]]))


def write(folder, lines, candidate_num=3):
    header = ["user_id", "item_id", *(f"candidate_{number}" for number in range(1, candidate_num + 1))]
    path = folder / "own.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in [header, *lines]), encoding="utf-8")
    return path


def test_what_is_saved_is_read_back_in_any_order(tmp_path):
    path, _ = save_candidates(tmp_path / "candidates", "toy-test", ROWS, USERS, ITEMS)
    own = load_candidate_file(path, USER_IDS, ITEM_IDS, 3)
    order = [2, 0, 1, 0]
    assert (own.look_up(ROWS.users[order], ROWS.targets[order], "test") == ROWS.candidates[order]).all()


def test_ids_hold_what_other_readers_break_lines_at(tmp_path):
    """All that str.splitlines breaks at, but for the line's own end."""
    signs = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028"]
    items = np.array(["[PAD]", *(f"i{sign}{number}" for number, sign in enumerate(signs))])
    users = np.array(["[PAD]", "a\u2029nn", "bob\x85", "\u2028cyd"])
    path, _ = save_candidates(tmp_path / "candidates", "toy-test", ROWS, users, items)
    ids = {token: number for number, token in enumerate(items)}
    for name, ending in (("own.tsv", b"\n"), ("windows.tsv", b"\r\n")):
        own = tmp_path / name
        own.write_bytes(path.read_bytes().replace(b"\n", ending))
        read = load_candidate_file(own, {token: number for number, token in enumerate(users)}, ids, 3)
        assert (read.look_up(ROWS.users, ROWS.targets, "test") == ROWS.candidates).all()


def test_files_joined_by_cat_are_read(tmp_path):
    path, _ = save_candidates(tmp_path, "toy-test", ROWS, USERS, ITEMS)
    valid = CandidateRows(np.array([3]), np.array([1]), np.array([[1, 2, 3]]))
    other, _ = save_candidates(tmp_path, "toy-valid", valid, USERS, ITEMS)
    joined = tmp_path / "joined.tsv"
    joined.write_bytes(path.read_bytes() + other.read_bytes())
    assert len(load_candidate_file(joined, USER_IDS, ITEM_IDS, 3).keys) == 4


def test_the_hash_is_that_of_the_file_and_of_external_ids(tmp_path):
    path, sha256 = save_candidates(tmp_path, "toy-test", ROWS, USERS, ITEMS)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256 == candidate_sha256(ROWS, USERS, ITEMS)
    assert sha256[:16] in path.name

    renumber = np.array([0, 4, 3, 2, 1, 7, 6, 5])  # other internal ids of the same items
    renamed = np.empty_like(ITEMS)
    renamed[renumber] = ITEMS
    same = CandidateRows(ROWS.users, renumber[ROWS.targets], renumber[ROWS.candidates])
    assert candidate_sha256(same, USERS, renamed) == sha256

    moved = CandidateRows(ROWS.users, ROWS.targets, ROWS.candidates[:, ::-1])
    assert candidate_sha256(moved, USERS, ITEMS) != sha256


def test_an_equal_file_is_reused_and_a_changed_one_refused(tmp_path):
    path, sha256 = save_candidates(tmp_path, "toy-test", ROWS, USERS, ITEMS)
    written = path.stat().st_mtime_ns
    assert save_candidates(tmp_path, "toy-test", ROWS, USERS, ITEMS) == (path, sha256)
    assert path.stat().st_mtime_ns == written and [file.name for file in tmp_path.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"was changed.*delete"):
        save_candidates(tmp_path, "toy-test", ROWS, USERS, ITEMS)


def test_ids_the_format_cannot_carry_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'i\\t1'"):
        save_candidates(tmp_path, "toy", ROWS, USERS, np.where(ITEMS == "i 1", "i\t1", ITEMS))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([["ann", "i 1", "i 1", "i 2", "i 9"]], "name an item.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "i 3"], ["cyd", "i 1", "i 2", "i 2", "i 1"]], "repeat a candidate.*line 3"),
        ([["ann", "i 1", "i 4", "i 2", "i 3"]], "lack the target.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "[PAD]"]], "padding.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "i 3"], ["ann", "i 1", "i 1", "i 2", "i 4"]], "earlier line.*line 3"),
        ([["ann", "i 1", "i 1", "i 2"]], "5 columns.*line 2"),
        ([["dan", "i 1", "i 1", "i 2", "i 3"]], "no line for any user"),
        ([], "no line for any user"),
    ],
)
def test_faulty_lines_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        load_candidate_file(write(tmp_path, lines), USER_IDS, ITEM_IDS, 3)


def test_a_wrong_number_of_candidates_names_the_key(tmp_path):
    with pytest.raises(UserError, match="candidate_num"):
        load_candidate_file(write(tmp_path, [], candidate_num=2), USER_IDS, ITEM_IDS, 3)
    with pytest.raises(UserError, match="candidate_file"):
        load_candidate_file(tmp_path / "none.tsv", USER_IDS, ITEM_IDS, 3)


def test_rows_the_file_lacks_are_counted(tmp_path):
    own = load_candidate_file(write(tmp_path, [["ann", "i 1", "i 1", "i 2", "i 3"]]), USER_IDS, ITEM_IDS, 3)
    with pytest.raises(UserError, match="lacks 2 of the 3 test rows"):
        own.look_up(np.array([1, 2, 3]), np.array([1, 1, 7]), "test")


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = write(tmp_path, [["ann", "i 1", "i 1", "i 2", "i 3"]])
    plain = load_candidate_file(path, USER_IDS, ITEM_IDS, 3)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.array_equal(load_candidate_file(path, USER_IDS, ITEM_IDS, 3).candidates, plain.candidates)
