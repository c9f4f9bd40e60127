"""What ``recbole-llara convert`` says of a dataset it has written: counts, what was left out, rows to look at, and the next command."""

import json
import shlex
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from recbole_llara.config.yaml_files import read_properties
from recbole_llara.data.tables import Tables, Written, read_rows

_DATES_BEGIN = 1e8  # (s) March 1973: smaller numbers are steps rather than times
_FEW = 100  # test rows from which on an interval is narrower than +- .1
# Interactions that a user needs for a test row, and for a validation row too, under leave_one_out; for any row under llara.
_TEST, _VALID = 3, 4
_ITEMS = 3  # a history's, a target and a negative
_USERS = 10  # from which on llara deals one to each split


def report(tables: Tables, written: Written, out: Path) -> str:
    """The lines that a user reads."""
    lines = [f"{out / tables.name}:"]
    for what, count in written.counts.items():
        paper = tables.published.get(what)
        beside = "" if paper is None else f"  (papers: {paper:,}{'' if paper == count else ', see below'})"
        lines.append(f"  {count:>9,} {what}{beside}")
    if written.times is not None:
        lines.append(f"  times from {' to '.join(map(_moment, written.times))}")
    lines += [f"  - {what}" for what in (*tables.differences, *tables.notes)]
    endings = [ending for ending in tables.files if ending.endswith("inter")]
    names = [name.partition(":")[0] for name in tables.files[endings[0]][0]]
    lines += ["rows, for example:", *(f"  {_row(names, example)}" for example in written.examples)]
    lines += [f"WARNING: {what}" for what in tables.warnings]
    fit, keys = _protocol(tables, written, out, endings)
    if keys is not None:
        command = ["recbole-llara", "--model=SASRec", f"--dataset={tables.name}", f"--data_path={out}", *keys]
        fit += ["next:", f"  {shlex.join(command)}"]
    return "\n".join([*lines, *fit]) + "\n"


def _moment(seconds: float) -> str:
    if abs(seconds) < _DATES_BEGIN:
        return f"{seconds:g}"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return f"{seconds:g}"


def _row(names: list[str], example: tuple[str, ...]) -> str:
    return "  ".join(f"{name} {cell[:60]}" for name, cell in zip([*names, "title"], example, strict=True) if cell)


def _protocol(tables: Tables, written: Written, out: Path, endings: list[str]) -> tuple[list[str], list[str] | None]:
    """Which protocol fits and why; and the keys that a run wants for it, None where there can be no run."""
    if endings != ["inter"]:
        return [], ["--protocol=windows"]
    if read_properties(f"dataset/{tables.name}"):
        return [], []
    tested, validated = (sum(count >= least for count in written.per_user.values()) for least in (_TEST, _VALID))
    most = max(written.per_user.values())
    if len(written.items) < _ITEMS or (not validated and (len(written.per_user) < _USERS or most < 2)):
        why = f"{len(written.per_user):,} users with {most:,} interactions at most, and {len(written.items):,} items"
        return [f"WARNING: no protocol fits: {why}; were interactions left out above?"], None
    dealt = validated // 10
    lines = [
        f"protocol leave_one_out: {tested:,} test rows, one for each user with {_TEST} interactions or more; {validated:,} validation rows"
    ]
    lines.append(
        f"protocol llara, the default: about {dealt:,} test rows, of a tenth of the users with {_VALID} interactions or more"
    )
    keys = ["--protocol=leave_one_out"]
    if not validated:
        lines.append(
            f"WARNING: no user has {_VALID} interactions, so there are no validation rows: only --protocol=llara with "
            "--min_train_history=1 and --min_eval_history=1 can take shorter histories; were interactions left out above?"
        )
        keys = ["--protocol=llara", "--min_train_history=1", "--min_eval_history=1"]
    elif tested < _FEW:
        lines.append(f"{tested:,} test rows are few: a HitRatio@1 has an interval of {tested**-0.5:.2f} or so to each side")
    keys += _small(written, _most_candidates(tables, written, out), lines)
    return lines, keys


def _small(written: Written, candidates: int, lines: list[str]) -> list[str]:
    """The keys that a small catalogue wants; ``lines`` get the reason."""
    usual, n_items, keys = read_properties("overall"), len(written.items), []
    if candidates >= 2:
        candidates = min(candidates, usual["candidate_num"])
        if candidates < usual["candidate_num"]:
            lines.append(
                f"the catalogue is small: the user with the most items leaves {candidates - 1} as negatives, so candidate_num is "
                f"{candidates} instead of {usual['candidate_num']}"
            )
    else:
        lines.append("a user has had every item, so negatives exclude the history alone (candidate_exclude)")
        length = min(usual["MAX_ITEM_LIST_LENGTH"], n_items // 2)
        candidates = min(n_items - length, usual["candidate_num"])
        keys.append("--candidate_exclude=window")
        keys += [f"--MAX_ITEM_LIST_LENGTH={length}"] if length < usual["MAX_ITEM_LIST_LENGTH"] else []
    if candidates < usual["candidate_num"]:
        keys.append(f"--candidate_num={candidates}")
    if max(usual["topk"]) > n_items:
        keys.append(f"--topk={json.dumps([rank for rank in usual['topk'] if rank <= candidates])}")
    return keys


def _most_candidates(tables: Tables, written: Written, out: Path) -> int:
    """How many candidates a row may have: the target and what the user with the most different items has not had."""
    most = max(written.per_user.values())
    if most >= len(written.items) - int(read_properties("overall")["candidate_num"]):  # repeated items may count less
        taken = defaultdict(set)
        rows = read_rows(out / tables.name / f"{tables.name}.inter", "\t")
        next(rows)
        for _, cells in rows:
            taken[cells[0]].add(cells[1])
        most = max(map(len, taken.values()))
    return len(written.items) - most + 1
