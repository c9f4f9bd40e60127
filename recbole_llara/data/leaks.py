"""Rules that answer without a model: what the draws, their order and the history tell of a target.

    recbole-llara leaks --dataset=ml-100k --protocol=leave_one_out

Each rule scores the candidates of every row; the best is its answer, and where several are best it is right by its share of
them. A rule that says nothing is right in 1 / C of the rows. One that differs from this by more than three standard errors
is a leak, unless the nature of the data explains it: then the reason stands beside it. The command takes the keys of a run,
and --epochs, the training epochs whose draws are looked at; it exits with 1 where it finds a leak. With --model=LLaRA and
--candidate_draw=recommender the rules see draws from what the recommender proposes; with --recommender_rows=earlier it is looked
whether the recommender of training learned from what it is asked in training, of which not one row is right. With
--protocol=cold_items it is looked for held-out items where none may be: in training rows, in histories, and among what training knows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD, CandidateDataset, PreparedData
from recbole_llara.data.rows import Rows

_DRAWN_AT_ONCE = 1 << 16  # training rows
SIGMAS = 3.0
SURE = 7.0  # expected draws, of which none comes in less than one case in a thousand

POPULARITY = "popular items are targets more often and negatives are uniform: any recommender may know it"
NUMBERING = "items are numbered by the file's order, which goes with popularity and time"
IDS = "the dataset's own ids go with popularity, with time or with the order of the histories"
REPEATS = "users take items again (repeated_targets: keep)"
HABIT = "users take again one of the few items that they had before: behaviour that any recommender may know"
WINDOW = "negatives exclude the visible history alone (candidate_exclude: window)"
PROPOSED = (
    "negatives are what the recommender proposes for the user's training rows, as it might for the next item: any recommender "
    "may know it (candidate_draw)"
)
TOGETHER = "negatives of a user's test rows exclude the targets of the others: only a system that reads test rows together could use it"


class Draws(NamedTuple):
    """Rows with their users [D], targets [D] and drawn candidates [D, C]; int64."""

    users: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray

    @property
    def is_target(self) -> np.ndarray:
        """[D, C] which candidate is the row's target."""
        return self.candidates == self.targets[:, None]


class Evidence:
    """All that a rule may look at: the rows asked, [B] of them with candidates [B, C], and what a system meets before them.

    Args:
        dataset: of the split.
        before: rows whose candidates and targets a system has met: the training draws, and for test the validation rows.
    """

    def __init__(self, dataset: CandidateDataset, before: Mapping[str, Draws]) -> None:
        self.rows, self.before = dataset.rows_of(dataset.inter_feat), before
        self.candidates = dataset.inter_feat[CANDIDATE_FIELD].numpy()
        self.known, self.is_held_out = dataset.knowledge.known["train"], dataset.is_held_out
        self.id_rank = rank_ids([str(token) for token in dataset.field2id_token[dataset.iid_field]])
        self.n_items = self.known.n_items  # N, the padding item counted
        self.keys = self.rows.users[:, None] * self.n_items + self.candidates  # [B, C] of user and candidate
        self.columns = np.arange(self.candidates.shape[1])
        row, item = dataset.knowledge.past(self.rows)
        asked = np.arange(len(self.keys))[:, None] * self.n_items + self.candidates
        self.in_past = np.isin(asked, row * self.n_items + item)  # [B, C] whether the user had each candidate before

    def negatives(self, what: str) -> np.ndarray:
        """[B, C] how often each candidate was a negative of its row's user in the draws of ``what``."""
        if what not in self.before:
            return np.zeros(self.keys.shape, dtype=np.int64)
        draws = self.before[what]
        drawn = (draws.users[:, None] * self.n_items + draws.candidates)[~draws.is_target]
        counts = pd.Series(drawn[np.isin(drawn, self.keys)]).value_counts()
        return counts.reindex(self.keys.ravel(), fill_value=0).to_numpy().reshape(self.keys.shape)

    def missed(self) -> np.ndarray:
        """[B, C] whether a candidate never was the user's negative in training, though all users' draws let expect it often."""
        draws, users = self.before["train"], self.rows.users
        n_drawn = np.bincount(draws.users, minlength=users.max() + 1)[users]  # [B] draws for the row's user
        expected = self.negatives_of_all() * (n_drawn / len(draws.users))[:, None]
        return (expected >= SURE) & (self.negatives("train") == 0)

    def negatives_of_all(self) -> np.ndarray:
        """[B, C] how often each candidate was a negative of anybody in training."""
        draws = self.before["train"]
        return np.bincount(draws.candidates[~draws.is_target], minlength=self.n_items)[self.candidates]

    def commonest_column(self) -> np.ndarray:
        """[B, C] whether a candidate stands where training targets stand most."""
        return np.broadcast_to(self.columns == self.before["train"].is_target.sum(axis=0).argmax(), self.keys.shape)

    def column_of_the_item(self) -> np.ndarray:
        """[B, C] whether a candidate stands where it stood when it was last a training target."""
        draws, column = self.before["train"], np.full(self.n_items, -1)
        column[draws.targets] = draws.is_target.argmax(axis=1)
        return column[self.candidates] == self.columns

    def popularity(self) -> np.ndarray:
        """[B, C] training interactions of each candidate."""
        return np.bincount(self.known.keys % self.n_items, minlength=self.n_items)[self.candidates]

    def in_other_rows(self) -> np.ndarray:
        """[B, C] in how many other rows of the user each candidate stands."""
        _, place, count = np.unique(self.keys, return_inverse=True, return_counts=True)
        return count[place].reshape(self.keys.shape) - 1

    def held_out(self) -> np.ndarray:
        """[B, C] whether each candidate is held out from training."""
        return np.zeros(self.keys.shape, dtype=bool) if self.is_held_out is None else self.is_held_out[self.candidates]

    def next_above(self, rank: np.ndarray) -> np.ndarray:
        """[B, C] higher the closer a candidate stands above the newest item of the history, by a rank [N] of all items."""
        last = np.take_along_axis(self.rows.history, (self.rows.history > 0).sum(1, keepdims=True) - 1, axis=1)  # [B, 1]
        beyond = rank[self.candidates] - rank[last]
        return -np.where(beyond > 0, beyond, len(rank))


def rank_ids(ids: Sequence[str]) -> np.ndarray:
    """Where each item's id [N] stands among all: as numbers where all are, else as texts; the padding item comes first.

    Ids "[PAD]", "10", "9" have the ranks 0, 2, 1.
    """
    texts = list(ids[1:])
    keys = [int(text) for text in texts] if all(text.isdecimal() for text in texts) else texts
    rank = np.zeros(len(ids), dtype=np.int64)
    rank[1 + np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)] = 1 + np.arange(len(keys))
    return rank


LEARNED = "training: the recommender of training learned the target"
HELD_OUT_LEARNED = "training: a held-out item in target, history or draws"
HELD_OUT_COUNTED = "training: a held-out item in its interactions"
HELD_OUT_SHOWN = "history: a held-out item"
MISSED = "training: often anybody's, never the user's negative"
# Of each rule what it scores candidates by, higher for the likelier target, and what in the nature of the data may explain it.
RULES: dict[str, tuple[Callable[[Evidence], np.ndarray], str | None]] = {
    "column: where training targets stand most": (Evidence.commonest_column, None),
    "column: where the item stood as a training target": (Evidence.column_of_the_item, None),
    "training: least often the user's negative": (lambda found: -found.negatives("train"), None),
    "training: most often the user's negative": (lambda found: found.negatives("train"), None),
    MISSED: (Evidence.missed, None),
    "validation: not the user's negative": (lambda found: -found.negatives("valid"), None),
    "validation: the user's negative": (lambda found: found.negatives("valid"), None),
    "training: least often anybody's negative": (lambda found: -found.negatives_of_all(), POPULARITY),
    "training interactions: most": (Evidence.popularity, POPULARITY),
    "training interactions: fewest": (lambda found: -found.popularity(), POPULARITY),
    "history: had before": (lambda found: found.in_past, None),
    "history: not had before": (lambda found: ~found.in_past, None),
    "other rows of the user: in fewest": (lambda found: -found.in_other_rows(), None),
    "held out from training": (Evidence.held_out, None),
    "not held out from training": (lambda found: ~found.held_out(), None),
    "item number: lowest": (lambda found: -found.candidates, NUMBERING),
    "item number: next above the newest item": (lambda found: found.next_above(np.arange(found.n_items)), NUMBERING),
    "item id: next above the newest item": (lambda found: found.next_above(found.id_rank), IDS),
}


# Rules that meet the recommender's taste where it proposes the negatives.
OF_PROPOSALS = (
    *("training: least often the user's negative", "training: most often the user's negative"),
    "training: least often anybody's negative",
)


def credits(scores: np.ndarray, candidates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The probability [B] that a rule of scores [B, C] names each row's target [B] among candidates [B, C], ties broken by chance.

    Scores 3, 5, 5, 1 are right by 1/2 where the target is the second candidate, and by 0 where it is the first.
    """
    best = scores == scores.max(axis=1, keepdims=True)
    return (best & (candidates == targets[:, None])).any(axis=1) / best.sum(axis=1)


@dataclass(frozen=True)
class Finding:
    """How often a rule is right.

    Attributes:
        n: rows.
        share: of them answered rightly; low, high: its Wilson interval of 95 %.
        chance: 1 / C.
        reason: what in the nature of the data explains a share beyond chance; None = nothing does.
    """

    split: str
    rule: str
    n: int
    share: float
    low: float
    high: float
    chance: float
    reason: str | None

    @property
    def is_chance(self) -> bool:
        """Whether the share lies within three standard errors of chance."""
        return abs(self.share - self.chance) <= SIGMAS * (self.chance * (1 - self.chance) / self.n) ** 0.5

    @property
    def is_leak(self) -> bool:
        """Whether the share is beyond chance and nothing explains it."""
        return not self.is_chance and self.reason is None


def is_learned(rows: Rows, learned: Rows) -> np.ndarray:
    """[B] whether a recommender learned from a row of the same user that came no earlier: it has met each row's target."""
    last = np.full(max(rows.users.max(), learned.users.max()) + 1, -1)
    np.maximum.at(last, learned.users, learned.places)
    return rows.places <= last[rows.users]


def find_leaks(data: PreparedData, epochs: int = 5, learned: Rows | None = None) -> list[Finding]:
    """Let every rule, which sees the draws of so many training epochs, answer the validation and the test rows.

    Args:
        learned: the rows that the recommender of training learned from, where it must not have met the training rows' targets.
    """
    before = {"train": _training_draws(data, epochs)}
    found = []
    if learned is not None:
        met = is_learned(data.dataset.rows_of(data.dataset.inter_feat), learned)
        found.append(_finding("train", LEARNED, met, 0.0, None))
    found += _held_out_findings(data, before["train"])
    for split, loader in (("valid", data.valid_data), ("test", data.test_data)):
        dataset: CandidateDataset = loader.dataset
        evidence, reasons = Evidence(dataset, before), _reasons(dataset, split)
        if data.sampler.proposals is not None:
            reasons = dict.fromkeys(OF_PROPOSALS, PROPOSED) | reasons
        rows, candidates = evidence.rows, evidence.candidates
        for rule, (score, reason) in RULES.items():
            credit = credits(score(evidence), candidates, rows.targets)
            chance, reason = 1 / candidates.shape[1], reasons.get(rule, reason)
            if rule == MISSED and data.sampler.proposals is not None and credit.mean() < chance:
                reason = PROPOSED  # what the recommender never proposes for the user is seldom the target
            found.append(_finding(split, rule, credit, chance, reason))
        before = {**before, split: Draws(rows.users, rows.targets, candidates)}
    return found


def _held_out_findings(data: PreparedData, draws: Draws) -> list[Finding]:
    """Where held-out items stand that training or histories must not have, under a protocol that holds some out."""
    is_held_out, found = data.dataset.is_held_out, []
    if is_held_out is None:
        return []
    known, rows = data.dataset.knowledge.known["train"], data.dataset.rows_of(data.dataset.inter_feat)
    epochs = len(draws.users) // len(rows.users)
    met = np.concatenate([np.tile(rows.history, (epochs, 1)), draws.candidates], axis=1)
    found.append(_finding("train", HELD_OUT_LEARNED, is_held_out[met].any(axis=1), 0.0, None))
    found.append(_finding("train", HELD_OUT_COUNTED, is_held_out[known.keys % known.n_items], 0.0, None))
    for split, loader in (("valid", data.valid_data), ("test", data.test_data)):
        history = loader.dataset.rows_of(loader.dataset.inter_feat).history
        found.append(_finding(split, HELD_OUT_SHOWN, is_held_out[history].any(axis=1), 0.0, None))
    return found


def _finding(split: str, rule: str, credit: np.ndarray, chance: float, reason: str | None) -> Finding:
    """Of a rule's probability [B] to be right in each row."""
    interval = binomtest(round(credit.sum()), len(credit)).proportion_ci(method="wilson")
    bounds = float(interval.low), float(interval.high)
    return Finding(split, rule, len(credit), float(credit.mean()), *bounds, chance, reason)


def _training_draws(data: PreparedData, epochs: int) -> Draws:
    feat = data.dataset.inter_feat
    rows, numbers, drawn = data.dataset.rows_of(feat), feat[ROW_FIELD].numpy(), []
    for epoch in range(epochs):
        for first in range(0, len(numbers), _DRAWN_AT_ONCE):
            part = slice(first, first + _DRAWN_AT_ONCE)
            drawn.append(data.sampler.draw(numbers[part], rows.take(part), "train", epoch))
    return Draws(np.tile(rows.users, epochs), np.tile(rows.targets, epochs), np.concatenate(drawn))


def _reasons(dataset: CandidateDataset, split: str) -> dict[str, str]:
    """What the data and keys explain of rules that are chance elsewhere."""
    protocol, reasons = dataset.protocol, {}
    # Rules that see the user's own past, by itself or by what is drawn of it.
    of_the_past = [rule for rule in RULES if rule.startswith("history:") or "the user's negative" in rule]
    if dataset.repeat_share[split] > 0 and protocol.repeated_targets != "drop":
        reasons |= dict.fromkeys(of_the_past, REPEATS if protocol.repeated_targets == "keep" else HABIT)
    if protocol.candidate_exclude == "window":
        reasons |= dict.fromkeys(of_the_past, WINDOW)
    users = dataset.inter_feat[dataset.uid_field].numpy()
    if len(np.unique(users)) < len(users):
        reasons["other rows of the user: in fewest"] = TOGETHER
    return reasons


def report(data: PreparedData, epochs: int, learned: Rows | None = None) -> tuple[str, int]:
    """What the rules find in the data of a run, as text, and how many of them are leaks; arguments as of ``find_leaks``."""
    config, findings = data.dataset.config, find_leaks(data, epochs, learned)
    leaks = sum(found.is_leak for found in findings)
    width = max(len(found.rule) for found in findings)
    lines = [
        f"dataset {config['dataset']}, protocol {config['protocol']}: draws of {epochs} training epochs",
        f"{'split':5}  {'rule':{width}}  {'share':>5}  {'95 %':^12}  {'n':>6}",
    ]
    for found in findings:
        verdict = "chance" if found.is_chance else "LEAK" if found.is_leak else f"explained: {found.reason}"
        interval = f"{found.low:.3f}-{found.high:.3f}"
        lines.append(f"{found.split:5}  {found.rule:{width}}  {found.share:5.3f}  {interval:^12}  {found.n:6}  {verdict}")
    return "\n".join([*lines, f"{leaks} leaks among {len(findings)} answers of rules\n"]), leaks
