"""Over the whole catalogue: the recommender proposes unseen items, the model ranks them; was the user's next item near the top?

The retriever ranks all items; the re-ranker reorders its first ``retrieve_k`` and leaves those behind them. What the re-ranker
cannot mend is said too: how often the target was proposed at all.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from recbole_llara.data.dataset import ROW_FIELD
from recbole_llara.evaluator.significance import paired_t, wilson_interval
from recbole_llara.serving.loaded import LoadedRun
from recbole_llara.utils.processes import Processes


@dataclass(frozen=True)
class FullRanks:
    """Places of the targets of R test rows, from 1; 0 beyond the depth to which rankings were looked at."""

    rows: np.ndarray  # [R] row numbers of the test split
    targets: np.ndarray  # [R] item ids
    retriever: np.ndarray  # [R]
    reranker: np.ndarray  # [R]
    retrieve_k: int  # (items) that the re-ranker reordered


def rank_test_rows(run: LoadedRun, retrieve_k: int, depth: int, processes: Processes) -> FullRanks:
    """Rank the whole catalogue for each test row; the model's batches are dealt out among processes.

    Items that the user had before the row are not proposed, save the target; what came later is. Under ``repeated_targets: match``
    all items are proposed.

    Args:
        retrieve_k: (int, items) that the model reorders.
        depth: (int, items) how far to look, the largest K of the metrics.
    """
    dataset = run.data.test_data.dataset
    feat, item_field = dataset.inter_feat, dataset.iid_field
    targets = feat[item_field]
    histories = [[item for item in row if item] for row in feat[item_field + dataset.config["LIST_SUFFIX"]].tolist()]
    depth = min(max(depth, retrieve_k), run.retriever.n_known - 1)
    users = feat[dataset.uid_field].tolist()
    proposed = run.retriever.propose(histories, depth, users, _past_but_target(run))  # [R, depth]
    reranked = _reranked(run, histories, users, proposed, retrieve_k, processes) if run.is_llm else proposed
    places = (_place(ranking == targets[:, None]) for ranking in (proposed, reranked))
    return FullRanks(feat[ROW_FIELD].numpy(), targets.numpy(), *places, retrieve_k)


def full_rank_result(ranks: FullRanks, topk: Sequence[int]) -> dict[str, Any]:
    """What ``result.json`` tells: Hit@K and NDCG@K of both, with 95 % intervals, and the re-ranker's gain over its retriever.

    One item is relevant a row, so ``NDCG = 1 / log2(1 + place)`` within K and 0 beyond. Hits have Wilson's interval; means of
    NDCG and gains that of a t-test over rows, gains over the rows' differences; null where all rows are the same, which says
    nothing about the spread.
    """
    n = len(ranks.targets)
    told: dict[str, Any] = {"n": n, "retrieve_k": ranks.retrieve_k, "target_proposed": _hit(ranks.retriever, ranks.retrieve_k)}
    for name, places in (("retriever", ranks.retriever), ("reranker", ranks.reranker)):
        told[name] = {}
        for k in topk:
            mean = _difference(_ndcg(places, k), np.zeros(n))
            told[name][f"hit@{k}"] = _hit(places, k)
            told[name][f"ndcg@{k}"] = {"share": mean["mean"], "low": mean["low"], "high": mean["high"]}
    told["gain"] = gains(ranks.retriever[None], ranks.reranker[None], topk)
    return told


def gains(retriever: np.ndarray, reranker: np.ndarray, topk: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """Hit@K and NDCG@K of the re-ranker less those of its retriever, with a t-test's 95 % interval over rows.

    Args:
        retriever, reranker: [S, R] places of the targets of R rows by models of S seeds; a row counts by its mean over the seeds.
    """
    return {
        f"{metric}@{k}": _difference(measure(reranker, k).mean(0), measure(retriever, k).mean(0))
        for k in topk
        for metric, measure in (("hit", _hits), ("ndcg", _ndcg))
    }


def full_rank_records(ranks: FullRanks, item_tokens: Sequence[str]) -> list[dict[str, Any]]:
    """A record a row: its target's places, null beyond the depth."""
    columns = (ranks.rows.tolist(), ranks.targets.tolist(), ranks.retriever.tolist(), ranks.reranker.tolist())
    return [
        {"row": row, "target": str(item_tokens[target]), "retriever": first or None, "reranker": second or None}
        for row, target, first, second in zip(*columns, strict=True)
    ]


def _reranked(
    run: LoadedRun,
    histories: Sequence[Sequence[int]],
    users: Sequence[int],
    proposed: torch.Tensor,
    retrieve_k: int,
    processes: Processes,
) -> torch.Tensor:
    """[R, depth] the first ``retrieve_k`` of each row in the model's order, the others behind them as they were."""
    head = run.listed(histories, proposed[:, :retrieve_k])
    batches = [range(len(histories))[first : first + run.batch_size] for first in range(0, len(histories), run.batch_size)]
    own = [
        run.scores(histories[part.start : part.stop], head[part.start : part.stop], users[part.start : part.stop])
        for part in processes.share(batches)
    ]
    if run.model.is_sharded and len(own) * processes.count < len(batches):
        run.scores(histories[:1], head[:1])  # every process passes through the blocks equally often
    parts = processes.gather(own)
    scores = torch.cat([parts[number % processes.count][number // processes.count] for number in range(len(batches))])
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.cat([head.gather(1, order), proposed[:, retrieve_k:]], dim=1)


def _past_but_target(run: LoadedRun) -> list[np.ndarray]:
    """What each test row's user had before its target, less the target itself; nothing where users take items again."""
    dataset = run.data.test_data.dataset
    rows = dataset.rows_of(dataset.inter_feat)
    if dataset.protocol.repeated_targets == "match":
        return [np.empty(0, np.int64)] * len(rows.users)
    position, items = dataset.knowledge.past(rows)
    keep = items != rows.targets[position]
    bounds = np.searchsorted(position[keep], np.arange(1, len(rows.users)))
    return np.split(items[keep], bounds)


def _place(is_target: torch.Tensor) -> np.ndarray:
    """Where a row [depth] is true, from 1; 0 where it is nowhere."""
    place = is_target.int().argmax(1) + 1
    return torch.where(is_target.any(1), place, 0).numpy()


def _hits(places: np.ndarray, k: int) -> np.ndarray:
    return ((places > 0) & (places <= k)).astype(float)


def _hit(places: np.ndarray, k: int) -> dict[str, float]:
    return asdict(wilson_interval(int(_hits(places, k).sum()), len(places)))


def _ndcg(places: np.ndarray, k: int) -> np.ndarray:
    return _hits(places, k) / np.log2(1 + np.maximum(places, 1))


def _difference(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    found = paired_t(a, b)
    if found is None:
        return {"mean": float((a - b).mean()), "low": None, "high": None, "p_value": None}
    return asdict(found)
