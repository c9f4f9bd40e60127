"""Any catalogue of the user's own, ``recbole-llara convert generic``: interactions and titles, of two files or of one.

Columns are known by their names or by ``--columns``. Interactions are held as numbers, some 30 bytes each, and every id once; what is
left out, and what was found rather than given, is told.
"""

import re
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llara.config.columns import columns_like, is_timely
from recbole_llara.config.yaml_files import read_properties
from recbole_llara.data.converters.items import Ids, Texts
from recbole_llara.data.converters.raw_table import BATCH, RawTable, open_table
from recbole_llara.data.converters.times import Clock
from recbole_llara.data.tables import HOLES, Rows, Tables, dataset_folder
from recbole_llara.utils.errors import UserError, nearest

# The columns of each file and RecBole's types; those of OPTIONAL may be absent.
COLUMNS = {
    "inter": {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"},
    "item": {"item_id": "token", "title": "token_seq", "release_year": "token", "class": "token_seq"},
}
OPTIONAL = frozenset({"timestamp", "rating", "title", "release_year", "class"})
OF_ITEMS = "item.item_id"  # the ids of --item where they are called otherwise than in --inter
_KNOWN = {*COLUMNS["inter"], *COLUMNS["item"], OF_ITEMS}
_TIME_LIKE = re.compile(r"\d{4}-\d\d-\d\d.*|1\d{9}(?:\.\d*)?|1\d{12}")
_TIED = 0.1  # share of interactions of equal user and time from which it is told


def generic(options: Namespace) -> Tables:
    """Interactions and items out of text, JSON or Parquet.

    Raises:
        UserError: a column cannot be told, too many rows are malformed, or titles are missing and ``missing_titles`` does not say
            what is to become of their items.
    """
    if options.inter is None:
        raise UserError("generic: expected --inter FILE and --item FILE, or an --inter FILE with titles too")
    name = options.dataset or _stem(options.inter)
    if read_properties(f"dataset/{name}"):
        raise UserError(
            f"dataset: found the name {name!r}, of which this package has properties of its own (properties/dataset); expected another "
            "one by --dataset"
        )
    dataset_folder(options.out, name, options.overwrite)  # before all is read
    given = _parse_columns(options.columns or "")
    inter, item = (_open(options, kind) for kind in ("inter", "item"))
    chosen = _choose_inter(inter, item, given)
    of_items = _choose_items(inter, item, given, chosen["item_id"])
    if "title" not in of_items and options.missing_titles != "id":
        where = "--item FILE, " if item is None else ""
        raise UserError(
            f"title: found no column of titles by name among {_listed((item or inter).columns)}, expected {where}--columns title=YOURS, "
            "or --missing_titles=id, which shows ids as titles"
        )
    notes = [_told(inter, chosen if item else {**chosen, **of_items})]
    notes += [] if item is None else [_told(item, of_items)]
    warnings = [*inter.notes, *(item.notes if item else ())]
    items, texts = Ids("item_id"), Texts(options.html == "clean")
    if item is not None:
        names = list(of_items)
        for cells in item.batches(list(of_items.values())):
            texts.add(items.numbers(cells[names.index("item_id")]), _others(names, cells))
    read = _read(inter, chosen, {} if item else of_items, items, texts, options)
    rows = pd.DataFrame({name: read.columns.pop(name) for name in ("user", "item", "time")})
    rating = read.columns.get("rating")
    is_kept, left_out = _keep(rows, items, texts, options, item or inter)
    kept = rows[is_kept]
    notes += [
        *left_out,
        *read.notes,
        *texts.notes(),
        *items.notes(),
        *read.users.notes(),
        *_told_of_order(kept, read.has_times),
    ]
    warnings += [*texts.warnings(), *read.warnings, *items.warnings(), *read.users.warnings()]
    header = {"inter": [name for name in COLUMNS["inter"] if name in chosen or name == "timestamp"]}
    header["item"] = ["item_id", "title", *(name for name in of_items if name not in ("item_id", "title"))]
    files = {
        "inter": _interactions(kept, None if rating is None else rating[is_kept], read.users.texts, items.texts),
        "item": ((items.texts[number], *texts.cells(number, header["item"][1:])) for number in texts.titles),
    }
    tables = {kind: ([f"{name}:{COLUMNS[kind][name]}" for name in header[kind]], files[kind]) for kind in files}
    return Tables(name, tables, notes=notes, warnings=warnings)


def _keep(rows: pd.DataFrame, items: Ids, texts: Texts, options: Namespace, table: RawTable) -> tuple[np.ndarray, list[str]]:
    """[M] which interactions are kept, and what is told of the others; items without a title get one, or lose theirs."""
    notes, is_kept = [], np.ones(len(rows), dtype=bool)
    if (again := _repeated(rows, options.duplicates)) is not None:
        is_kept &= ~again
        notes.append(f"left out: {again.sum():,} interactions that repeat user, item and time of one before (--duplicates)")
    counts = np.bincount(rows["item"][is_kept], minlength=len(items.texts))
    has_title = np.array([number in texts.titles for number in range(len(items.texts))], dtype=bool)
    lacking = np.flatnonzero((counts > 0) & ~has_title)
    if len(lacking):
        notes.append(_settle_titles(lacking, counts, items, texts, options.missing_titles, table))
        if options.missing_titles == "drop":
            is_kept &= has_title[rows["item"]]
            users = np.setdiff1d(rows["user"], rows["user"][is_kept])
            notes += [f"left out: {len(users):,} users, for no interaction of theirs is left"] if len(users) else []
    return is_kept, notes


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(path.suffix) if path.suffix in (".gz", ".bz2", ".xz", ".zip") else path.name).stem


def _parse_columns(text: str) -> dict[str, str]:
    """``user_id=uid,title=name`` as our column -> theirs; "" where there is none to be taken."""
    columns = {}
    for part in filter(None, text.split(",")):
        ours, equals, theirs = part.partition("=")
        if not equals or ours not in _KNOWN:
            raise UserError(
                f"columns: found {part!r}, expected OURS=YOURS with OURS of {', '.join(sorted(_KNOWN))}; {nearest(ours, _KNOWN)}"
            )
        columns[ours] = theirs
    return columns


def _open(options: Namespace, kind: str) -> RawTable | None:
    path = getattr(options, kind)
    if path is None:
        return None
    header = getattr(options, f"{kind}_header")
    return open_table(path, kind, options.separator, options.encoding, options.quoting, header)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def _told(table: RawTable, chosen: Mapping[str, str]) -> str:
    """What was taken from a file, and what was not."""
    unused = [name for name in table.columns if name and name not in chosen.values()]
    how = {"\t": "tab"}.get(table.separator, table.separator)
    how = f"separated by {how}" if table.form == "text" else table.form.upper() if table.form == "json" else "Parquet"
    taken = ", ".join(ours if ours == theirs else f"{ours} = {theirs}" for ours, theirs in chosen.items())
    return f"{table.path.name}, {how}: {taken}" + (f"; not used: {_listed(unused)}" if unused else "")


def _choose_inter(inter: RawTable, item: RawTable | None, given: Mapping[str, str]) -> dict[str, str]:
    """Our columns of interactions -> theirs."""
    if windows := [name for name in inter.columns if name.removesuffix("_list") in set(inter.columns) - {name}]:
        raise UserError(
            f"inter: found the column {windows[0]} in {inter.path}, expected an interaction a row; rows of a history and the next item run "
            "as they are by --protocol=windows, in RecBole's three files"
        )
    shared = set(item.columns) if item is not None else set()
    chosen = _choose(inter, "inter", COLUMNS["inter"], given, shared)
    of_items = columns_like("release_year", inter.columns) if item is None else []
    unused = [name for name in inter.columns if name not in {*chosen.values(), *given.values(), *of_items}]
    if "timestamp" not in chosen and "timestamp" not in given and (timely := _timely(inter, unused)):
        raise UserError(
            f"timestamp: found no column of times by name in {inter.path}, but {_listed(timely)} may be one; expected --columns "
            "timestamp=YOURS, or --columns timestamp= where the order of the file is the order of time"
        )
    return chosen


def _choose_items(inter: RawTable, item: RawTable | None, given: Mapping[str, str], item_id: str) -> dict[str, str]:
    """Our columns of items -> theirs, in a file of their own or among those of the interactions."""
    if item is None:
        rest = [name for name in COLUMNS["item"] if name != "item_id"]
        return {"item_id": item_id, **_choose(inter, "inter", rest, given, ())}
    given = {**given, **({"item_id": given[OF_ITEMS]} if OF_ITEMS in given else {})}
    if given.get("item_id") not in item.columns and OF_ITEMS not in given:  # called so among the interactions alone
        given.pop("item_id", None)
    return _choose(item, "item", COLUMNS["item"], given, {item_id})


def _choose(
    table: RawTable, key: str, wanted: Sequence[str] | Mapping[str, str], given: Mapping[str, str], shared: Collection[str]
) -> dict[str, str]:
    """Our columns -> theirs: as given, else by their names; of several ids of items the one that both files have."""
    chosen: dict[str, str] = {}
    there = list(table.columns)
    for ours in wanted:
        if ours in given:
            theirs = [given[ours]] if given[ours] else []
            if theirs and theirs[0] not in there:
                raise UserError(
                    f"{key}: {table.path} has the columns {_listed(there)}, expected {theirs[0]!r} for {ours}: --columns {ours}=YOURS"
                )
        else:
            theirs = columns_like(ours, [name for name in there if name and name not in given.values()])
            if ours == "title" and "title" in theirs:
                theirs = ["title"]
            if ours == "item_id" and len(theirs) > 1:
                theirs = [name for name in theirs if name in shared] or theirs
        if len(set(theirs)) > 1:
            raise UserError(
                f"{key}: {ours} may be any of {', '.join(theirs)} in {table.path}; expected --columns {ours}=YOURS with one of them"
            )
        if not theirs and ours not in OPTIONAL:
            raise UserError(
                f"{key}: {table.path} has the columns {_listed(there)}, expected one for {ours}: --columns {ours}=YOURS"
                + (f"; if the first line is no header, --{key}_header NAME,NAME,..." if table.form == "text" else "")
                + (
                    f"; if {table.separator!r} does not separate its columns, --separator"
                    if table.separator and len(there) == 1
                    else ""
                )
            )
        if theirs and there.count(theirs[0]) > 1:
            raise UserError(f"{key}: {table.path} has the column {theirs[0]!r} twice, expected it once")
        chosen |= {ours: theirs[0]} if theirs else {}
    return chosen


def _timely(table: RawTable, columns: Sequence[str]) -> list[str]:
    """Columns that may hold times, by their names or by the first rows."""
    columns = [name for name in columns if name and list(table.columns).count(name) == 1]
    first = next(table.batches(columns), None) or [()] * len(columns)
    return [
        name
        for name, cells in zip(columns, first, strict=True)
        if is_timely(name) or (cells and all(_TIME_LIKE.fullmatch(cell) for cell in cells[:100]))
    ]


def _others(names: Sequence[str], cells: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: column for name, column in zip(names, cells, strict=True) if name != "item_id"}


@dataclass
class _Read:
    """Interactions, as they were read: ``user`` and ``item`` numbers, ``time`` in seconds, ``rating``, [M] each."""

    columns: dict[str, np.ndarray]
    users: Ids
    has_times: bool
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _read(
    inter: RawTable, chosen: Mapping[str, str], of_items: Mapping[str, str], items: Ids, texts: Texts, options: Namespace
) -> _Read:
    """All interactions, without malformed rows; ``of_items`` are columns of items among theirs."""
    wanted = {**of_items, **chosen}
    names, users = list(wanted), Ids("user_id")
    clock = Clock(inter.path, options.time_unit, options.time_format) if "timestamp" in chosen else None
    parts: dict[str, list[np.ndarray]] = {"user": [], "item": [], "time": []}
    malformed: dict[str, tuple[int, str]] = {}  # reason -> how many rows, and the first
    total = unrated = 0
    for batch in inter.batches(list(wanted.values())):
        cells = dict(zip(names, batch, strict=True))
        user, item = users.numbers(cells["user_id"]), items.numbers(cells["item_id"])
        time = np.arange(total + 1, total + 1 + len(user)) if clock is None else clock.seconds(cells["timestamp"])
        is_bad = np.zeros(len(user), dtype=bool)
        for name, is_hole in (("user_id", user < 0), ("item_id", item < 0), ("timestamp", np.isnan(time))):
            if (is_hole & ~is_bad).any():
                row = int((is_hole & ~is_bad).argmax())
                cell, count = cells[name][row], malformed.get(name, (0, ""))[0]
                first = malformed[name][1] if count else f"{cell!r} in row {total + row + 1}"
                malformed[name] = count + int((is_hole & ~is_bad).sum()), first
            is_bad |= is_hole
        if of_items:
            columns = {name: cells[name] for name in of_items if name != "item_id"}
            texts.add(np.where(is_bad, -2, item), columns)
        if "rating" in chosen:
            rating = _ratings(inter.path, cells["rating"])
            unrated += int(np.isnan(rating).sum())
            parts.setdefault("rating", []).append(rating[~is_bad])
        for name, values in (("user", user), ("item", item), ("time", time)):
            parts[name].append(values[~is_bad])
        total += len(user)
        if is_bad.all():  # a file of another kind is found out at once
            _check_malformed(inter.path, malformed, total, options.max_malformed)
    _check_malformed(inter.path, malformed, total, options.max_malformed)
    if not total:
        raise UserError(f"inter: {inter.path} has no rows")
    read = _Read({name: np.concatenate(values) for name, values in parts.items()}, users, clock is not None)
    read.notes = [
        f"left out: {count:,} interactions without {name}, the first has {first} (--max_malformed)"
        for name, (count, first) in malformed.items()
    ]
    if clock is None:
        read.warnings.append(
            "timestamp: there is no column of times, so the order of the file counts as the order of time: the n-th row has the time n. "
            "If the file is ordered otherwise, histories mean nothing"
        )
    else:
        read.notes += clock.notes(read.columns["time"])
    read.notes += [f"rating: {unrated:,} are empty"] if unrated else []
    return read


_EXPECTED = {"timestamp": "a number or a date such as 2024-01-31 (other dates: --time_format, such as %d/%m/%Y)"}


def _check_malformed(path: Path, malformed: Mapping[str, tuple[int, str]], total: int, allowed: float) -> None:
    if (bad := sum(count for count, _ in malformed.values())) <= allowed * total:
        return
    name, (count, first) = max(malformed.items(), key=lambda entry: entry[1][0])
    expected = _EXPECTED.get(name, "an id; empty cells, NA, null and the like are none")
    hint = f"; --max_malformed={np.ceil(1000 * bad / total) / 1000:g} leaves such rows out" if 2 * bad < total else ""
    raise UserError(f"{name}: found {first} of {path}, expected {expected}; {count:,} of {total:,} rows have none{hint}")


def _ratings(path: Path, cells: Sequence[str]) -> np.ndarray:
    numbers = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").replace([np.inf, -np.inf], np.nan)
    wrong = [cell for cell, is_nan in zip(cells, numbers.isna(), strict=True) if is_nan and cell.strip() not in HOLES]
    if wrong:
        raise UserError(f"rating: found {wrong[0]!r} in {path}, expected numbers; --columns rating= leaves the column out")
    return numbers.to_numpy(dtype=np.float64)


def _repeated(rows: pd.DataFrame, choice: str) -> np.ndarray | None:
    """[M] which interactions repeat user, item and time of one before; None where none is to be left out."""
    again = rows.duplicated().to_numpy()
    if not again.any() or choice == "keep":
        return None
    if choice == "refuse":
        raise UserError(
            f"inter: {again.sum():,} of {len(rows):,} interactions repeat user, item and time of one before, the first is the "
            f"{again.argmax() + 1:,}th; expected none: --duplicates=drop leaves them out, --duplicates=keep takes them"
        )
    return again


def _settle_titles(lacking: np.ndarray, counts: np.ndarray, items: Ids, texts: Texts, choice: str, table: RawTable) -> str:
    """What became of the items that have interactions and no title."""
    shown = ", ".join(items.texts[number] for number in lacking[:5])
    found = f"{len(lacking):,} of {int((counts > 0).sum()):,} items have no title, such as {shown}"
    taken = f"{counts[lacking].sum():,} of {counts.sum():,} interactions are with them"
    if choice == "refuse" or (choice == "drop" and counts[lacking].sum() == counts.sum()):
        told = ""
        if len(lacking) == (counts > 0).sum() and texts.titles:
            told = f" {table.path} has ids such as {', '.join(items.texts[number] for number in list(texts.titles)[:3])}: are these the same ids?"
        raise UserError(
            f"titles: {found}; {taken}.{told} Expected a title for each: add them to {table.path}; or --missing_titles=drop leaves "
            "these items and interactions out, --missing_titles=id shows the id as the title"
        )
    if choice == "drop":
        return f"left out: {found}; {taken} (--missing_titles=drop)"
    for number in lacking.tolist():
        texts.titles[number] = items.texts[number]
    return f"titles: {found}; their ids stand in for titles (--missing_titles=id)"


def _told_of_order(rows: pd.DataFrame, has_times: bool) -> list[str]:
    notes = []
    ties = int(rows.duplicated(["user", "time"]).sum())
    if has_times and ties > _TIED * len(rows):
        notes.append(
            f"order: {ties:,} of {len(rows):,} interactions share user and time with one before: the order of the file counts there"
        )
    if repeats := int(rows.duplicated(["user", "item"]).sum()):
        notes.append(
            f"repeats: {repeats:,} of {len(rows):,} interactions are with an item that the user had before: see the key repeated_targets"
        )
    return notes


def _interactions(rows: pd.DataFrame, rating: np.ndarray | None, users: Sequence[str], items: Sequence[str]) -> Rows:
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        numbers = [_numbers(rows["time"].to_numpy()[part])] + ([] if rating is None else [_numbers(rating[part])])
        for user, item, *others in zip(rows["user"][part].tolist(), rows["item"][part].tolist(), *numbers, strict=True):
            yield users[user], items[item], *others


def _numbers(values: np.ndarray) -> list[object]:
    """Numbers as they are written: whole ones without a point, "" for none."""
    return ["" if value != value else int(value) if value == int(value) else value for value in values.tolist()]
