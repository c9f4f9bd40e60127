"""What pages tell of the runs that have been measured: each function of ``WRITERS`` returns Markdown, a table or words within a sentence."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any

import numpy as np
from runs import NotMeasured, Records, load_runs, study_of, words_of

from recbole_llara.evaluator.significance import holm, mcnemar, wilson_interval
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.experiments.study_record import unpack

BANDS = ((0, 5), (6, 20), (21, None))  # how many users took the target in training
COLUMNS = {"hit@5": "HitRatio@5", "ndcg@10": "NDCG@10"}


def _only(records: Records, run: str) -> Mapping[str, Any]:
    if run not in load_runs():
        raise ValueError(f"found the run {run!r}, expected one of runs.yaml")
    if run not in records:
        raise NotMeasured(run)
    (of_dataset,) = records[run]["datasets"].values()
    return of_dataset


def table(records: Records, run: str, systems: Sequence[str] = ()) -> str:
    """A run's systems: HitRatio@1 over all seeds with its interval over rows, and what else was measured."""
    of_dataset = _only(records, run)
    shown = {name: of_dataset["systems"][name] for name in systems or of_dataset["systems"]}
    has_nll = any("nll" in seed for system in shown.values() for seed in system["seeds"])
    valid_shares = {name: _mean(system, "validratio") for name, system in shown.items()}
    has_valid = any(share is not None and share < 1 for share in valid_shares.values())
    header = [
        "system",
        "HitRatio@1",
        *COLUMNS.values(),
        *(["NLL", "ECE"] if has_nll else []),
        *(["ValidRatio"] if has_valid else []),
    ]
    lines = []
    for name, system in shown.items():
        cells = [name, hit(records, run, name), *(_share(_mean(system, key)) for key in COLUMNS)]
        if has_nll:
            cells += [_fixed(_mean_of(system, "nll"), 2), _share(_mean_of(system, "ece"), 2)]
        if has_valid:
            cells.append(_share(valid_shares[name]))
        lines.append(cells)
    return _markdown(header, lines)


def beside(records: Records, columns: Mapping[str, str], papers: Mapping[str, tuple[str, int, str]] | None = None) -> str:
    """HitRatio@1 of the same systems in several runs.

    Args:
        columns: heading -> run.
        papers: heading -> (study, which of its published columns, dataset), of which ValidRatio stands in brackets where it has one.
    """
    names = list(dict.fromkeys(name for run in columns.values() for name in _only(records, run)["systems"]))
    published = {heading: _published(*place) for heading, place in (papers or {}).items()}
    lines = []
    for name in names:
        cells = [hit(records, run, name) if name in _only(records, run)["systems"] else "" for run in columns.values()]
        lines.append([name, *cells, *(told.get(name, "") for told in published.values())])
    return _markdown(["system", *columns, *published], lines)


def _published(study: str, number: int, dataset: str) -> dict[str, str]:
    column = load_study(study).published[number]
    shares = column.valid.get(dataset, {})
    return {
        name: _share(hit) + (f" ({_share(shares[name])})" if name in shares else "")
        for name, hit in column.hit[dataset].items()
    }


def seeds(records: Records, run: str, systems: Sequence[str]) -> str:
    """HitRatio@1 of every seed and their mean."""
    of_dataset, numbers = _only(records, run), records[run]["seeds"]
    lines = []
    for name in systems:
        shares = [_correct(of_dataset, seed).mean() for seed in of_dataset["systems"][name]["seeds"]]
        lines.append([name, *map(_share, shares), _share(sum(shares) / len(shares))])
    return _markdown(["system", *(f"seed {number}" for number in numbers), "mean"], lines)


def differences(records: Records, run: str, pairs: Sequence[Sequence[str]] = ()) -> str:
    """The comparisons of a run, all or those of pairs, with Holm's correction over all of them."""
    found = _only(records, run)["comparisons"]
    if pairs:
        found = [_comparison(records, run, one, other) for one, other in pairs]
    over_seeds = any("t_p" in row and row["t_p"] is not None for row in found)
    header = ["compared", "difference", "only the first / only the second", "p", "p (Holm)"]
    header += ["over seeds: 95 % interval", "p", "p (Holm)", "over rows: p", "p (Holm)"] if over_seeds else []
    lines = []
    for row in found:
        cells = [f"{row['one']} against {row['other']}", _signed(row["difference"]), f"{row['only_one']} / {row['only_other']}"]
        cells += [_p(row["mcnemar_p"]), _p(row["mcnemar_holm"])]
        if over_seeds:
            interval = "" if row.get("low") is None else f"{_signed(row['low'])} to {_signed(row['high'])}"
            cells += [interval, *(_p(row.get(key)) for key in ("t_p", "t_holm", "rows_p", "rows_holm"))]
        lines.append(cells)
    return _markdown(header, lines)


def draws(records: Records, runs: Mapping[str, str], pairs: Sequence[Sequence[str]]) -> str:
    """Pairs of systems over several draws of the held-out items: each draw by itself, and McNemar's exact test over all rows of all draws.

    A user's rows of two draws ask for different targets out of different candidates, and are answered by other trained models.

    Args:
        runs: heading -> run, of one seed each.
        pairs: the comparisons, which Holm's correction counts.
    """
    right = {heading: {} for heading in runs}
    for heading, run in runs.items():
        of_dataset = _only(records, run)
        for name in {name for pair in pairs for name in pair}:
            (seed,) = of_dataset["systems"][name]["seeds"]
            right[heading][name] = _correct(of_dataset, seed)
    together = [mcnemar(*(np.concatenate([of_run[name] for of_run in right.values()]) for name in pair)) for pair in pairs]
    n = sum(len(next(iter(of_run.values()))) for of_run in right.values())
    lines = []
    for (one, other), test, corrected in zip(pairs, together, holm([test.p_value for test in together]), strict=True):
        cells = [f"{one} against {other}"]
        for of_run in right.values():
            cells.append(" to ".join(_share(of_run[name].mean()) for name in (other, one)))
        cells += [_signed((test.only_a - test.only_b) / n), f"{test.only_a} / {test.only_b}", _p(test.p_value), _p(corrected)]
        lines.append(cells)
    return _markdown(["compared", *runs, f"difference, n = {n:,}", "only the first / only the second", "p", "p (Holm)"], lines)


def popularity(records: Records, run: str, systems: Sequence[str]) -> str:
    """HitRatio@1 over all seeds by how many users took the target in training."""
    of_dataset = _only(records, run)
    users = of_dataset["target_users"]
    header, lines = ["system"], [[name] for name in systems]
    for first, last in BANDS:
        chosen = [row for row, count in enumerate(users) if count >= first and (last is None or count <= last)]
        header.append(
            f"{first} to {last} users, n = {len(chosen)}" if last is not None else f"{first} or more, n = {len(chosen)}"
        )
        for cells, name in zip(lines, systems, strict=True):
            of_seeds = (
                [_correct(of_dataset, seed)[chosen].mean() for seed in of_dataset["systems"][name]["seeds"]] if chosen else []
            )
            cells.append(_interval(sum(of_seeds) / len(of_seeds), len(chosen)) if of_seeds else "")
    return _markdown(header, lines)


def re_ranked(records: Records, run: str) -> str:
    """What systems make of their recommender's own list of the whole catalogue: means over seeds, gains with intervals over rows."""
    lines = []
    for name, system in _only(records, run)["systems"].items():
        if "gains" in system:
            told = [seed["full_rank"] for seed in system["seeds"]]
            cells = [name, _share(fmean(of_seed["target_proposed"]["share"] for of_seed in told), 3)]
            for metric in ("hit@10", "ndcg@10"):
                shares = [fmean(of_seed[who][metric]["share"] for of_seed in told) for who in ("retriever", "reranker")]
                gain = system["gains"][metric]
                interval = "" if gain["low"] is None else f" [{_signed(gain['low'])}, {_signed(gain['high'])}]"
                cells += [" to ".join(map(_share, shares)), f"{_signed(gain['mean'])}{interval}"]
            lines.append(cells)
    return _markdown(["system", "target proposed", "Hit@10", "gain [95 %]", "NDCG@10", "gain [95 %]"], lines)


def oracle(records: Records, run: str, base: str, sums: Mapping[str, Sequence[str]]) -> str:
    """What systems could add to a base, and what their sums with it do: means over seeds, in rows of the base's errors.

    Args:
        sums: sum -> what it adds to the base. The oracle is right where the base or one of these is.
    """
    systems = _only(records, run)["systems"]
    right = {name: np.array([_correct(_only(records, run), seed) for seed in told["seeds"]]) for name, told in systems.items()}
    lines = []
    for name, added in sums.items():
        either = np.any([right[base], *(right[one] for one in added)], axis=0)
        own, of_sum, of_oracle = (rows.mean() for rows in (right[base], right[name], either))
        lines.append([name, _share(of_sum), _share(of_oracle), f"{100 * (of_sum - own) / (of_oracle - own):.0f} %"])
    return _markdown(["system", "HitRatio@1", f"{base} or what is added is right", "of that gap closed"], lines)


def hit(records: Records, run: str, system: str) -> str:
    """``.5005 [.469, .532]``: HitRatio@1 over all seeds, Wilson's interval over the rows."""
    of_dataset = _only(records, run)
    shares = [_correct(of_dataset, seed).mean() for seed in of_dataset["systems"][system]["seeds"]]
    return _interval(sum(shares) / len(shares), of_dataset["n"])


def hits(records: Records, run: str, system: str) -> str:
    """``.5005``, HitRatio@1 over all seeds alone."""
    return hit(records, run, system).split(" ")[0]


def valid(records: Records, run: str, system: str) -> str:
    """``.4305``, ValidRatio over all seeds."""
    return _share(_mean(_only(records, run)["systems"][system], "validratio"))


def p(records: Records, run: str, one: str, other: str) -> str:
    """The corrected p value of a comparison: the greater of those over seeds and over rows where they can be tested, else McNemar's."""
    row = _comparison(records, run, one, other)
    return _p(row["mcnemar_holm"] if row.get("t_holm") is None else max(row["t_holm"], row["rows_holm"]))


def paired(records: Records, run: str, one: str, other: str) -> str:
    """``318 / 45, p = 1e-50``: the first seed's rows that only one of two systems is right in; McNemar's exact test, Holm's correction."""
    row = next(row for row in _only(records, run)["comparisons"] if {row["one"], row["other"]} == {one, other})
    first, second = ("only_one", "only_other") if row["one"] == one else ("only_other", "only_one")
    corrected = row["mcnemar_holm"]
    told = _p(corrected) if corrected >= 0.001 else f"{corrected:.0e}".replace("e-0", "e-")
    return f"{row[first]} / {row[second]}, p = {told}"


def cases(records: Records, run: str) -> str:
    """How many rows of the first seed follow each pattern of a study's case studies."""
    study, of_dataset = study_of(load_runs()[run]), _only(records, run)
    right = {name: _correct(of_dataset, told["seeds"][0]) for name, told in of_dataset["systems"].items()}  # of each [n]
    lines = []
    for pattern in study.cases:
        found = np.logical_and.reduce([*(right[name] for name in pattern.right), *(~right[name] for name in pattern.wrong)])
        lines.append([pattern.title, ", ".join(pattern.right), ", ".join(pattern.wrong), str(found.sum())])
    return _markdown(["case", "right", "wrong", f"rows of {of_dataset['n']:,}"], lines)


def rows(records: Records, run: str) -> str:
    """The number of test rows."""
    return str(_only(records, run)["n"])


def provenance(records: Records) -> str:
    """Every stored run: its command, code, machine and time."""
    if not records:
        return "No run yet."
    lines = []
    for name, record in records.items():
        run = load_runs()[name]
        by_system = [system for of_dataset in record["datasets"].values() for system in of_dataset["systems"].values()]
        told = [{"llm": system["llm"], **seed} for system in by_system for seed in system["seeds"]]
        machines = {_machine(seed["machine"]) for seed in told if "machine" in seed}
        codes = {seed["versions"]["code"][:10] for seed in told}
        llms = {f"{seed['llm']} {seed['llm_digest'][:6]}" for seed in told if seed.get("llm_digest")}
        # A chat model's server tells no digest.
        llms |= {
            llm for seed in told if (llm := seed["llm"]) is not None and not any(each.startswith(f"{llm} ") for each in llms)
        }
        seconds = sum(seed["seconds"] for seed in told)
        command = f"`recbole-llara study {' '.join(words_of(run))}`"
        spent = str(timedelta(seconds=round(seconds)))
        told_of = (", ".join(sorted(codes)), ", ".join(sorted(llms)), "; ".join(sorted(machines)))
        lines.append([command, record["commit"], *told_of, spent, run["budget"]])
    return _markdown(["command", "commit", "code", "LLM", "machine", "time of all systems", "budget"], lines)


def _machine(machine: Mapping[str, Any]) -> str:
    return machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def _comparison(records: Records, run: str, one: str, other: str) -> Mapping[str, Any]:
    return next(row for row in _only(records, run)["comparisons"] if (row["one"], row["other"]) == (one, other))


def _correct(of_dataset: Mapping[str, Any], seed: Mapping[str, Any]) -> Any:
    return unpack(seed["correct"], of_dataset["n"])  # [n] bool


def _mean(system: Mapping[str, Any], metric: str) -> float | None:
    values = [seed["metrics"]["test"].get(metric) for seed in system["seeds"]]
    return None if None in values else sum(values) / len(values)


def _mean_of(system: Mapping[str, Any], key: str) -> float | None:
    values = [seed.get(key) for seed in system["seeds"]]
    return None if None in values else sum(values) / len(values)


def _interval(share: float, n: int) -> str:
    interval = wilson_interval(round(share * n), n)
    return f"{_share(share)} [{_share(interval.low, 3)}, {_share(interval.high, 3)}]"


def _share(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.0f}"


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}".replace("0.", ".", 1) if value < 1 else "1"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


WRITERS = (
    table,
    beside,
    seeds,
    differences,
    draws,
    popularity,
    re_ranked,
    oracle,
    hit,
    hits,
    valid,
    p,
    paired,
    cases,
    rows,
    provenance,
)
