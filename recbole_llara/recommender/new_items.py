"""What stands for the embedding of an item that a recommender never learned: a vector made out of the texts of all items.

The row of such an item in a recommender's table is what it was initialised with, which the projector reads as if it meant
something. ``NewItemVectors`` puts in its place what learned items of like texts have, by one of two functions:

- ``neighbours``: the mean of the embeddings of the k learned items with the nearest texts.
- ``text``: what a linear map from texts to embeddings, fitted on the learned items, predicts; as van den Oord et al. (Deep
  content-based music recommendation, NIPS 2013) predict factors of unheard songs by a network.

A text stands for what the LLM knows of it, see ``llm.text_states``. All is fitted on learned items alone, so that the vector of a new item
does not depend on which others are new, nor on when it came: an item that is added to a trained run has the vector that it would have
had in training. RecBole-free.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from sklearn.linear_model import RidgeCV
from torch.nn.functional import normalize

MOST_LEARNED = 10_000  # items that a function is fitted on, evenly spread over all: what bounds the passes and the fit
_COMPARED_AT_ONCE = 1 << 24  # cosines of texts that are held at a time
_ALPHAS = np.logspace(-1, 5, 25)  # of the ridge; features have unit variance


class TextFeatures:
    """Texts as vectors [D], whose every number has mean 0 and variance 1 over the learned texts.

    Some numbers of an LLM's states vary ten times as much as the others (SmolLM2).

    Args:
        read: from n texts to [n, D] float32, on the CPU.
        learned: K texts.
    """

    def __init__(self, read: Callable[[Sequence[str]], torch.Tensor], learned: Sequence[str]) -> None:
        self._read = read
        of_learned = read(learned)
        self._mean = of_learned.mean(0)
        self._deviation = of_learned.std(0, correction=0).clamp(min=1e-6)
        self.of_learned = (of_learned - self._mean) / self._deviation  # [K, D]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, D] float32, on the CPU."""
        return (self._read(texts) - self._mean) / self._deviation


class NewItemVectors:
    """Vectors of items that a recommender never learned, out of their texts.

    Args:
        kind: of ``FUNCTIONS``.
        features: of the texts of learned items.
        learned: [K, d] the vectors of these items.
        neighbours: (int, items) k.
    """

    def __init__(self, kind: str, features: TextFeatures, learned: torch.Tensor, neighbours: int) -> None:
        self.features, self._function = features, FUNCTIONS[kind](features.of_learned, learned, neighbours)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, d] float32."""
        return self._function(self.features(texts)).float()

    def left_out(self) -> torch.Tensor:
        """[K, d] float32, of each learned item what it would have, were it new: by a function that is fitted on the others."""
        return self._function.left_out().float()


class NearestMean:
    """From texts [n, D] to the mean [n, d] of the embeddings [K, d] of the k texts [K, D] whose cosine with each is greatest."""

    def __init__(self, known: torch.Tensor, embeddings: torch.Tensor, neighbours: int) -> None:
        self._units, self._embeddings, self._neighbours = normalize(known), embeddings, neighbours

    def __call__(self, asked: torch.Tensor) -> torch.Tensor:
        return self._means(normalize(asked))

    def left_out(self) -> torch.Tensor:
        """[K, d] of the known texts, each without itself among its neighbours."""
        return self._means(self._units, are_known=True)

    def _means(self, units: torch.Tensor, are_known: bool = False) -> torch.Tensor:
        found, count = [self._embeddings[:0]], max(1, _COMPARED_AT_ONCE // len(self._units))
        for first in range(0, len(units), count):
            cosines = units[first : first + count] @ self._units.T
            if are_known:
                cosines[torch.arange(len(cosines)), first + torch.arange(len(cosines))] = -torch.inf
            nearest = cosines.topk(max(1, min(self._neighbours, len(self._units) - are_known)), dim=1).indices  # [b, k]
            found.append(self._embeddings[nearest].mean(1))
        return torch.cat(found)


class Ridge:
    """From texts [n, D] to what a ridge regression from texts [K, D] to embeddings [K, d] predicts for them.

    Its penalty is the one with the least error on items left out of the fit one at a time, which has a closed form. Where texts tell
    nothing it is great, and every prediction near the mean of the embeddings.

    Attributes:
        penalty: the one that was chosen.
    """

    def __init__(self, known: torch.Tensor, embeddings: torch.Tensor, neighbours: int) -> None:
        self._known, self._embeddings = known.double().numpy(), embeddings.double().numpy()
        self._fitted = RidgeCV(alphas=_ALPHAS).fit(self._known, self._embeddings)
        self.penalty = float(self._fitted.alpha_)

    def __call__(self, asked: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._predict(asked.double().numpy()))

    def left_out(self) -> torch.Tensor:
        """[K, d] of the known texts, each by a fit without it and with the same penalty.

        By the leverage h of each text: what a fit without it misses is the error of the whole fit / (1 - h) (Allen's PRESS, 1974).
        """
        centred = self._known - self._known.mean(0)
        factor = cholesky(centred.T @ centred + self.penalty * np.eye(centred.shape[1]), lower=True)
        leverages = (solve_triangular(factor, centred.T, lower=True) ** 2).sum(0) + 1 / len(centred)  # [K]
        missed = (self._embeddings - self._predict(self._known)) / np.maximum(1 - leverages, 1e-6)[:, None]
        return torch.from_numpy(self._embeddings - missed)

    def _predict(self, asked: np.ndarray) -> np.ndarray:
        return self._fitted.predict(asked).reshape(len(asked), -1)


FUNCTIONS: dict[str, type[NearestMean] | type[Ridge]] = {"neighbours": NearestMean, "text": Ridge}


def fitted_on(is_new: torch.Tensor) -> torch.Tensor:
    """[K] int64, ascending: the learned items that a function is fitted on, ``MOST_LEARNED`` at most; of items [N] bool that are new."""
    learned = (~is_new).nonzero()[:, 0]
    return learned[:: -(-len(learned) // MOST_LEARNED) or 1]


def with_vectors(table: torch.Tensor, is_new: torch.Tensor, vectors: NewItemVectors, texts: Sequence[str]) -> torch.Tensor:
    """A table [N, d] in which new items have vectors of their own; the rows of learned ones are as they were.

    Args:
        table: [N, d] what a recommender learned, row 0 the padding item's; of new items it may hold anything.
        is_new: [N] bool, the padding item being one of them.
        texts: N.
    """
    new = is_new.nonzero()[1:, 0]
    if not len(new):
        return table
    return table.index_copy(0, new, vectors([texts[item] for item in new.tolist()]).to(table.dtype))


def as_if_new(table: torch.Tensor, is_new: torch.Tensor, vectors: NewItemVectors, texts: Sequence[str]) -> torch.Tensor:
    """[N, d] what every item would have for its vector, were it new; of new ones, what ``with_vectors`` gave them.

    Args:
        table: [N, d], new items having vectors of their own already.
        is_new: [N] bool, the padding item being one of them.
        vectors: fitted on ``fitted_on(is_new)``.
        texts: N.
    """
    fitted, beyond = fitted_on(is_new), ~is_new
    beyond[fitted], beyond[0] = False, True  # of learned items beyond ``MOST_LEARNED`` the functions know nothing
    return with_vectors(table.index_copy(0, fitted, vectors.left_out().to(table.dtype)), beyond, vectors, texts)
