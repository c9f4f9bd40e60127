"""The candidate TSV: what is written is read back, its hash is the file's, and faults are named."""

import hashlib

import numpy as np
import pytest

from recbole_llara.data.candidates import read_candidates, save_candidates
from recbole_llara.data.rows import Rows
from recbole_llara.utils.errors import UserError

USERS = np.array(["[PAD]", "ann", "bob b", "cyd"])
ITEMS = np.array(["[PAD]", *(f"i {number}" for number in range(1, 8))])
USER_IDS = {token: number for number, token in enumerate(USERS)}
ITEM_IDS = {token: number for number, token in enumerate(ITEMS)}
CANDIDATES = np.array([[1, 7, 3], [2, 5, 6], [4, 3, 2]])


def rows_of(users, targets):
    return Rows(np.array(users), np.array(targets), np.zeros((len(users), 1), np.int64), np.arange(len(users)))


ROWS = rows_of([3, 1, 2], [7, 2, 2])


def save(folder, rows=ROWS, candidates=CANDIDATES, users=USERS, items=ITEMS, stem="toy-test"):
    return save_candidates(folder, stem, rows, candidates, users, items)


def read(path, rows, candidate_num=3, users=USER_IDS, items=ITEM_IDS):
    return read_candidates(path, rows, "test", candidate_num, users, items)


def write(folder, lines, candidate_num=3):
    header = ["user_id", "item_id", *(f"candidate_{number}" for number in range(1, candidate_num + 1))]
    path = folder / "own.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in [header, *lines]), encoding="utf-8")
    return path


def test_what_is_saved_is_read_back_in_any_order(tmp_path):
    path, _ = save(tmp_path / "candidates")
    order = [2, 0, 1, 0]
    assert (read(path, rows_of(ROWS.users[order], ROWS.targets[order])) == CANDIDATES[order]).all()


def test_ids_hold_what_other_readers_break_lines_at(tmp_path):
    """All that str.splitlines breaks at, but for the line's own end."""
    signs = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028"]
    items = np.array(["[PAD]", *(f"i{sign}{number}" for number, sign in enumerate(signs))])
    users = np.array(["[PAD]", "a\u2029nn", "bob\x85", "\u2028cyd"])
    path, _ = save(tmp_path / "candidates", users=users, items=items)
    user_ids, item_ids = ({token: number for number, token in enumerate(tokens)} for tokens in (users, items))
    for name, ending in (("own.tsv", b"\n"), ("windows.tsv", b"\r\n")):
        own = tmp_path / name
        own.write_bytes(path.read_bytes().replace(b"\n", ending))
        assert (read(own, ROWS, users=user_ids, items=item_ids) == CANDIDATES).all()


def test_files_joined_by_cat_are_read(tmp_path):
    path, _ = save(tmp_path)
    valid, shown = rows_of([3], [1]), np.array([[1, 2, 3]])
    other, _ = save(tmp_path, valid, shown, stem="toy-valid")
    joined = tmp_path / "joined.tsv"
    joined.write_bytes(path.read_bytes() + other.read_bytes())
    assert (read(joined, ROWS) == CANDIDATES).all() and (read(joined, valid) == shown).all()


def test_the_hash_is_that_of_the_file_and_of_external_ids(tmp_path):
    path, sha256 = save(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert sha256[:16] in path.name

    renumber = np.array([0, 4, 3, 2, 1, 7, 6, 5])  # other internal ids of the same items
    renamed = np.empty_like(ITEMS)
    renamed[renumber] = ITEMS
    same = rows_of(ROWS.users, renumber[ROWS.targets])
    assert save(tmp_path, same, renumber[CANDIDATES], items=renamed) == (path, sha256)
    assert save(tmp_path, candidates=CANDIDATES[:, ::-1])[1] != sha256


def test_an_equal_file_is_reused_and_a_changed_one_refused(tmp_path):
    path, sha256 = save(tmp_path)
    written = path.stat().st_mtime_ns
    assert save(tmp_path) == (path, sha256)
    assert path.stat().st_mtime_ns == written and [file.name for file in tmp_path.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"was changed.*delete"):
        save(tmp_path)


def test_ids_the_format_cannot_carry_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'i\\t1'"):
        save(tmp_path, items=np.where(ITEMS == "i 1", "i\t1", ITEMS))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([["ann", "i 1", "i 1", "i 2", "i 9"]], "name an item.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "i 3"], ["cyd", "i 1", "i 2", "i 2", "i 1"]], "repeat a candidate.*line 3"),
        ([["ann", "i 1", "i 4", "i 2", "i 3"]], "lack the target.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "[PAD]"]], "padding.*line 2"),
        ([["ann", "i 1", "i 1", "i 2", "i 3"], ["ann", "i 1", "i 1", "i 2", "i 4"]], "earlier line.*line 3"),
        ([["ann", "i 1", "i 1", "i 2"]], "5 columns.*line 2"),
        ([["dan", "i 1", "i 1", "i 2", "i 3"]], "lacks 3 of the 3 test rows"),
        ([], "lacks 3 of the 3 test rows"),
    ],
)
def test_faulty_lines_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, lines), ROWS)


def test_a_wrong_number_of_candidates_names_the_key(tmp_path):
    with pytest.raises(UserError, match="candidate_num"):
        read(write(tmp_path, [], candidate_num=2), ROWS)
    with pytest.raises(UserError, match="candidate_file"):
        read(tmp_path / "none.tsv", ROWS)


def test_rows_the_file_lacks_are_counted(tmp_path):
    own = write(tmp_path, [["ann", "i 1", "i 1", "i 2", "i 3"]])
    with pytest.raises(UserError, match="lacks 2 of the 3 test rows"):
        read(own, rows_of([1, 2, 3], [1, 1, 7]))


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = write(tmp_path, [["ann", "i 1", "i 1", "i 2", "i 3"]])
    row = rows_of([1], [1])
    plain = read(path, row)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.array_equal(read(path, row), plain)
