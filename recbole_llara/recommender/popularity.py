"""Popularity among training targets: the line below which a recommender has learnt nothing about users."""

from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn


class Popularity(SequentialRecommender):
    """Scores every item by how often it is the target of a training row; there is nothing to train.

    Args:
        config: the run's RunConfig.
        dataset: the training split.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        counts = torch.bincount(dataset.inter_feat[self.POS_ITEM_ID], minlength=self.n_items)
        self.register_buffer("counts", counts.float())  # [N]
        self.unused = nn.Parameter(torch.zeros(1))  # an optimiser wants one parameter

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Zero: RecBole asks for a loss where epochs are set above 0."""
        return self.unused.sum()

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The counts of all items, [B, N]."""
        return self.counts.repeat(len(interaction), 1)
