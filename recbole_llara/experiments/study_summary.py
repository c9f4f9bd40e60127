"""What a study's runs say of its systems: means, spreads, intervals, which differences are more than noise, case studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llara.evaluator.report import refuse_unlike
from recbole_llara.evaluator.significance import MeanDifference, holm, mcnemar, paired_t, wilson_interval
from recbole_llara.experiments.study_arms import Arm, FailedArm, FinishedArm, Outcome
from recbole_llara.experiments.study_definition import CasePattern, Published, Study
from recbole_llara.serving.full_rank import gains
from recbole_llara.utils.errors import UserError

ALPHA = 0.05
METRICS = {"ValidRatio": "validratio", "HitRatio@5": "hit@5", "NDCG@10": "ndcg@10"}  # heading -> RecBole's key
CALIBRATION = {"NLL": "nll", "ECE": "ece"}  # heading -> key of ``result.json``
FREE = {"chat": "generate"}  # a chat model writes freely, as an LLM does that generates
ALWAYS_VALID = ("score", "constrained")
T_TEST_SEEDS = 3  # a t-test over two seeds has one degree of freedom and finds nothing


@dataclass(frozen=True)
class Summary:
    """A study on one dataset."""

    dataset: str
    protocol: str
    n: int  # test rows
    # A row for each system that was run, in the study's order. Means over seeds: HitRatio@1 with Wilson's interval over rows
    # (low, high), METRICS, CALIBRATION, valid_hit (HitRatio@1 on the validation rows). Standard deviations: spread over seeds,
    # draw_spread over the draws of candidates, whose number is draws. NaN where there is none.
    systems: pd.DataFrame
    runs: dict[str, list[FinishedArm]]  # of each system's seeds, in their order
    correct: dict[str, np.ndarray]  # of each system [seeds, n] bool, which rows it answered correctly, in the order of the rows
    # Of each system that ranked the whole catalogue: what it gains on its recommender's order, metric -> mean over seeds and rows
    # and interval over rows, see ``full_rank.gains``.
    gains: dict[str, dict[str, dict[str, float | None]]]
    # What papers say: column -> system -> hit (HitRatio@1), valid (ValidRatio or None), differences of its setting from ours.
    published: dict[str, dict[str, dict[str, Any]]]
    failures: dict[str, str]  # system -> what went wrong
    best_baseline: str | None  # by HitRatio@1 on the validation rows
    # A row of ``comparisons.csv`` each: McNemar's test of the first seed's answers and, with enough seeds that do not all differ
    # by the same, paired t-tests over seeds (``t_*``) and over rows, each row its mean over the seeds (``rows_*``); ``*_holm`` are
    # p values corrected for all comparisons on this dataset. The verdict needs both t-tests where there are any, else it is
    # McNemar's and speaks of the two trained models alone.
    comparisons: list[dict[str, Any]]


def summarise(study: Study, outcomes: Mapping[Arm, Outcome]) -> list[Summary]:
    """A summary for each dataset; ``UserError`` where arms of one dataset answered different questions."""
    return [_summary(study, dataset, outcomes) for dataset in study.datasets]


def _summary(study: Study, dataset: str, outcomes: Mapping[Arm, Outcome]) -> Summary:
    here = {arm: outcome for arm, outcome in outcomes.items() if arm.dataset == dataset}
    failures = {arm.system: f"{arm}: {one.message}" for arm, one in reversed(here.items()) if isinstance(one, FailedArm)}
    runs: dict[str, list[FinishedArm]] = {name: [] for name in study.systems}
    draws: dict[str, list[FinishedArm]] = {name: [] for name in study.systems}
    for arm, outcome in here.items():
        if isinstance(outcome, FinishedArm):
            (draws if arm.is_draw else runs)[arm.system].append(outcome)
    results = [run.result for of_system in runs.values() for run in of_system]
    if results:
        refuse_unlike(results)
    runs = {name: of_system for name, of_system in runs.items() if of_system and name not in failures}
    correct = {name: _correct(name, of_system) for name, of_system in runs.items()}
    rows = {name: _system_row(runs[name], draws[name], correct[name]) for name in runs}
    published: dict[str, dict[str, dict[str, Any]]] = {}
    for column in study.published:
        valid = column.valid.get(dataset, {})
        for name, hit in column.hit.get(dataset, {}).items():
            if name in runs:
                differences = _differences(column, name, runs[name][0].result)
                told = {"hit": hit, "valid": valid.get(name), "differences": differences}
                published.setdefault(column.name, {})[name] = told
    # Chosen on the validation rows: choosing on the test rows would favour it.
    scored = [(rows[name]["valid_hit"], name) for name in rows if name in study.baselines]
    baseline = max((pair for pair in scored if not np.isnan(pair[0])), default=(None, None))[1]
    return Summary(
        dataset=dataset,
        protocol=str(results[0]["protocol"]) if results else "",
        n=int(results[0]["n"]) if results else 0,
        systems=pd.DataFrame.from_dict(rows, orient="index"),
        runs=runs,
        correct=correct,
        gains={name: _gains(of_system) for name, of_system in runs.items() if of_system[0].result.get("full_rank")},
        published=published,
        failures=failures,
        best_baseline=baseline,
        comparisons=_comparisons(study, dataset, correct, baseline),
    )


def _correct(name: str, runs: Sequence[FinishedArm]) -> np.ndarray:
    answers = [{case["row"]: case["correct"] for case in run.cases()} for run in runs]
    rows = sorted(answers[0])
    if any(sorted(other) != rows for other in answers):
        raise UserError(f"{name}: its seeds answered different rows, expected the same: run the study again with --fresh")
    return np.array([[of_seed[row] for row in rows] for of_seed in answers], dtype=bool)


def _gains(runs: Sequence[FinishedArm]) -> dict[str, dict[str, float | None]]:
    topk = sorted({int(metric.split("@")[1]) for metric in runs[0].result["full_rank"]["gain"]})
    retriever, reranker = np.stack([run.places() for run in runs], axis=1)  # [S, n] each
    return gains(retriever, reranker, topk)


def _system_row(runs: Sequence[FinishedArm], draws: Sequence[FinishedArm], correct: np.ndarray) -> dict[str, float]:
    hits, n = correct.mean(1), correct.shape[1]
    hit = float(correct.mean())
    interval = wilson_interval(round(hit * n), n)
    row = {"HitRatio@1": hit, "low": interval.low, "high": interval.high, "spread": pd.Series(hits).std()}
    of_draws = pd.Series([hits[0], *(run.result["correct"] / run.result["n"] for run in draws)])
    row |= {"draws": len(of_draws), "draw_spread": of_draws.std()}
    for heading, metric in {**METRICS, "valid_hit": "hit@1"}.items():
        split = "valid" if heading == "valid_hit" else "test"
        values = [run.result["metrics"].get(split, {}).get(metric) for run in runs]
        row[heading] = np.nan if None in values else float(np.mean(values))
    for heading, key in CALIBRATION.items():
        values = [run.result.get(key) for run in runs]
        row[heading] = np.nan if None in values else float(np.mean(values))
    return row


def _differences(column: Published, name: str, result: Mapping[str, Any]) -> list[str]:
    """How a paper's setting differs from a run's, apart from the candidates, which always differ."""
    found = []
    if result["protocol"] != column.protocol:
        found.append(f"protocol {column.protocol} there, {result['protocol']} here")
    theirs, ours = column.llms.get(name, column.llm), None if result["llm"] is None else Path(str(result["llm"])).name
    if ours is not None and ours.casefold() != theirs.casefold():
        found.append(f"{theirs} there, {ours} here")
    decoding = result["decoding"]
    if decoding is not None and FREE.get(decoding, decoding) != column.decoding:
        valid = ", by which every answer is valid" if decoding in ALWAYS_VALID else ""
        found.append(f"decoding {column.decoding} there, {decoding} here{valid}")
    return found


def _comparisons(study: Study, dataset: str, correct: Mapping[str, np.ndarray], baseline: str | None) -> list[dict[str, Any]]:
    wanted = list(study.compare)
    if baseline is not None:
        wanted += [(name, baseline) for name in correct if name not in study.baselines]
    distinct = dict.fromkeys(pair for pair in wanted if pair[::-1] not in wanted or pair in study.compare)
    pairs = [(one, other) for one, other in distinct if one in correct and other in correct]
    tests = [mcnemar(correct[one][0], correct[other][0]) for one, other in pairs]
    enough = all(len(correct[one]) == len(correct[other]) >= T_TEST_SEEDS for one, other in pairs)
    t_tests = [_t_tests(correct[one], correct[other]) if enough else None for one, other in pairs]
    families = [
        [test.p_value for test in tests],
        *zip(*[[test.p_value for test in both] for both in t_tests if both], strict=True),
    ]
    corrected, *t_corrected = (iter(holm(family)) for family in families)
    rows = []
    for (one, other), test, both in zip(pairs, tests, t_tests, strict=True):
        difference = float(correct[one].mean() - correct[other].mean())
        row = {"dataset": dataset, "one": one, "other": other, "difference": difference}
        row |= {"both": test.both, "only_one": test.only_a, "only_other": test.only_b, "neither": test.neither}
        row |= {"mcnemar_p": test.p_value, "mcnemar_holm": next(corrected)}
        found, deciding = "these two models differ", row["mcnemar_holm"]
        if both is not None:
            seeds, of_rows = both
            row |= {"t_p": seeds.p_value, "t_holm": next(t_corrected[0]), "low": seeds.low, "high": seeds.high}
            row |= {"rows_p": of_rows.p_value, "rows_holm": next(t_corrected[1])}
            found, deciding = "a difference", max(row["t_holm"], row["rows_holm"])
        rows.append(row | {"verdict": found if deciding < ALPHA else "no difference beyond the noise"})
    return rows


def _t_tests(one: np.ndarray, other: np.ndarray) -> tuple[MeanDifference, MeanDifference] | None:
    """Paired t-tests of correct answers [seeds, n] over the seeds and over the rows; None where either has no spread.

    The first asks whether the difference holds for models of other seeds on these rows, the second whether it holds on other rows for
    models of these seeds.
    """
    over_seeds, over_rows = (paired_t(one.mean(axis), other.mean(axis)) for axis in (1, 0))
    return None if over_seeds is None or over_rows is None else (over_seeds, over_rows)


def find_cases(summary: Summary, pattern: CasePattern, number: int = 2, seed: int = 0) -> dict[str, Any] | None:
    """Test rows that some systems answer correctly and others do not (LLaRA fig. 5), in the first seed's answers.

    Returns:
        The pattern's entries, ``count`` of all such rows among ``n``, and ``shown``: ``number`` of them, drawn at random, each
        with its ``question`` and ``answers``, records of ``cases.jsonl`` by system. None where a named system failed.
    """
    names = [*pattern.right, *pattern.wrong]
    if not summary.runs.keys() >= set(names):
        return None
    records = {name: {case["row"]: case for case in summary.runs[name][0].cases()} for name in names}
    rows = sorted(records[names[0]])
    fits = [row for row in rows if all(records[name][row]["correct"] == (name in pattern.right) for name in names)]
    drawn = np.random.default_rng(seed).permutation(len(fits))[:number]
    shown = [{name: records[name][fits[index]] for name in names} for index in sorted(drawn)]
    cases = [{"question": answers[names[0]], "answers": answers} for answers in shown]
    return {**vars(pattern), "count": len(fits), "n": len(rows), "shown": cases}
