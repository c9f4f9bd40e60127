"""Candidate sets: drawn, frozen in files, and read from files of a user's own.

A set is the target and C - 1 items that the split knows no interaction of the user with, in an order that says nothing.
Every number of a draw is ``hashing.numbers`` at (seed, purpose, epoch, row, counter): a row's set is the same in any batch,
order or process, and the target neither seeds nor places anything. Item ids are internal, 1..N-1 (0 = padding); no matrix of
rows x N is built.

A file of candidate sets is a TSV. The first line is the header, every other line a row of valid or test, all ids external:

    user_id <TAB> item_id <TAB> candidate_1 <TAB> ... <TAB> candidate_C

``item_id`` is the target, which stands among the candidates; the order of the candidates is kept. UTF-8, lines end in
"\\n", nothing is quoted. Files joined by ``cat`` are such a file too: repeated headers are passed over. The SHA-256 that
is logged and reported is that of these bytes, so ``sha256sum`` on the file tells whether two experiments shared their rows
and candidates.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llara.config.settings import EXCLUDE_RULES
from recbole_llara.data.rows import Rows, SeenItems
from recbole_llara.data.tables import readable
from recbole_llara.utils.atomic import sole_writer, sweep, write_file
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import numbers, row_keys

# Rounds of redrawing refused slots before a row is drawn exactly from the list of what is left to it.
_REDRAWS = 16
# Cells of the temporary arrays of one chunk: they fit the processor's cache, and memory does not grow with the rows.
_CHUNK_CELLS = 2**18
# Exact draws count from here on, so that they share no number with the rounds of redrawing.
_EXACT_COUNTERS = 2**40
# Likewise which slots hold items of the user's own past, and which of its items.
_OWN_SLOTS = 2**41
_OWN_ITEMS = 2**42
_REFUSED = np.uint64(2**64 - 1)

_logger = logging.getLogger()


@dataclass(frozen=True)
class OwnPast:
    """Negatives out of the user's own past, as often as targets are.

    Attributes:
        share: of the split's rows whose target is an item that the user had before, in [0, 1].
        items: of rows -> the past of each, as pairs of (position in the rows, item), ascending and distinct.
    """

    share: float
    items: Callable[[Rows], tuple[np.ndarray, np.ndarray]]


class CandidateSampler:
    """Draws candidate sets for rows; holds no state that a draw would change.

    Args:
        seen: what the rows' split knows of all users.
        n_items: N; items 1..N-1 are drawn.
        candidate_num: C, the target included.
        exclude: "user": negatives are items that `seen` lacks for the user; "window": items outside the row's history.
        own_past: where some negatives come from the user's own past; None = none do.
    """

    def __init__(
        self,
        seen: SeenItems,
        n_items: int,
        candidate_num: int,
        seed: int,
        exclude: str = "user",
        own_past: OwnPast | None = None,
    ) -> None:
        if exclude not in EXCLUDE_RULES:
            raise UserError(f"candidate_exclude is '{exclude}', expected one of {', '.join(EXCLUDE_RULES)}.")
        if candidate_num < 2:
            raise UserError(f"candidate_num is {candidate_num}, expected at least 2: the target and one other item.")
        self.seen, self.n_items, self.candidate_num, self.seed = seen, n_items, candidate_num, seed
        self.exclude, self.own_past = exclude, own_past

    def draw(
        self,
        rows: np.ndarray,
        users: np.ndarray,
        targets: np.ndarray,
        purpose: str,
        epoch: int = 0,
        history: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """The candidate sets [B, C] of some rows.

        Negatives are distinct, uniform over the eligible items; the target's column is uniform over C. With C = 4, a
        row whose numbers give negatives 7, 3, 9 and column 1 has the candidates [7, target, 3, 9].

        Args:
            rows: [B] int64, row numbers within `purpose`; equal rows get equal numbers.
            users: [B] int64.
            targets: [B] int64.
            purpose: "train", "valid" or "test".
            epoch: raises new sets for training; 0 for what is drawn once.
            history: [B, L] int64, 0-padded; needed by, and only of use to, the rule "window" and `own_past`.
            places: [B] int64, where the targets stand among the interactions; only of use to `own_past`.

        Raises:
            UserError: fewer than C - 1 items are eligible for some row.
        """
        rows, users, targets = (np.asarray(values, dtype=np.int64) for values in (rows, users, targets))
        if self.exclude == "window" and history is None:
            raise ValueError("candidate_exclude 'window' needs the history of the rows.")
        if self.own_past is not None and history is None:
            raise ValueError("Negatives of the user's own past need the history of the rows.")
        refused = targets[:, None]
        if self.exclude == "window":
            refused = np.concatenate([np.asarray(history, dtype=np.int64), refused], axis=1)  # [B, L + 1]
        keys = row_keys(self.seed, purpose, epoch, rows)  # [B]

        # Users in order make the look-ups among the seen items walk through memory instead of jumping.
        order = np.argsort(users, kind="stable")
        candidates = np.empty((len(rows), self.candidate_num), dtype=np.int64)
        step = max(1, _CHUNK_CELLS // (self.candidate_num * refused.shape[1]))
        for start in range(0, len(rows), step):
            part = order[start : start + step]
            negatives = self._draw_negatives(keys[part], users[part], refused[part])
            if self.own_past is not None:
                asked = Rows(users[part], targets[part], history[part], None if places is None else places[part])
                self._put_own(keys[part], asked, negatives)
            candidates[part] = self._place(keys[part], negatives, targets[part])
        return candidates

    def check_eligible(self, users: np.ndarray) -> None:
        """Refuse users who have seen so much that too few items are left, before the first set is drawn.

        Args:
            users: [B] int64.

        Raises:
            UserError: fewer than C - 1 items are left to one of them.
        """
        if self.exclude != "user" or not len(users):
            return
        seen = np.bincount(self.seen.keys // self.seen.n_items, minlength=int(users.max()) + 1)  # [U]
        worst = users[seen[users].argmax()]
        self._check_enough(self.n_items - 1 - int(seen[worst]), int(worst))

    def _check_enough(self, eligible: int, user: int) -> None:
        count = self.candidate_num - 1
        if eligible < count:
            raise UserError(
                f"Only {eligible} of {self.n_items - 1} items are left as negatives for user {user} "
                f"(internal id), expected at least {count}: lower candidate_num (now {self.candidate_num}) or set "
                f"candidate_exclude to 'window' (now '{self.exclude}')."
            )

    def _draw_negatives(self, keys: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Distinct eligible items, [b, C - 1]: draw every slot, then redraw the refused ones under new counters."""
        slots = np.arange(self.candidate_num - 1)  # [C - 1]
        items = self._items_at(keys[:, None], slots[None])  # [b, C - 1]
        todo = np.arange(len(keys))
        for attempt in range(1, _REDRAWS + 1):
            bad = self._is_refused(items[todo], users[todo], refused[todo])
            todo, bad = todo[bad.any(axis=1)], bad[bad.any(axis=1)]
            if len(todo) == 0:
                return items
            row, slot = np.nonzero(bad)
            items[todo[row], slot] = self._items_at(keys[todo[row]], slot + attempt * self.candidate_num)
        bad = self._is_refused(items[todo], users[todo], refused[todo])
        todo = todo[bad.any(axis=1)]
        step = max(1, _CHUNK_CELLS // self.n_items)
        for start in range(0, len(todo), step):
            part = todo[start : start + step]
            items[part] = self._draw_exactly(keys[part], users[part], refused[part])
        return items

    def _items_at(self, keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
        """Items 1..N-1; the remainder of a 64-bit number is uniform to N / 2^64."""
        return (numbers(keys, counters) % np.uint64(self.n_items - 1)).astype(np.int64) + 1

    def _is_refused(self, items: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Slots [b, C - 1] that hold a refused item or repeat one of an earlier slot."""
        # Item and slot in one number: sorting these is several times faster than an argsort.
        packed = np.sort(items * self.candidate_num + np.arange(items.shape[1])[None], axis=1)
        ascending, order = np.divmod(packed, self.candidate_num)
        repeats = np.zeros(items.shape, dtype=bool)
        repeats[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
        if self.exclude == "user":
            repeats |= self.seen.contains(users[:, None], ascending)
        bad = np.empty_like(repeats)
        np.put_along_axis(bad, order, repeats, axis=1)
        bad |= (items[:, :, None] == refused[:, None, :]).any(axis=2)
        return bad

    def _draw_exactly(self, keys: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Distinct eligible items where few are left: number all N items, take the C - 1 smallest eligible."""
        count = self.candidate_num - 1
        order = numbers(keys[:, None], np.arange(self.n_items)[None] + _EXACT_COUNTERS)  # [b, N]
        order[:, 0] = _REFUSED
        np.put_along_axis(order, refused, _REFUSED, axis=1)
        if self.exclude == "user":
            order[self.seen.pairs(users)] = _REFUSED
        eligible = (order != _REFUSED).sum(axis=1)
        worst = int(eligible.argmin())
        self._check_enough(int(eligible[worst]), int(users[worst]))
        return np.argsort(order, axis=1, kind="stable")[:, :count]

    def _put_own(self, keys: np.ndarray, rows: Rows, negatives: np.ndarray) -> None:
        """Put items of the users' own past into slots [b, C - 1], each slot with the probability `own_past.share`.

        A user whose past is too short for the slots gives all of it. With C = 4, slots 0 and 2 drawn and a past of items
        5, 6 and 8, a row of negatives 7, 3, 9 becomes 8, 3, 5.
        """
        position, item = self.own_past.items(rows)
        keep = item != rows.targets[position]
        position, item = position[keep], item[keep]
        slots = np.arange(self.candidate_num - 1)
        drawn = numbers(keys[:, None], slots[None] + _OWN_SLOTS) >> np.uint64(11)  # [b, C - 1] of 53 bits, as floats hold them
        is_own = drawn * 2.0**-53 < self.own_past.share
        order = np.lexsort((numbers(keys[position], item + _OWN_ITEMS), position))
        position, item = position[order], item[order]
        start = np.searchsorted(position, np.arange(len(keys)))
        rank = np.arange(len(position)) - start[position]  # of each item within its row
        kept = rank < is_own.sum(axis=1)[position]
        position, item, rank = position[kept], item[kept], rank[kept]
        slot = np.argsort(~is_own, axis=1, kind="stable")  # [b, C - 1] the drawn slots first
        negatives[position, slot[position, rank]] = item

    def _place(self, keys: np.ndarray, negatives: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Put each target into a column of its own number, the negatives around it; [b, C]."""
        slots = np.arange(self.candidate_num - 1)
        # The last counter below the first redraw: no slot uses it.
        column = (numbers(keys, slots[-1:] + 1) % np.uint64(self.candidate_num)).astype(np.int64)  # [b]
        candidates = np.empty((len(keys), self.candidate_num), dtype=np.int64)
        np.put_along_axis(candidates, slots[None] + (slots[None] >= column[:, None]), negatives, axis=1)
        np.put_along_axis(candidates, column[:, None], targets[:, None], axis=1)
        return candidates


@dataclass(frozen=True)
class CandidateRows:
    """Rows with their candidate sets: users [B], targets [B] and candidates [B, C], int64, internal ids."""

    users: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray


def render_candidates(rows: CandidateRows, user_tokens: np.ndarray, item_tokens: np.ndarray) -> bytes:
    """The file's content; ``user_tokens`` [U] and ``item_tokens`` [N] are external ids by internal ones.

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
        keys: [F] int64, user * N + target, ascending.
        candidates: [F, C] int64, internal ids, in the order of `keys`.
        n_items: N.
    """

    path: Path
    keys: np.ndarray
    candidates: np.ndarray
    n_items: int

    def look_up(self, users: np.ndarray, targets: np.ndarray, split: str) -> np.ndarray:
        """The candidate sets [B, C] of rows with these users [B] and targets [B], all of which the file must have."""
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
    """Read a user's candidate sets; ``user_ids`` and ``item_ids`` ("[PAD]" among them) are internal ids by external ones.

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
