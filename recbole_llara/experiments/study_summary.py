"""What a study's runs say of its systems: means, spreads, intervals, which differences are more than noise, case studies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.evaluator.report import refuse_unlike
from recbole_llara.evaluator.significance import Interval, MeanDifference, PairedTest, holm, mcnemar, paired_t, wilson_interval
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
    differences: tuple[str, ...]  # how the paper's setting differs from this run's


@dataclass(frozen=True)
class SystemResult:
    """A system on one dataset."""

    name: str
    runs: tuple[FinishedArm, ...]  # of its seeds, in their order
    draws: tuple[FinishedArm, ...]  # of further candidates, with the first seed's weights
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
class Comparison:
    """Two systems on the same rows; the p values ``*_holm`` are corrected for all comparisons on this dataset."""

    one: str
    other: str
    difference: float  # of the mean HitRatio@1, one minus other
    rows: PairedTest  # McNemar's test of the first seed's answers
    seeds: MeanDifference | None  # paired t-test; None with too few seeds, or where all differ by the same
    rows_holm: float
    seeds_holm: float | None

    @property
    def verdict(self) -> str:
        """What may be said: over seeds where these can be tested, else of the two trained models alone."""
        if self.seeds_holm is not None:
            return "a difference" if self.seeds_holm < ALPHA else "no difference beyond the noise"
        return "these two models differ" if self.rows_holm < ALPHA else "no difference beyond the noise"


@dataclass(frozen=True)
class Summary:
    """A study on one dataset."""

    dataset: str
    protocol: str
    systems: tuple[SystemResult, ...]  # those that were run, in the study's order
    failures: dict[str, str]  # system -> what went wrong
    comparisons: tuple[Comparison, ...]
    best_baseline: str | None  # by HitRatio@1 on the validation rows
    n: int  # test rows

    def system(self, name: str) -> SystemResult | None:
        """The system of a name; None where it failed."""
        return next((system for system in self.systems if system.name == name), None)


@dataclass(frozen=True)
class Case:
    """One test row."""

    question: Mapping[str, Any]  # its record in ``cases.jsonl``: history, candidates, target
    answers: dict[str, str]  # system -> its answer's title, or its text where it names no candidate
    correct: frozenset[str]  # the systems that answer correctly


@dataclass(frozen=True)
class Cases:
    """Test rows that some systems answer correctly and others do not (LLaRA fig. 5)."""

    pattern: CasePattern
    count: int  # of all such rows
    n: int  # of all test rows
    shown: tuple[Case, ...]  # some of them, drawn at random


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
    finished = {arm: outcome for arm, outcome in outcomes.items() if isinstance(outcome, FinishedArm)}
    own = [run for arm, run in finished.items() if not arm.is_draw]
    if own:
        refuse_unlike([run.result for run in own])
    names = [
        name for name in study.systems if any(a.system == name and not a.is_draw for a in finished) and name not in failures
    ]
    systems = tuple(_system_result(study, dataset, name, finished) for name in names)
    baseline = _best_baseline(study, systems)
    protocol = str(own[0].result["protocol"]) if own else ""
    n = int(own[0].result["n"]) if own else 0
    pairs = _pairs(study, systems, baseline)
    return Summary(dataset, protocol, systems, failures, _comparisons(pairs), baseline, n)


def _system_result(study: Study, dataset: str, name: str, finished: Mapping[Arm, FinishedArm]) -> SystemResult:
    of_system = {arm: run for arm, run in finished.items() if arm.system == name}
    runs = tuple(run for arm, run in of_system.items() if not arm.is_draw)
    answers = [{case["row"]: case for case in run.cases()} for run in runs]
    rows = sorted(answers[0])
    if any(sorted(other) != rows for other in answers):
        raise UserError(f"{name}: its seeds answered different rows, expected the same: run the study again with --fresh")
    correct = np.array([[of_seed[row]["correct"] for row in rows] for of_seed in answers], dtype=bool)  # [seeds, n]
    draws = tuple(run for arm, run in of_system.items() if arm.is_draw)
    interval = wilson_interval(round(float(correct.mean()) * len(rows)), len(rows))
    published = {
        column.name: PublishedResult(
            column.hit[dataset][name], column.valid.get(dataset, {}).get(name), _differences(column, name, runs[0])
        )
        for column in study.published
        if name in column.hit.get(dataset, {})
    }
    return SystemResult(name, runs, draws, correct, interval, published)


def _differences(column: Published, name: str, run: FinishedArm) -> tuple[str, ...]:
    """How a paper's setting differs from a run's, beside the candidates, which nobody else can have drawn."""
    result, found = run.result, []
    if result["protocol"] != column.protocol:
        found.append(f"protocol {column.protocol} there, {result['protocol']} here")
    theirs, ours = column.llms.get(name, column.llm), None if result["llm"] is None else Path(str(result["llm"])).name
    if ours is not None and ours.casefold() != theirs.casefold():
        found.append(f"{theirs} there, {ours} here")
    decoding = result["decoding"]
    if decoding is not None and FREE.get(decoding, decoding) != column.decoding:
        valid = ", by which every answer is valid" if decoding in ALWAYS_VALID else ""
        found.append(f"decoding {column.decoding} there, {decoding} here{valid}")
    return tuple(found)


def _best_baseline(study: Study, systems: tuple[SystemResult, ...]) -> str | None:
    """Chosen on the validation rows: choosing on the test rows would favour it."""
    scored = [(system.mean("hit@1", "valid"), system.name) for system in systems if system.name in study.baselines]
    known = [pair for pair in scored if pair[0] is not None]
    return max(known)[1] if known else None


def _pairs(study: Study, systems: tuple[SystemResult, ...], baseline: str | None) -> list[tuple[SystemResult, SystemResult]]:
    by_name = {system.name: system for system in systems}
    wanted = list(study.compare)
    if baseline is not None:
        wanted += [(name, baseline) for name in by_name if name not in study.baselines]
    distinct = dict.fromkeys(pair for pair in wanted if (pair[1], pair[0]) not in wanted or pair in study.compare)
    return [(by_name[one], by_name[other]) for one, other in distinct if one in by_name and other in by_name]


def _comparisons(pairs: list[tuple[SystemResult, SystemResult]]) -> tuple[Comparison, ...]:
    rows = [mcnemar(one.correct[0], other.correct[0]) for one, other in pairs]
    enough = bool(pairs) and all(len(one.hits) == len(other.hits) >= T_TEST_SEEDS for one, other in pairs)
    seeds = [paired_t(one.hits, other.hits) if enough else None for one, other in pairs]
    rows_holm = holm([test.p_value for test in rows])
    corrected = iter(holm([test.p_value for test in seeds if test is not None]))
    seeds_holm = [None if test is None else next(corrected) for test in seeds]
    return tuple(
        Comparison(one.name, other.name, one.hit - other.hit, *tests)
        for (one, other), *tests in zip(pairs, rows, seeds, rows_holm, seeds_holm, strict=True)
    )


def find_cases(summary: Summary, pattern: CasePattern, number: int = 2, seed: int = 0) -> Cases | None:
    """Rows that fit a pattern, in the first seed's answers.

    Args:
        pattern: who is right and who is not.
        number: of rows to show, drawn at random: neither the best nor the worst of them.
        seed: of that draw.

    Returns:
        None where a named system failed.
    """
    names = pattern.right + pattern.wrong
    if any(summary.system(name) is None for name in names):
        return None
    records = {name: {case["row"]: case for case in summary.system(name).runs[0].cases()} for name in names}
    rows = sorted(records[names[0]])
    fits = [
        row
        for row in rows
        if all(records[name][row]["correct"] for name in pattern.right)
        and not any(records[name][row]["correct"] for name in pattern.wrong)
    ]
    drawn = np.random.default_rng(seed).permutation(len(fits))[:number]
    shown = tuple(_case(fits[index], records) for index in sorted(drawn))
    return Cases(pattern, len(fits), len(rows), shown)


def _case(row: int, records: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Case:
    answers = {name: of_system[row] for name, of_system in records.items()}
    question = next(iter(answers.values()))
    texts = {name: answer["answer_title"] or answer["answer_text"] or "" for name, answer in answers.items()}
    return Case(question, texts, frozenset(name for name, answer in answers.items() if answer["correct"]))
