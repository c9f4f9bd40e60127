"""What a study's runs say of its systems: means, spreads, intervals, which differences are more than noise, case studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.evaluator.report import refuse_unlike
from recbole_llara.evaluator.significance import Interval, holm, mcnemar, paired_t, wilson_interval
from recbole_llara.experiments.study_definition import CasePattern, Published, Study
from recbole_llara.experiments.study_runs import Arm, FailedArm, FinishedArm, Outcome
from recbole_llara.utils.errors import UserError

ALPHA = 0.05
FREE = {"chat": "generate"}  # a chat model writes freely, as an LLM does that generates
ALWAYS_VALID = ("score", "constrained")
T_TEST_SEEDS = 3  # a t-test over two seeds has one degree of freedom and finds nothing


@dataclass(frozen=True)
class PublishedResult:
    """What a column of a paper says of a system on a dataset."""

    hit: float  # HitRatio@1
    valid: float | None  # ValidRatio
    differences: list[str]  # how the paper's setting differs from this run's


@dataclass(frozen=True)
class SystemResult:
    """A system on one dataset."""

    name: str
    runs: Sequence[FinishedArm]  # of its seeds, in their order
    draws: Sequence[FinishedArm]  # of further candidates, with the first seed's weights
    correct: np.ndarray  # [seeds, n] bool, which rows it answered correctly, in the order of the rows
    interval: Interval  # of the mean HitRatio@1, over the n rows (Wilson)
    published: dict[str, PublishedResult]  # by column, in the study's order

    @property
    def hits(self) -> np.ndarray:
        """[seeds] HitRatio@1."""
        return self.correct.mean(1)

    @property
    def hit(self) -> float:
        """The mean HitRatio@1."""
        return float(self.correct.mean())

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for one."""
        return float(self.hits.std(ddof=1)) if len(self.hits) > 1 else None

    @property
    def draw_spread(self) -> float | None:
        """The standard deviation over candidate draws, the study's own among them; None for one."""
        if not self.draws:
            return None
        hits = [self.hits[0], *(run.result["correct"] / run.result["n"] for run in self.draws)]
        return float(np.std(hits, ddof=1))

    def mean(self, metric: str, split: str = "test") -> float | None:
        """The mean of one of RecBole's metrics over seeds; None where a seed lacks it."""
        values = [run.result["metrics"].get(split, {}).get(metric) for run in self.runs]
        return None if None in values else float(np.mean(values))


@dataclass(frozen=True)
class Summary:
    """A study on one dataset."""

    dataset: str
    protocol: str
    systems: dict[str, SystemResult]  # by name: those that were run, in the study's order
    failures: dict[str, str]  # system -> what went wrong
    # A row of ``comparisons.csv`` each: McNemar's test of the first seed's answers and, with enough seeds that do not all differ by
    # the same, a paired t-test over seeds; ``*_holm`` are p values corrected for all comparisons on this dataset. The verdict is
    # over seeds where these can be tested, else of the two trained models alone.
    comparisons: list[dict[str, Any]]
    best_baseline: str | None  # by HitRatio@1 on the validation rows
    n: int  # test rows

    @property
    def published(self) -> list[str]:
        """The papers' columns that say something of this dataset."""
        return list(dict.fromkeys(name for system in self.systems.values() for name in system.published))


def summarise(study: Study, outcomes: Mapping[Arm, Outcome]) -> list[Summary]:
    """A summary for each dataset, from the outcomes of all arms.

    Raises:
        UserError: arms of one dataset answered different questions.
    """
    return [
        _summary(study, dataset, {arm: o for arm, o in outcomes.items() if arm.dataset == dataset})
        for dataset in study.datasets
    ]


def _summary(study: Study, dataset: str, outcomes: Mapping[Arm, Outcome]) -> Summary:
    failures = {arm.system: f"{arm}: {o.message}" for arm, o in reversed(outcomes.items()) if isinstance(o, FailedArm)}
    runs: dict[str, list[FinishedArm]] = {name: [] for name in study.systems}
    draws: dict[str, list[FinishedArm]] = {name: [] for name in study.systems}
    for arm, outcome in outcomes.items():
        if isinstance(outcome, FinishedArm):
            (draws if arm.is_draw else runs)[arm.system].append(outcome)
    results = [run.result for of_system in runs.values() for run in of_system]
    if results:
        refuse_unlike(results)
    systems = {
        name: _system_result(study, dataset, name, runs[name], draws[name])
        for name in study.systems
        if runs[name] and name not in failures
    }
    # Chosen on the validation rows: choosing on the test rows would favour it.
    scored = [(systems[name].mean("hit@1", "valid"), name) for name in systems if name in study.baselines]
    baseline = max((pair for pair in scored if pair[0] is not None), default=(None, None))[1]
    protocol, n = (str(results[0]["protocol"]), int(results[0]["n"])) if results else ("", 0)
    return Summary(dataset, protocol, systems, failures, _comparisons(study, dataset, systems, baseline), baseline, n)


def _system_result(
    study: Study, dataset: str, name: str, runs: Sequence[FinishedArm], draws: Sequence[FinishedArm]
) -> SystemResult:
    answers = [{case["row"]: case["correct"] for case in run.cases()} for run in runs]
    rows = sorted(answers[0])
    if any(sorted(other) != rows for other in answers):
        raise UserError(f"{name}: its seeds answered different rows, expected the same: run the study again with --fresh")
    correct = np.array([[of_seed[row] for row in rows] for of_seed in answers], dtype=bool)  # [seeds, n]
    interval = wilson_interval(round(float(correct.mean()) * len(rows)), len(rows))
    published = {
        column.name: PublishedResult(
            column.hit[dataset][name], column.valid.get(dataset, {}).get(name), _differences(column, name, runs[0].result)
        )
        for column in study.published
        if name in column.hit.get(dataset, {})
    }
    return SystemResult(name, runs, draws, correct, interval, published)


def _differences(column: Published, name: str, result: Mapping[str, Any]) -> list[str]:
    """How a paper's setting differs from a run's, beside the candidates, which nobody else can have drawn."""
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


def _comparisons(study: Study, dataset: str, systems: Mapping[str, SystemResult], baseline: str | None) -> list[dict[str, Any]]:
    wanted = list(study.compare)
    if baseline is not None:
        wanted += [(name, baseline) for name in systems if name not in study.baselines]
    distinct = dict.fromkeys(pair for pair in wanted if pair[::-1] not in wanted or pair in study.compare)
    pairs = [(systems[one], systems[other]) for one, other in distinct if one in systems and other in systems]
    tests = [mcnemar(one.correct[0], other.correct[0]) for one, other in pairs]
    enough = bool(pairs) and all(len(one.hits) == len(other.hits) >= T_TEST_SEEDS for one, other in pairs)
    over_seeds = [paired_t(one.hits, other.hits) if enough else None for one, other in pairs]
    corrected = holm([test.p_value for test in tests])
    seeds_corrected = iter(holm([test.p_value for test in over_seeds if test is not None]))
    rows = []
    for (one, other), test, p_holm, seeds in zip(pairs, tests, corrected, over_seeds, strict=True):
        row = {"dataset": dataset, "one": one.name, "other": other.name, "difference": one.hit - other.hit}
        row |= {"both": test.both, "only_one": test.only_a, "only_other": test.only_b, "neither": test.neither}
        row |= {"mcnemar_p": test.p_value, "mcnemar_holm": p_holm}
        found, deciding = "these two models differ", p_holm
        if seeds is not None:
            found, deciding = "a difference", next(seeds_corrected)
            row |= {"t_p": seeds.p_value, "t_holm": deciding, "low": seeds.low, "high": seeds.high}
        rows.append(row | {"verdict": found if deciding < ALPHA else "no difference beyond the noise"})
    return rows


def find_cases(summary: Summary, pattern: CasePattern, number: int = 2, seed: int = 0) -> dict[str, Any] | None:
    """Test rows that some systems answer correctly and others do not (LLaRA fig. 5), in the first seed's answers.

    Args:
        pattern: who is right and who is not.
        number: of rows to show, drawn at random: neither the best nor the worst of them.
        seed: of that draw.

    Returns:
        The pattern's entries, ``count`` of all such rows among ``n``, and ``shown``: of each its ``question`` and ``answers``, the
        records of ``cases.jsonl`` by system. None where a named system failed.
    """
    names = [*pattern.right, *pattern.wrong]
    if not summary.systems.keys() >= set(names):
        return None
    records = {name: {case["row"]: case for case in summary.systems[name].runs[0].cases()} for name in names}
    rows = sorted(records[names[0]])
    fits = [row for row in rows if all(records[name][row]["correct"] == (name in pattern.right) for name in names)]
    drawn = np.random.default_rng(seed).permutation(len(fits))[:number]
    shown = [{name: records[name][fits[index]] for name in names} for index in sorted(drawn)]
    cases = [{"question": answers[names[0]], "answers": answers} for answers in shown]
    return {**vars(pattern), "count": len(fits), "n": len(rows), "shown": cases}
