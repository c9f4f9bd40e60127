"""Results side by side: only systems that answered the same rows from the same candidates share a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_llara.evaluator.significance import mcnemar
from recbole_llara.utils.errors import UserError

ABSENT = "—"
OPTIONAL_COLUMNS = {"hit@5": "HitRatio@5", "ndcg@10": "NDCG@10"}  # RecBole's key -> heading


def system_name(result: Mapping[str, Any]) -> str:
    """``LLaRA(SASRec)`` for a system over a frozen recommender, the model's own name otherwise."""
    return f"{result['model']}({result['rec_model']})" if result.get("rec_model") else str(result["model"])


def comparison_table(results: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """Markdown table of results, one row a system, in the order given, aligned to be read as plain text too.

    Args:
        results: contents of ``result.json`` files.
        names: of the systems; None = as the results tell.

    Raises:
        UserError: no results, or they differ in dataset, protocol, number of rows or candidate sets.
    """
    if not results:
        raise UserError("No results to compare: expected the result.json of at least one run.")
    refuse_unlike(results)
    header = ["Model", "HitRatio@1", "95 % interval", "ValidRatio", "n", *OPTIONAL_COLUMNS.values()]
    rows = [[name, *_cells(result)] for name, result in zip(names or _distinct_names(results), results, strict=True)]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned to be read as plain text too: the first column to the left, the others to the right."""
    cells = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paired_test_lines(
    cases_a: Sequence[Mapping[str, Any]],
    cases_b: Sequence[Mapping[str, Any]],
    name_a: str,
    name_b: str,
    alpha: float = 0.05,
) -> list[str]:
    """Two sentences on whether two systems differ on the rows they share (exact McNemar).

    Args:
        cases_a, cases_b: records of ``cases.jsonl``, of the same rows in any order.
        name_a, name_b: the systems' names.
        alpha: the p value under which a difference is called one.

    Raises:
        UserError: the two do not hold the same rows, targets and candidates.
    """
    a, b = ({case["row"]: case for case in cases} for cases in (cases_a, cases_b))
    if a.keys() != b.keys() or not a:
        raise UserError(
            f"{name_a} has {len(a)} rows and {name_b} has {len(b)}, {len(a.keys() & b.keys())} of them the same: "
            "a paired test needs the same rows; run both with the same dataset, protocol, seed and max_eval_rows."
        )
    for row, case in a.items():
        if any(case[key] != b[row][key] for key in ("user", "target", "candidates")):
            raise UserError(
                f"Row {row} asks {name_a} and {name_b} different questions: "
                "run both with the same candidate_seed, candidate_num and candidate_exclude."
            )
    rows = sorted(a)
    test = mcnemar(np.array([a[row]["correct"] for row in rows]), np.array([b[row]["correct"] for row in rows]))
    verdict = f"a difference at the {alpha:g} level" if test.p_value < alpha else "no difference beyond the noise"
    return [
        f"Of n = {test.n} rows, both right {test.both}, only {name_a} {test.only_a}, "
        f"only {name_b} {test.only_b}, neither {test.neither}.",
        f"Exact McNemar test, two-sided: p = {test.p_value:.3g}: {verdict}.",
    ]


def _cells(result: Mapping[str, Any]) -> list[str]:
    metrics, interval = result["metrics"]["test"], result["interval_95"]
    valid, *optional = (
        ABSENT if metrics.get(key) is None else f"{metrics[key]:.4f}" for key in ("validratio", *OPTIONAL_COLUMNS)
    )
    low_to_high = f"{interval['low']:.3f} to {interval['high']:.3f}"
    return [f"{metrics['hit@1']:.4f}", low_to_high, valid, str(result["n"]), *optional]


def _distinct_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the systems; equal ones are told apart by decoding and seed."""
    names = [system_name(result) for result in results]
    repeated = Counter(names)
    return [
        name
        if repeated[name] == 1
        else f"{name} [" + ", ".join(filter(None, [result.get("decoding"), f"seed {result['seed']}"])) + "]"
        for name, result in zip(names, results, strict=True)
    ]


def refuse_unlike(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse results that are no answers to the same questions.

    Raises:
        UserError: they differ in dataset, protocol, number of rows or candidate sets.
    """
    first, *others = map(_questions, results)
    for result, other in zip(results[1:], others, strict=True):
        found = [f"{what}: {first[what]} and {other[what]}" for what in first if first[what] != other[what]]
        if found:
            raise UserError(
                f"{system_name(results[0])} and {system_name(result)} did not answer the same questions ({'; '.join(found)}): "
                "one table needs the same dataset, protocol, candidate_seed (or seed) and max_eval_rows."
            )


def _questions(result: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in one table."""
    asked = {what: result[what] for what in ("dataset", "protocol", "n")}
    return {**asked, "candidate_sha256": result["candidate_sha256"]["test"]}
