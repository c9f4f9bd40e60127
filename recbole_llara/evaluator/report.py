"""Results side by side: only systems that answered the same rows from the same candidates share a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_llara.evaluator.significance import mcnemar
from recbole_llara.utils.errors import UserError

ABSENT = "—"
ALPHA = 0.05
OPTIONAL_COLUMNS = {"hit@5": "HitRatio@5", "ndcg@10": "NDCG@10"}  # RecBole's key -> heading


def system_name(result: Mapping[str, Any]) -> str:
    """``LLaRA + SASRec`` for a sum, ``LLaRA(SASRec)`` for a system over a frozen recommender, else the model's own name."""
    if result.get("fusion"):
        return str(result["fusion"]["name"])
    return f"{result['model']}({result['rec_model']})" if result.get("rec_model") else str(result["model"])


def comparison_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of ``result.json`` contents, a row each in the order given; equal names are told apart by decoding and seed.

    Raises:
        UserError: no results, or as ``refuse_unlike``.
    """
    if not results:
        raise UserError("No results to compare: expected the result.json of at least one run.")
    refuse_unlike(results)
    names, rows = list(map(system_name, results)), []
    for name, result in zip(names, results, strict=True):
        setting = ", ".join(filter(None, [result.get("decoding"), f"seed {result['seed']}"]))
        metrics, interval = result["metrics"]["test"], result["interval_95"]
        valid, *optional = (
            ABSENT if metrics.get(key) is None else f"{metrics[key]:.4f}" for key in ("validratio", *OPTIONAL_COLUMNS)
        )
        low_to_high = f"{interval['low']:.3f} to {interval['high']:.3f}"
        told = name if names.count(name) == 1 else f"{name} [{setting}]"
        rows.append([told, f"{metrics['hit@1']:.4f}", low_to_high, valid, str(result["n"]), *optional])
    return markdown_table(["Model", "HitRatio@1", "95 % interval", "ValidRatio", "n", *OPTIONAL_COLUMNS.values()], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned to be read as plain text too: the first column to the left, the others to the right."""
    cells = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def refuse_unlike(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse results that are no answers to the same questions.

    Raises:
        UserError: they differ in dataset, protocol, number of rows or candidate sets.
    """
    keys = ("dataset", "protocol", "n", "candidate_sha256")
    asked = [{**result, "candidate_sha256": result["candidate_sha256"]["test"]} for result in results]
    for result in asked:
        found = [f"{key}: {asked[0][key]} and {result[key]}" for key in keys if asked[0][key] != result[key]]
        if found:
            raise UserError(
                f"{system_name(results[0])} and {system_name(result)} did not answer the same questions ({'; '.join(found)}): "
                "one table needs the same dataset, protocol, candidate_seed (or seed) and max_eval_rows."
            )


def paired_test_lines(
    cases_a: Sequence[Mapping[str, Any]], cases_b: Sequence[Mapping[str, Any]], name_a: str, name_b: str
) -> list[str]:
    """Two sentences on whether two systems differ, by the records of their ``cases.jsonl`` in any order (exact McNemar).

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
    test = mcnemar(*(np.array([cases[row]["correct"] for row in a]) for cases in (a, b)))
    verdict = f"a difference at the {ALPHA:g} level" if test.p_value < ALPHA else "no difference beyond the noise"
    return [
        f"Of n = {len(a)} rows, both right {test.both}, only {name_a} {test.only_a}, "
        f"only {name_b} {test.only_b}, neither {test.neither}.",
        f"Exact McNemar test, two-sided: p = {test.p_value:.3g}: {verdict}.",
    ]
