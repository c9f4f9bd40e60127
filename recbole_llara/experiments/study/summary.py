"""What the arms of a study say of its systems: means, spreads, intervals, and which differences are more than noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_llara.evaluator.report import refuse_unlike
from recbole_llara.evaluator.significance import Interval, MeanDifference, PairedTest, holm, mcnemar, paired_t, wilson_interval
from recbole_llara.experiments.study.arms import Arm, Entry, Failure
from recbole_llara.experiments.study.definition import Published, Study
from recbole_llara.utils.errors import UserError

ALPHA = 0.05
FREE = {"chat": "generate"}  # a chat model writes what it likes, as an LLM does that generates
ALWAYS_VALID = ("score", "constrained")
T_TEST_SEEDS = 3  # a t-test over two seeds has one degree of freedom and finds nothing


@dataclass(frozen=True)
class Reported:
    """What a column of a paper says of a system on a dataset.

    Args:
        hit: its HitRatio@1.
        valid: its ValidRatio, or None.
        differences: how the paper's setting differs from this run's.
    """

    hit: float
    valid: float | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A system on one dataset.

    Args:
        name: of the system.
        entries: of its seeds, in their order.
        draws: of further candidate draws, with the first seed's weights.
        correct: [seeds, n] bool, which rows it answered correctly, in the order of the rows.
        interval: of the mean HitRatio@1, over the n rows (Wilson).
        published: column -> what it reports, in the study's order.
    """

    name: str
    entries: tuple[Entry, ...]
    draws: tuple[Entry, ...]
    correct: np.ndarray
    interval: Interval
    published: dict[str, Reported]

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
        hits = [self.hits[0], *(entry.result["correct"] / entry.result["n"] for entry in self.draws)]
        return float(np.std(hits, ddof=1))

    def mean(self, metric: str, split: str = "test") -> float | None:
        """The mean of one of RecBole's metrics over seeds; None where a seed has it not."""
        values = [entry.result["metrics"].get(split, {}).get(metric) for entry in self.entries]
        return None if None in values else float(np.mean(values))


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same rows.

    Args:
        one, other: their names.
        difference: of the mean HitRatio@1, one less other.
        rows: McNemar's test of the first seed's answers.
        seeds: paired t-test over seeds; None with too few of them, or where all differ by the same.
        rows_holm, seeds_holm: p values corrected for all comparisons of the study on this dataset.
    """

    one: str
    other: str
    difference: float
    rows: PairedTest
    seeds: MeanDifference | None
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
    """A study on one dataset.

    Args:
        dataset: its name.
        protocol: of its rows.
        systems: those that were run, in the study's order.
        failures: name -> what went wrong.
        comparisons: of pairs.
        best_baseline: the baseline with the best HitRatio@1 on the validation rows, or None.
        n: test rows.
    """

    dataset: str
    protocol: str
    systems: tuple[Measured, ...]
    failures: dict[str, str]
    comparisons: tuple[Comparison, ...]
    best_baseline: str | None
    n: int

    def system(self, name: str) -> Measured | None:
        """The system of a name; None where it failed."""
        return next((system for system in self.systems if system.name == name), None)


def summarise(study: Study, outcomes: Mapping[Arm, Entry | Failure]) -> list[Summary]:
    """A summary for each dataset.

    Args:
        study: what was run.
        outcomes: of all its arms.

    Raises:
        UserError: arms of one dataset answered different questions.
    """
    return [
        _summary(study, dataset, {arm: o for arm, o in outcomes.items() if arm.dataset == dataset})
        for dataset in study.datasets
    ]


def _summary(study: Study, dataset: str, outcomes: Mapping[Arm, Entry | Failure]) -> Summary:
    failures = {arm.system: f"{arm}: {o.message}" for arm, o in reversed(outcomes.items()) if isinstance(o, Failure)}
    finished = {arm: outcome for arm, outcome in outcomes.items() if isinstance(outcome, Entry)}
    asked = [entry for arm, entry in finished.items() if not arm.is_draw]
    if asked:
        refuse_unlike([entry.result for entry in asked])
    names = [
        name for name in study.systems if any(a.system == name and not a.is_draw for a in finished) and name not in failures
    ]
    systems = tuple(_measured(study, dataset, name, finished) for name in names)
    baseline = _best_baseline(study, systems)
    protocol = str(asked[0].result["protocol"]) if asked else ""
    n = int(asked[0].result["n"]) if asked else 0
    pairs = _pairs(study, systems, baseline)
    return Summary(dataset, protocol, systems, failures, _comparisons(pairs), baseline, n)


def _measured(study: Study, dataset: str, name: str, finished: Mapping[Arm, Entry]) -> Measured:
    of_system = {arm: entry for arm, entry in finished.items() if arm.system == name}
    entries = tuple(entry for arm, entry in of_system.items() if not arm.is_draw)
    answers = [{case["row"]: case for case in entry.cases()} for entry in entries]
    rows = sorted(answers[0])
    if any(sorted(other) != rows for other in answers):
        raise UserError(f"{name}: its seeds answered different rows, expected the same: run the study again with --fresh")
    correct = np.array([[of_seed[row]["correct"] for row in rows] for of_seed in answers], dtype=bool)  # [seeds, n]
    draws = tuple(entry for arm, entry in of_system.items() if arm.is_draw)
    interval = wilson_interval(round(float(correct.mean()) * len(rows)), len(rows))
    published = {
        column.name: Reported(
            column.hit[dataset][name], column.valid.get(dataset, {}).get(name), _differences(column, name, entries[0])
        )
        for column in study.published
        if name in column.hit.get(dataset, {})
    }
    return Measured(name, entries, draws, correct, interval, published)


def _differences(column: Published, name: str, entry: Entry) -> tuple[str, ...]:
    """How a paper's setting differs from a run's, beside the candidates, which nobody else can have drawn."""
    result, found = entry.result, []
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


def _best_baseline(study: Study, systems: tuple[Measured, ...]) -> str | None:
    """Chosen on the validation rows: choosing on the test rows would favour it."""
    scored = [(system.mean("hit@1", "valid"), system.name) for system in systems if system.name in study.baselines]
    known = [pair for pair in scored if pair[0] is not None]
    return max(known)[1] if known else None


def _pairs(study: Study, systems: tuple[Measured, ...], baseline: str | None) -> list[tuple[Measured, Measured]]:
    by_name = {system.name: system for system in systems}
    wanted = list(study.compare)
    if baseline is not None:
        wanted += [(name, baseline) for name in by_name if name not in study.baselines]
    distinct = dict.fromkeys(pair for pair in wanted if (pair[1], pair[0]) not in wanted or pair in study.compare)
    return [(by_name[one], by_name[other]) for one, other in distinct if one in by_name and other in by_name]


def _comparisons(pairs: list[tuple[Measured, Measured]]) -> tuple[Comparison, ...]:
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
