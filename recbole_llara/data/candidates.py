"""Candidate sets: drawn, frozen in files, and read from files of a user's own.

A set is the target and C - 1 items that the split knows no interaction of the user with, in an order that says nothing. They
are uniform over all such items (of a pool, where there is one), or some of them are of those that a recommender puts first for
the row (``Proposals``).
Every number of a draw is ``hashing.numbers`` at (seed, purpose, epoch, row, counter): a row's set is the same in any batch,
order or process, and the target neither seeds nor places anything. Item ids are internal, 1..N-1 (0 = padding); no matrix of
rows x N is built.

A file of candidate sets is a TSV. The first line is the header, every other line a row of valid or test, all ids external:

    user_id <TAB> item_id <TAB> candidate_1 <TAB> ... <TAB> candidate_C

``item_id`` is the target, which stands among the candidates; the order of the candidates is kept. UTF-8, lines end in
"\n", nothing is quoted. Files joined by ``cat`` are such a file too: repeated headers are passed over. The SHA-256 that
is logged and reported is that of these bytes, so ``sha256sum`` on the file tells whether two experiments shared their rows
and candidates.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llara.data.rows import Rows, SeenItems
from recbole_llara.data.tables import readable
from recbole_llara.utils.atomic import sole_writer, sweep, write_file
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import numbers, row_keys

# Rounds of redrawing refused slots before a row is drawn exactly from the list of what is left to it.
_REDRAWS = 16
# Cells of the temporary arrays of one chunk: they fit the processor's cache, and memory does not grow with the rows.
_CHUNK_CELLS = 2**18
# Where the counters begin of exact draws, of which slots hold items of the user's own past, of which items these are, of which
# items are taken of those proposed, and of the order of these among the others: so they share no number with the rounds of
# redrawing.
_EXACT_COUNTERS, _OWN_SLOTS, _OWN_ITEMS, _PROPOSED_ITEMS, _MIXED_ITEMS = 2**40, 2**41, 2**42, 2**43, 2**44
_REFUSED = np.uint64(2**64 - 1)

_logger = logging.getLogger()


@dataclass(frozen=True)
class Proposals:
    """What a recommender puts first for rows, among the items that can be their negatives."""

    rows: np.ndarray  # [R] int64, row numbers, ascending
    items: np.ndarray  # [R, K] int32, best first, 0 where fewer can be negatives

    def of(self, row_ids: np.ndarray) -> np.ndarray:
        """The items [B, K] int64 of rows by their numbers [B].

        Raises:
            ValueError: a row that they do not know.
        """
        place = np.searchsorted(self.rows, row_ids)
        if (place == len(self.rows)).any() or (self.rows[place] != row_ids).any():
            raise ValueError(f"rows {row_ids}: expected those of the {len(self.rows)} rows that items were proposed for")
        return self.items[place].astype(np.int64)

    @property
    def sha256(self) -> str:
        """Digest of rows and items."""
        digest = hashlib.sha256(str(self.items.shape).encode())
        for values in (self.rows.astype("<i8"), self.items.astype("<i4")):
            digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()


@dataclass(frozen=True)
class CandidateSampler:
    """Draws candidate sets for rows."""

    seen: SeenItems  # what the rows' split knows of all users; items 1..N-1 are drawn, or those of ``pool``
    candidate_num: int  # C, the target included
    seed: int
    exclude: str = "user"  # negatives are items that `seen` lacks for the user; "window": items outside the row's history
    past: Callable[[Rows], tuple[np.ndarray, np.ndarray]] | None = (
        None  # as ``Knowledge.past``: some negatives are drawn from it
    )
    past_share: float = 0.0  # of the rows, those whose target the user had before: as often, a negative is such an item
    proposals: Proposals | None = None  # some negatives are drawn from what these have of the row
    proposed_num: int = 0  # how many of the C - 1; where fewer items are proposed, the others are uniform as well
    pool: np.ndarray | None = None  # [P] int64, ascending: the items that can be negatives; None = all

    @property
    def n_items(self) -> int:
        """N, the padding item counted."""
        return self.seen.n_items

    @property
    def n_drawn_from(self) -> int:
        """How many items there are to draw from."""
        return self.n_items - 1 if self.pool is None else len(self.pool)

    @property
    def _outside(self) -> np.ndarray:
        """The items that are no negatives of anybody."""
        return np.empty(0, np.int64) if self.pool is None else np.setdiff1d(np.arange(1, self.n_items), self.pool)

    def draw(self, row_ids: np.ndarray, rows: Rows, purpose: str, epoch: int = 0) -> np.ndarray:
        """The candidate sets [B, C] of rows.

        Negatives are distinct, uniform over the eligible items, those of `proposals` over what these have of the row; the
        target's column is uniform over C. With C = 4, a row whose numbers give negatives 7, 3, 9 and column 1 has the
        candidates [7, target, 3, 9].

        Args:
            row_ids: [B] numbers within `purpose`; rows of equal numbers, users and targets get equal sets.
            purpose: "train", "valid" or "test".
            epoch: raises new sets for training; 0 for what is drawn once.

        Raises:
            UserError: fewer than C - 1 items are eligible for some row.
        """
        refused = self._refused(rows)  # [B, 1 or L + 1]
        keys = row_keys(self.seed, purpose, epoch, row_ids)  # [B]

        # Users in order make the look-ups among the seen items walk through memory instead of jumping.
        order = np.argsort(rows.users, kind="stable")
        candidates = np.empty((len(order), self.candidate_num), dtype=np.int64)
        width = self.candidate_num * refused.shape[1]
        if self.proposals is not None:
            width += self.proposals.items.shape[1] + self.candidate_num * self.proposed_num
        step = max(1, _CHUNK_CELLS // width)
        for start in range(0, len(order), step):
            part = order[start : start + step]
            negatives = self._draw_negatives(keys[part], rows.users[part], refused[part])
            if self.proposals is not None:
                negatives = self._put_proposed(keys[part], self.proposals.of(row_ids[part]), negatives)
            if self.past is not None:
                self._put_own(keys[part], rows.take(part), negatives)
            candidates[part] = self._place(keys[part], negatives, rows.targets[part])
        return candidates

    def excluded(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """What can be no negative of rows: pairs of (position in `rows`, item), some of them twice."""
        refused = self._refused(rows)
        position, column = np.nonzero(refused)
        item = refused[position, column]
        outside = self._outside
        position = np.concatenate([position, np.repeat(np.arange(len(rows.users)), len(outside))])
        item = np.concatenate([item, np.tile(outside, len(rows.users))])
        if self.exclude != "user":
            return position, item
        seen, place = self.seen.places(rows.users)
        return np.concatenate([position, seen]), np.concatenate([item, self.seen.keys[place] % self.n_items])

    def _refused(self, rows: Rows) -> np.ndarray:
        """The target of each row, and its history where this is what negatives exclude; [B, 1] or [B, L + 1]."""
        targets = rows.targets[:, None]
        return np.concatenate([rows.history, targets], axis=1) if self.exclude == "window" else targets

    def check_eligible(self, users: np.ndarray) -> None:
        """Refuse users [B] who have seen so much that fewer than C - 1 items are left, before the first set is drawn."""
        if self.exclude == "user" and len(users):
            user, item = np.divmod(self.seen.keys, self.n_items)
            is_drawn = ~np.isin(item, self._outside)
            seen = np.bincount(user[is_drawn], minlength=int(users.max()) + 1)  # [U]
            worst = users[seen[users].argmax()]
            self._check_enough(self.n_drawn_from - int(seen[worst]), int(worst))

    def _check_enough(self, eligible: int, user: int) -> None:
        if eligible < self.candidate_num - 1:
            more = "" if self.pool is None else ", or raise cold_item_share"
            raise UserError(
                f"Only {eligible} of {self.n_drawn_from} items are left as negatives for user {user} "
                f"(internal id), expected at least {self.candidate_num - 1}: lower candidate_num (now {self.candidate_num}) or set "
                f"candidate_exclude to 'window' (now '{self.exclude}'){more}."
            )

    def _draw_negatives(self, keys: np.ndarray, users: np.ndarray, refused: np.ndarray) -> np.ndarray:
        """Distinct eligible items, [b, C - 1]: draw every slot, then redraw the refused ones under new counters."""
        items = self._items_at(keys[:, None], np.arange(self.candidate_num - 1)[None])  # [b, C - 1]
        todo = np.arange(len(keys))
        for attempt in range(1, _REDRAWS + 2):
            bad = self._is_refused(items[todo], users[todo], refused[todo])
            todo, bad = todo[bad.any(axis=1)], bad[bad.any(axis=1)]
            if len(todo) == 0 or attempt > _REDRAWS:
                break
            row, slot = np.nonzero(bad)
            items[todo[row], slot] = self._items_at(keys[todo[row]], slot + attempt * self.candidate_num)
        step = max(1, _CHUNK_CELLS // self.n_items)
        for start in range(0, len(todo), step):
            part = todo[start : start + step]
            items[part] = self._draw_exactly(keys[part], users[part], refused[part])
        return items

    def _items_at(self, keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
        """Items 1..N-1, or those of the pool; the remainder of a 64-bit number is uniform to N / 2^64."""
        places = (numbers(keys, counters) % np.uint64(self.n_drawn_from)).astype(np.int64)
        return places + 1 if self.pool is None else self.pool[places]

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
        order = numbers(keys[:, None], np.arange(self.n_items)[None] + _EXACT_COUNTERS)  # [b, N]
        order[:, 0] = order[:, self._outside] = _REFUSED
        np.put_along_axis(order, refused, _REFUSED, axis=1)
        if self.exclude == "user":
            position, place = self.seen.places(users)
            order[position, self.seen.keys[place] % self.n_items] = _REFUSED
        eligible = (order != _REFUSED).sum(axis=1)
        worst = int(eligible.argmin())
        self._check_enough(int(eligible[worst]), int(users[worst]))
        return np.argsort(order, axis=1, kind="stable")[:, : self.candidate_num - 1]

    def _put_proposed(self, keys: np.ndarray, proposed: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Slots [b, C - 1] of which `proposed_num` hold items out of those proposed [b, K], the others uniform negatives.

        With C = 4 and two of them proposed, a row that draws 5 and 9 out of the proposed 5, 6 and 9, and whose uniform
        negatives are 7, 9, 3, has 5, 9 and 7, in an order of its own.
        """
        drawn = numbers(keys[:, None], proposed + _PROPOSED_ITEMS)  # [b, K]
        drawn[proposed == 0] = _REFUSED
        taken = np.argsort(drawn, axis=1, kind="stable")[:, : self.proposed_num]
        taken = np.take_along_axis(proposed, taken, axis=1)  # [b, P], 0 where fewer are proposed
        # A uniform draw without the items already taken is a uniform draw of the others.
        is_taken = (negatives[:, :, None] == taken[:, None, :]).any(axis=2)  # [b, C - 1]
        is_left_out = np.concatenate([taken == 0, is_taken], axis=1)
        kept = np.argsort(is_left_out, axis=1, kind="stable")[:, : self.candidate_num - 1]
        items = np.take_along_axis(np.concatenate([taken, negatives], axis=1), kept, axis=1)
        # A slot must not tell which items are uniform: the target among those would stand out.
        order = np.argsort(numbers(keys[:, None], items + _MIXED_ITEMS), axis=1, kind="stable")
        return np.take_along_axis(items, order, axis=1)

    def _put_own(self, keys: np.ndarray, rows: Rows, negatives: np.ndarray) -> None:
        """Put items of the users' own past into slots [b, C - 1], each slot with the probability `past_share`.

        A user whose past is too short for the slots gives all of it. With C = 4, slots 0 and 2 drawn and a past of items
        5, 6 and 8, a row of negatives 7, 3, 9 becomes 8, 3, 5.
        """
        position, item = self.past(rows)
        keep = item != rows.targets[position]
        position, item = position[keep], item[keep]
        slots = np.arange(self.candidate_num - 1)
        drawn = numbers(keys[:, None], slots[None] + _OWN_SLOTS) >> np.uint64(11)  # [b, C - 1] of 53 bits, as floats hold them
        is_own = drawn * 2.0**-53 < self.past_share
        order = np.lexsort((numbers(keys[position], item + _OWN_ITEMS), position))
        position, item = position[order], item[order]
        rank = np.arange(len(position)) - np.searchsorted(position, position)  # of each item within its row
        kept = rank < is_own.sum(axis=1)[position]
        slot = np.argsort(~is_own, axis=1, kind="stable")  # [b, C - 1] the drawn slots first
        negatives[position[kept], slot[position[kept], rank[kept]]] = item[kept]

    def _place(self, keys: np.ndarray, negatives: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Put each target into a column of its own number, the negatives around it; [b, C]."""
        slots = np.arange(self.candidate_num - 1)
        # The last counter below the first redraw: no slot uses it.
        column = (numbers(keys, slots[-1:] + 1) % np.uint64(self.candidate_num)).astype(np.int64)  # [b]
        candidates = np.empty((len(keys), self.candidate_num), dtype=np.int64)
        np.put_along_axis(candidates, slots[None] + (slots[None] >= column[:, None]), negatives, axis=1)
        np.put_along_axis(candidates, column[:, None], targets[:, None], axis=1)
        return candidates


def save_candidates(
    folder: Path, stem: str, rows: Rows, candidates: np.ndarray, user_tokens: np.ndarray, item_tokens: np.ndarray
) -> tuple[Path, str]:
    """Freeze the candidate sets [B, C] of rows under a name that holds their hash; what is there already is checked and reused.

    Args:
        folder: is made if need be.
        stem: the name's beginning, e.g. "ml-100k-llara-test".
        user_tokens, item_tokens: [U] and [N] external ids by internal ones.

    Returns:
        The path, and the SHA-256 in hexadecimal.

    Raises:
        UserError: the file's content is not what its name says, or an id holds a tab or a line break.
    """
    content = as_tsv(rows, candidates, user_tokens, item_tokens)
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"{stem}-{sha256[:16]}.tsv"
    with sole_writer(folder):
        sweep(path)
        if not path.exists():
            write_file(path, lambda place: place.write_bytes(content))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(f"{path} was changed since it was written, expected the SHA-256 {sha256}: delete the file.")
    return path, sha256


def as_tsv(rows: Rows, candidates: np.ndarray, user_tokens: np.ndarray, item_tokens: np.ndarray) -> bytes:
    """The file of the candidate sets [B, C] of rows; ``save_candidates`` has the arguments.

    Raises:
        UserError: an id holds a tab or a line break.
    """
    ids = np.concatenate([rows.targets[:, None], candidates], axis=1)
    columns = np.concatenate([user_tokens[rows.users][:, None], item_tokens[ids]], axis=1).astype(object)  # [B, C + 2]
    unfit = [token for token in {*columns[:, 0], *np.unique(columns[:, 1:])} if any(sign in token for sign in "\t\n\r")]
    if unfit:
        raise UserError(f"The id {unfit[0]!r} holds a tab or a line break, expected none in user and item ids.")
    lines = map("\t".join, [_header(candidates.shape[1]), *columns])
    return "".join(f"{line}\n" for line in lines).encode()


def _header(candidate_num: int) -> list[str]:
    return ["user_id", "item_id", *(f"candidate_{number}" for number in range(1, candidate_num + 1))]


def read_candidates(
    path: Path, rows: Rows, split: str, candidate_num: int, user_ids: Mapping[str, int], item_ids: Mapping[str, int]
) -> np.ndarray:
    """The candidate sets [B, C] of a split's rows, out of a user's own file.

    Lines of unknown users are left out: the protocol dropped them.

    Args:
        user_ids, item_ids: internal ids by external ones, "[PAD]" among them.

    Raises:
        UserError: wrong columns, unknown items, repeated candidates or lines, a target missing from its candidates, or a row
            missing from the file.
    """
    if not path.is_file():
        raise UserError(f"No file {path}, expected the candidate sets that candidate_file names.")
    with readable(path, "utf-8"):
        # str.splitlines would also break at U+0085, U+2028 and their like, which an id may hold.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    header, fields = _header(candidate_num), [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    if fields[0] != header:
        raise UserError(
            f"{path} (candidate_file) begins with {fields[:1]}, expected the header user_id, item_id, candidate_1, ... "
            f"candidate_{candidate_num} (candidate_num), separated by tabs."
        )
    is_short = np.array([len(line) != len(header) for line in fields])
    _refuse(path, np.arange(len(fields)), [(is_short, f"have not the {len(header)} columns of the header")])
    table = pd.DataFrame(fields, dtype=object)
    table = table[table[0] != header[0]]
    users = table[0].map(user_ids)
    strangers = int(users.isna().sum())
    if strangers:
        _logger.warning(f"{path} (candidate_file): {strangers} lines of users that the protocol does not keep.")
    table = table[users.notna()]
    ids = table.iloc[:, 1:].apply(lambda column: column.map(item_ids)).fillna(-1).to_numpy(np.int64)  # [F, 1 + C]
    keys = pd.Index(users.dropna().astype(np.int64) * len(item_ids) + ids[:, 0])
    ascending = np.sort(ids[:, 1:], axis=1)
    faults = [
        ((ids < 0).any(axis=1), "name an item the protocol does not keep"),
        ((ascending[:, 1:] == ascending[:, :-1]).any(axis=1), "repeat a candidate"),
        ((ids[:, 1:] != ids[:, :1]).all(axis=1), "lack the target among the candidates"),
        ((ids == 0).any(axis=1), "name the padding item"),
        (keys.duplicated(), "repeat the user and target of an earlier line"),
    ]
    _refuse(path, table.index.to_numpy(), faults)
    place = keys.get_indexer(rows.users * len(item_ids) + rows.targets)
    if (place < 0).any():
        raise UserError(
            f"{path} (candidate_file) lacks {(place < 0).sum()} of the {len(place)} {split} rows, expected a line "
            "for every valid and test row of the protocol."
        )
    return ids[place, 1:]


def _refuse(path: Path, lines: np.ndarray, faults: Sequence[tuple[np.ndarray, str]]) -> None:
    """Raise for the first fault that some lines, counted from 0, have."""
    for is_bad, what in faults:
        if is_bad.any():
            first = 1 + lines[is_bad][0]  # as an editor counts
            raise UserError(f"{path} (candidate_file): {is_bad.sum()} lines {what}, the first: line {first}.")
