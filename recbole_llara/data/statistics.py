"""What there is to know of a dataset under a protocol, in numbers: sizes, splits, popularity, and what popularity alone answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recbole_llara.data.dataset import CANDIDATE_FIELD, CandidateDataset, PreparedData
from recbole_llara.data.leaks import credits
from recbole_llara.data.rows import SPLITS

EVALUATED = SPLITS[1:]
_DRAWN = ("candidate_num", "candidate_exclude", "repeated_targets", "candidate_file")  # keys that say how candidates are drawn


@dataclass(frozen=True)
class DataStatistics:
    """A dataset as a protocol keeps it.

    Attributes:
        users, items: that have interactions.
        interactions: all of them; of ready-made windows the different ones, for windows overlap.
        pairs: different pairs of user and item among the interactions.
        density: pairs / (users * items).
        per_user: smallest, median, mean and largest number of interactions of a user.
        gini: of the interactions per item: 0 = all items have as many, near 1 = a few items have nearly all.
        top_tenth: share of the interactions with the most popular tenth of the items (rounded up).
        rows: split -> rows that are trained on or evaluated, after ``max_train_rows`` and ``max_eval_rows``.
        unlearned_targets: split -> rows whose target no user took in training.
        held_out_items: split -> items that only it has for targets, under protocol cold_items; else None.
        candidates: how they are drawn: candidate_num and other keys.
        popularity_hit: split -> the share of rows that the candidate with most training interactions answers, ties by chance.
    """

    users: int
    items: int
    interactions: int
    pairs: int
    density: float
    per_user: Mapping[str, float]
    gini: float
    top_tenth: float
    rows: Mapping[str, int]
    unlearned_targets: Mapping[str, int]
    held_out_items: Mapping[str, int] | None
    candidates: Mapping[str, Any]
    popularity_hit: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """What ``result.json`` tells under ``data``."""
        return asdict(self)


def data_statistics(data: PreparedData) -> DataStatistics:
    """Count the data of a run, whose loaders must be there."""
    dataset: CandidateDataset = data.dataset
    splits = dict(zip(SPLITS, (data.train_data, data.valid_data, data.test_data), strict=True))
    splits = {name: loader.dataset for name, loader in splits.items()}
    users, items = dataset.interactions()
    per_user, per_item = (counts[counts > 0] for counts in map(np.bincount, (users, items)))
    pairs = len(dataset.knowledge.known["test"].keys)
    homes, counts = dataset.homes, dataset.training_counts
    targets = {name: splits[name].rows_of(splits[name].inter_feat).targets for name in EVALUATED}
    return DataStatistics(
        users=len(per_user),
        items=len(per_item),
        interactions=len(users),
        pairs=pairs,
        density=pairs / (len(per_user) * len(per_item)),
        per_user={name: float(of(per_user)) for name, of in _SUMMARY.items()},
        gini=gini(per_item),
        top_tenth=top_share(per_item, 0.1),
        rows={name: len(split.inter_feat) for name, split in splits.items()},
        unlearned_targets={name: int((counts[targets[name]] == 0).sum()) for name in EVALUATED},
        held_out_items=None if homes is None else {name: int((homes[1:] == SPLITS.index(name)).sum()) for name in EVALUATED},
        candidates={name: dataset.config[name] for name in _DRAWN},
        popularity_hit={name: _popularity_hit(splits[name], counts) for name in EVALUATED},
    )


_SUMMARY = {"min": np.min, "median": np.median, "mean": np.mean, "max": np.max}


def _popularity_hit(split: CandidateDataset, counts: np.ndarray) -> float:
    candidates = split.inter_feat[CANDIDATE_FIELD].numpy()
    return float(credits(counts[candidates], candidates, split.rows_of(split.inter_feat).targets).mean())


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient of counts [n], none of them negative and not all 0.

    ``G = sum_i (2 i - n - 1) x_i / (n sum_i x_i)`` over x_1 <= ... <= x_n. Counts 1, 1, 1, 1 have 0; counts 0, 0, 0, 4 have .75.
    """
    ascending, n = np.sort(counts), len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ascending).sum() / (n * ascending.sum()))


def top_share(counts: np.ndarray, part: float) -> float:
    """The share of the sum of counts [n] that the largest ``part`` of them has, rounded up to a whole number of them."""
    most = int(np.ceil(round(part * len(counts), 9)))
    return float(np.sort(counts)[::-1][:most].sum() / counts.sum())
