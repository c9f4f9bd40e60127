"""The first of two stages: a stock recommender proposes unseen items out of the whole catalogue."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

SCORED_AT_ONCE = 1 << 25  # scores [B, N] that are held at a time


class Retriever:
    """Ranks all items for histories by a stock recommender; items from ``n_known`` have no interactions and are never proposed."""

    def __init__(self, model: nn.Module, config: Any, n_known: int) -> None:
        self.model, self.n_known = model.eval(), n_known
        self.device = config["device"]
        self.length = config["MAX_ITEM_LIST_LENGTH"]
        item_field = config["ITEM_ID_FIELD"]
        self.fields = {
            "history": item_field + config["LIST_SUFFIX"],
            "length": config["ITEM_LIST_LENGTH_FIELD"],
            "user": config["USER_ID_FIELD"],
            "item": item_field,
        }

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
        users = [0] * len(histories) if users is None else users
        at_once = max(1, SCORED_AT_ONCE // self.n_known)
        parts = [slice(first, first + at_once) for first in range(0, len(histories), at_once)]
        return torch.cat([self._best(self.scores(histories[part], users[part]), seen[part], count) for part in parts])

    def _best(self, scores: torch.Tensor, seen: Sequence[Sequence[int]], count: int) -> torch.Tensor:
        scores[:, 0] = -torch.inf
        scores[:, self.n_known :] = -torch.inf
        rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        columns = np.fromiter((item for items in seen for item in items), np.int64, len(rows))
        scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -torch.inf
        best = scores.topk(min(count, self.n_known - 1), dim=1)
        return torch.where(best.values.isfinite(), best.indices, 0)

    def scores(self, histories: Sequence[Sequence[int]], users: Sequence[int]) -> torch.Tensor:
        """Scores [B, N] of all items, on the CPU."""
        history, lengths = padded(histories, self.length)
        rows = {
            self.fields["history"]: history,
            self.fields["length"]: lengths,
            self.fields["user"]: torch.tensor(users),
            self.fields["item"]: torch.zeros(len(histories), dtype=torch.int64),
        }
        scores = self.model.full_sort_predict(Interaction(rows).to(self.device))
        return scores.view(len(histories), -1).float().cpu()


def padded(histories: Sequence[Sequence[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last L items of each history [B, L], 0-padded on the right, and how many they are [B]."""
    history = torch.zeros(len(histories), length, dtype=torch.int64)
    for row, items in enumerate(histories):
        last = torch.tensor(items[-length:], dtype=torch.int64)
        history[row, : len(last)] = last
    return history, (history > 0).sum(1)
