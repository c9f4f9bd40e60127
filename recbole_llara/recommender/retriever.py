"""Ranks the whole catalogue for histories by a recommender; what it proposes is re-ranked, or stands among candidates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llara.evaluator.ranking import settle_near_ties

SCORED_AT_ONCE = 1 << 25  # scores [B, N] that are held at a time


class Retriever:
    """Ranks all items for histories by a stock recommender.

    Items from ``n_known`` have no interactions and are never proposed, nor are those that ``never`` [N] is true of.
    """

    def __init__(self, model: nn.Module, config: Any, n_known: int, never: np.ndarray | None = None) -> None:
        self.model, self.config, self.n_known = model.eval(), config, n_known
        self.never = None if never is None else torch.from_numpy(never)

    @torch.no_grad()
    def propose(
        self,
        histories: Sequence[Sequence[int]],
        count: int,
        users: Sequence[int] | None = None,
        seen: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """The best items for each history, best first: [B, count], 0 where a user has seen all others.

        Args:
            histories: B lists of items in order of time; the last L of each are read.
            count: (int, items) at most n_known - 1.
            users: B internal ids, for recommenders that know users (Caser); None = users they have never seen.
            seen: B lists of items that are not proposed; None = those of the histories.
        """
        seen = histories if seen is None else seen
        at_once, best = self.at_once, []
        for first in range(0, len(histories), at_once):
            part = slice(first, first + at_once)
            left_out = seen[part]
            rows = np.repeat(np.arange(len(left_out)), [len(items) for items in left_out])
            columns = np.fromiter((item for items in left_out for item in items), np.int64, len(rows))
            best.append(self.best(*self._asked(histories[part], users and users[part]), rows, columns, count))
        return torch.cat(best)

    @property
    def at_once(self) -> int:
        """How many rows ``best`` should be given."""
        return max(1, SCORED_AT_ONCE // self.n_known)

    @torch.no_grad()
    def best(
        self, history: torch.Tensor, users: torch.Tensor, rows: np.ndarray, columns: np.ndarray, count: int
    ) -> torch.Tensor:
        """The best items [B, count] of one batch, best first, 0 where fewer are left.

        Args:
            history: [B, L], 0-padded on the right.
            users: [B] internal ids.
            rows, columns: [pairs] each, of the scores [B, N] that do not count.
        """
        scores = self._scores(history, users)
        scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -torch.inf
        scores[:, 0] = scores[:, self.n_known :] = -torch.inf
        if self.never is not None:
            scores[:, self.never] = -torch.inf
        values, items = scores.topk(min(count, self.n_known - 1), dim=1)
        return torch.where(values.isfinite(), items, 0)

    @torch.no_grad()
    def candidate_scores(
        self, histories: Sequence[Sequence[int]], candidates: torch.Tensor, users: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Scores [B, C] of candidates [B, C], in an order that no other row changes; users as for ``propose``."""
        at_once, parts = self.at_once, []
        for first in range(0, len(histories), at_once):
            rows = range(first, min(first + at_once, len(histories)))

            def of(rows: range) -> torch.Tensor:
                part = slice(rows.start, rows.stop)
                return self.scores(histories[part], users and users[part]).gather(1, candidates[part])

            parts.append(settle_near_ties(of(rows), lambda row, rows=rows, of=of: of(rows[row : row + 1])[0]))
        return torch.cat(parts)

    def scores(self, histories: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> torch.Tensor:
        """Scores [B, N] of all items, on the CPU, to users as for ``propose``."""
        return self._scores(*self._asked(histories, users))

    def _asked(self, histories: Sequence[Sequence[int]], users: Sequence[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Histories [B, L] and users [B] as tensors."""
        return padded(histories, self.config["MAX_ITEM_LIST_LENGTH"]), torch.tensor(users or [0] * len(histories))

    def _scores(self, history: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        scores = self.model.full_sort_predict(asked_of(self.config, history, users).to(self.config["device"]))
        return scores.view(len(history), -1).float().cpu()


class MostPopular(nn.Module):
    """Proposes what most users took in training, to everybody alike: where a run has no recommender.

    Args:
        counts: [N] how many users took each item.
    """

    def __init__(self, counts: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("scores", torch.from_numpy(counts).float().log1p(), persistent=False)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """log(1 + count) of each item, [B, N]: by a softmax, its share of what was taken."""
        return self.scores.repeat(len(interaction), 1)


def asked_of(config: Any, history: torch.Tensor, users: torch.Tensor) -> Interaction:
    """The rows by which RecBole's sequential models are asked, for histories [B, L], 0-padded on the right, and users [B]."""
    item_field = config["ITEM_ID_FIELD"]
    rows = {
        item_field + config["LIST_SUFFIX"]: history,
        config["ITEM_LIST_LENGTH_FIELD"]: (history > 0).sum(1),
        config["USER_ID_FIELD"]: users,
        item_field: torch.zeros_like(users),
    }
    return Interaction(rows)


def padded(histories: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """The last L items of each history [B, L], 0-padded on the right."""
    history = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, items in enumerate(histories):
        last = torch.tensor(items[-length:], dtype=torch.int64)
        history[row, : len(last)] = last
    return history
