"""Recommenders that are computed from the training rows at once, with nothing to train: Popularity and EASE.

Both are made as RecBole makes a sequential model, keep what they computed with their weights, and score the whole catalogue.
"""

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from torch import nn

from recbole_llara.utils.errors import UserError

MOST_ITEMS = 20_000  # of EASE, whose table has a number for each pair of items: 1.6 GB


class ClosedForm(SequentialRecommender):
    """A recommender without a training loop; a subclass registers its buffers, which are its weights."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        self.unused = nn.Parameter(torch.zeros(1))  # an optimiser wants one parameter

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Zero: RecBole asks for a loss where epochs are set above 0."""
        return self.unused.sum()


class Popularity(ClosedForm):
    """Popularity among training targets: the line below which a recommender has learnt nothing about users.

    An item's score is log(1 + how often it is the target of a training row): over candidates, a softmax of it is a probability in
    proportion to popularity.
    """

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        counts = torch.bincount(dataset.inter_feat[self.POS_ITEM_ID], minlength=self.n_items)
        self.register_buffer("counts", counts.float())  # [N]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The scores of all items, [B, N]."""
        return self.counts.log1p().repeat(len(interaction), 1)


class EASE(ClosedForm):
    """A linear item-to-item model of whole histories (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019).

    With X [U, N] of ones where a user has an item in the training rows, B = argmin |X - X B|^2 + reg_weight |B|^2, diag(B) = 0, is
    computed at once: P = (X'X + reg_weight I)^-1, B_ij = -P_ij / P_jj. A history scores an item by ``score_scale`` times the sum of its
    items' weights. It knows no order and needs no user: RecBole's own EASE scores the users of its training alone, from their training
    rows.

    For an LLM that reads it, an item's vector has ``embedding_size`` numbers: its coordinates along X's leading right singular vectors v with
    values s, each times s / sqrt(s^2 + reg_weight), so that products of vectors are the leading part of the same regression with its
    diagonal. A history's is the mean of its items'.

    Raises:
        UserError: more items than a table of all pairs is held for, or a reg_weight or score_scale that is not above 0.
    """

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        if self.n_items > MOST_ITEMS:
            raise UserError(
                f"model: found EASE over {self.n_items - 1} items, whose table of all pairs would have {4e-9 * self.n_items**2:.1f} GB, expected at "
                f"most {MOST_ITEMS}: leave out rare items by item_inter_num_interval, or choose another model"
            )
        for key in ("reg_weight", "score_scale"):
            if config[key] <= 0:
                raise UserError(f"{key}: found {config[key]}, expected a number above 0")
        reg_weight = float(config["reg_weight"])
        weights, vectors = torch.zeros(self.n_items, self.n_items), torch.zeros(self.n_items, int(config["embedding_size"]))
        # Of a run that is loaded, the file brings them.
        if len(dataset.inter_feat) and config["checkpoint"] is None:
            columns = (dataset.inter_feat[field] for field in (self.USER_ID, self.POS_ITEM_ID, self.ITEM_SEQ))
            pairs = user_items(*columns, self.n_items)
            weights = item_weights(*pairs, self.n_items, reg_weight).mul_(float(config["score_scale"]))
            vectors = item_vectors(*pairs, *vectors.shape, reg_weight)
        self.register_buffer("item_weights", weights)  # [N, N]
        self.item_embedding = nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0)  # [N, d]

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """The mean vectors [B, d] of histories [B, L], 0-padded on the right."""
        return self.item_embedding(history).sum(1) / (history > 0).sum(1, keepdim=True).clamp(min=1)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The scores of all items, [B, N]."""
        history = interaction[self.ITEM_SEQ]
        self.forward(history)  # what is read as its sequence output
        has_item = torch.zeros(len(history), self.n_items, device=history.device).scatter_(1, history, 1.0)
        has_item[:, 0] = 0  # the padding
        return has_item @ self.item_weights


def user_items(
    users: torch.Tensor, targets: torch.Tensor, history: torch.Tensor, n_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items [M] that stand together in rows of users [R], targets [R] and histories [R, L], each pair once."""
    row, column = history.nonzero(as_tuple=True)
    pairs = torch.cat([users * n_items + targets, users[row] * n_items + history[row, column]]).unique()
    return pairs // n_items, pairs % n_items


def _matrix(users: torch.Tensor, items: torch.Tensor, n_items: int) -> csr_array:
    """X [U, N] of different pairs of users [M] and items [M]."""
    return csr_array((np.ones(len(items)), (users.numpy(), items.numpy())), shape=(int(users.max()) + 1, n_items))


def item_weights(users: torch.Tensor, items: torch.Tensor, n_items: int, reg_weight: float) -> torch.Tensor:
    """EASE's B [N, N], float32, of different pairs of users [M] and items [M].

    Two users with items (1, 2) and (1), reg_weight 1, N = 3: X'X + I is [[3, 1], [1, 2]] over items 1 and 2, its inverse P
    [[.4, -.2], [-.2, .6]], and B_12 = .2 / .6, B_21 = .2 / .4.
    """
    has_item = _matrix(users, items, n_items)
    products = torch.from_numpy((has_item.T @ has_item).toarray())  # [N, N] users who have both
    products.diagonal().add_(reg_weight)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
    weights = inverse.div_(-inverse.diagonal().clone())
    weights.fill_diagonal_(0)
    return weights.float().contiguous()


def item_vectors(users: torch.Tensor, items: torch.Tensor, n_items: int, size: int, reg_weight: float) -> torch.Tensor:
    """EASE's vectors [N, d], float32, of different pairs of users [M] and items [M]; 0 behind the rank of X.

    Each axis points where its largest coordinate is positive, since the sign of a singular vector is anybody's.
    """
    has_item = _matrix(users, items, n_items)
    kept = min(size, min(has_item.shape) - 1)
    _, values, axes = svds(has_item, k=kept, v0=np.random.default_rng(0).random(min(has_item.shape)))
    order = np.argsort(-values)
    values, axes = values[order], axes[order]
    axes *= np.sign(axes[np.arange(kept), np.abs(axes).argmax(1)])[:, None]
    vectors = torch.zeros(n_items, size)
    vectors[:, :kept] = torch.from_numpy((axes * (values / np.sqrt(values**2 + reg_weight))[:, None]).T)
    vectors[0] = 0  # the padding
    return vectors
