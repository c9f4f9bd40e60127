"""Candidate sets as a file: one TSV format for what we freeze and for what a user brings along.

The first line is the header, every other line a row of valid or test, all ids external:

    user_id <TAB> item_id <TAB> candidate_1 <TAB> ... <TAB> candidate_C

`item_id` is the target, which stands among the candidates; the order of the candidates is kept. UTF-8, lines end in
"\\n", nothing is quoted. Files joined by `cat` are such a file too: repeated headers are passed over. The SHA-256 that
is logged and reported is that of these bytes, so `sha256sum` on the file tells whether two experiments shared their rows
and candidates.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llara.data.atomic_files import readable
from recbole_llara.utils.atomic import sole_writer, sweep, write_file
from recbole_llara.utils.errors import UserError

_logger = logging.getLogger()


@dataclass(frozen=True)
class CandidateRows:
    """Rows with their candidate sets, in internal ids.

    Attributes:
        users: [B] int64.
        targets: [B] int64.
        candidates: [B, C] int64.
    """

    users: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray


def render_candidates(rows: CandidateRows, user_tokens: np.ndarray, item_tokens: np.ndarray) -> bytes:
    """The file's content.

    Args:
        rows: to be written.
        user_tokens: [U] str, external user ids by internal ones.
        item_tokens: [N] str, external item ids by internal ones.

    Raises:
        UserError: an id holds a tab or a line break, which the format cannot carry.
    """
    ids = np.concatenate([rows.targets[:, None], rows.candidates], axis=1)
    columns = np.concatenate([user_tokens[rows.users][:, None], item_tokens[ids]], axis=1).astype(object)  # [B, C + 2]
    unfit = [token for token in {*columns[:, 0], *np.unique(columns[:, 1:])} if any(sign in token for sign in "\t\n\r")]
    if unfit:
        raise UserError(f"The id {unfit[0]!r} holds a tab or a line break, expected none in user and item ids.")
    lines = ["\t".join(header_of(rows.candidates.shape[1])), *map("\t".join, columns)]
    return ("\n".join(lines) + "\n").encode()


def header_of(candidate_num: int) -> list[str]:
    """The column names of a file of C candidates."""
    return ["user_id", "item_id", *(f"candidate_{number}" for number in range(1, candidate_num + 1))]


def candidate_sha256(rows: CandidateRows, user_tokens: np.ndarray, item_tokens: np.ndarray) -> str:
    """The SHA-256 of rows and candidates: that of their file, hence of external ids, whatever the internal ones."""
    return hashlib.sha256(render_candidates(rows, user_tokens, item_tokens)).hexdigest()


def save_candidates(
    folder: Path, stem: str, rows: CandidateRows, user_tokens: np.ndarray, item_tokens: np.ndarray
) -> tuple[Path, str]:
    """Freeze candidate sets under a name that holds their hash; what is there already is checked and reused.

    Args:
        folder: is made if need be.
        stem: the name's beginning, e.g. "ml-100k-llara-test".
        rows, user_tokens, item_tokens: as in `render_candidates`.

    Returns:
        The path, and the SHA-256 in hexadecimal.

    Raises:
        UserError: the file is there but its content is not what its name says.
    """
    content = render_candidates(rows, user_tokens, item_tokens)
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"{stem}-{sha256[:16]}.tsv"
    with sole_writer(folder):
        sweep(path)
        if not path.exists():
            write_file(path, lambda place: place.write_bytes(content))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(f"{path} was changed since it was written, expected the SHA-256 {sha256}: delete the file.")
    return path, sha256


@dataclass(frozen=True)
class CandidateFile:
    """A user's own candidate sets, read and checked.

    Attributes:
        path: where they were read.
        keys: [F] int64, user * N + target, ascending.
        candidates: [F, C] int64, internal ids, in the order of `keys`.
        n_items: N.
    """

    path: Path
    keys: np.ndarray
    candidates: np.ndarray
    n_items: int

    def look_up(self, users: np.ndarray, targets: np.ndarray, split: str) -> np.ndarray:
        """The candidate sets [B, C] of rows with these users [B] and targets [B].

        Raises:
            UserError: the file lacks some of the rows.
        """
        wanted = users * self.n_items + targets
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        missing = self.keys[place] != wanted
        if missing.any():
            raise UserError(
                f"{self.path} (candidate_file) lacks {missing.sum()} of the {len(users)} {split} rows, expected a line "
                "for every valid and test row of the protocol."
            )
        return self.candidates[place]


def load_candidate_file(path: Path, user_ids: dict[str, int], item_ids: dict[str, int], candidate_num: int) -> CandidateFile:
    """Read a user's candidate sets.

    Args:
        path: of the TSV described above.
        user_ids: internal ids by external ones.
        item_ids: internal ids by external ones, "[PAD]" among them.
        candidate_num: C.

    Raises:
        UserError: wrong columns, unknown items, repeated candidates or lines, or a target missing from its candidates.
            Lines of unknown users are left out: the protocol dropped them.
    """
    if not path.is_file():
        raise UserError(f"No file {path}, expected the candidate sets that candidate_file names.")
    header = header_of(candidate_num)
    with readable(path, "utf-8"):
        # str.splitlines would also break at U+0085, U+2028 and their like, which an id may hold.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    fields = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    if fields[0] != header:
        raise UserError(
            f"{path} (candidate_file) begins with {fields[:1]}, expected the header user_id, item_id, candidate_1, ... "
            f"candidate_{candidate_num} (candidate_num), separated by tabs."
        )
    length = np.array([len(line) for line in fields])
    lines = 1 + np.arange(len(fields))  # as an editor counts
    _refuse(path, length != len(header), lines, f"have not the {len(header)} columns of the header")
    table = pd.DataFrame(fields, dtype=object)
    is_data = (table[0] != header[0]).to_numpy()
    users = table[0].map(user_ids)
    is_known = is_data & users.notna().to_numpy()
    if is_known.sum() < is_data.sum():
        strangers = is_data.sum() - is_known.sum()
        _logger.warning(f"{path} (candidate_file): {strangers} lines of users that the protocol does not keep.")
    items = table[is_known].iloc[:, 1:].apply(lambda column: column.map(item_ids))
    users, lines = users[is_known].to_numpy(np.int64), lines[is_known]
    unknown = items.isna().to_numpy()
    _refuse(path, unknown.any(axis=1), lines, "name an item the protocol does not keep")
    ids = items.to_numpy(np.int64)  # [F, 1 + C]
    ascending = np.sort(ids[:, 1:], axis=1)
    _refuse(path, (ascending[:, 1:] == ascending[:, :-1]).any(axis=1), lines, "repeat a candidate")
    _refuse(path, (ids[:, 1:] != ids[:, :1]).all(axis=1), lines, "lack the target among the candidates")
    _refuse(path, (ids == 0).any(axis=1), lines, "name the padding item")
    n_items = len(item_ids)
    keys = users * n_items + ids[:, 0]
    order = np.argsort(keys, kind="stable")
    repeated = np.zeros(len(keys), dtype=bool)
    repeated[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    _refuse(path, repeated, lines, "repeat the user and target of an earlier line")
    if len(keys) == 0:
        raise UserError(f"{path} (candidate_file) has no line for any user of the protocol.")
    return CandidateFile(path, keys[order], ids[order, 1:], n_items)


def _refuse(path: Path, bad: np.ndarray, lines: np.ndarray, what: str) -> None:
    if bad.any():
        raise UserError(f"{path} (candidate_file): {bad.sum()} lines {what}, the first: line {lines[bad][0]}.")
