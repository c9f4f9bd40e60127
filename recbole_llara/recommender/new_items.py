"""What stands for the embedding of an item that a recommender never learned: a vector made out of the texts of all items.

The row of such an item in a recommender's table is what it was initialised with, which the projector reads as if it meant
something. ``NewItemVectors`` puts in its place what learned items of like texts have, by one of two functions:

- ``neighbours``: the mean of the embeddings of the k learned items with the nearest texts.
- ``text``: what a linear map from texts to embeddings, fitted on the learned items, predicts; as van den Oord et al. (Deep
  content-based music recommendation, NIPS 2013) predict factors of unheard songs by a network.

An item's text is the mean of the LLM's own input embeddings of its tokens, each weighted by how rare it is among the texts of learned
items. All is fitted on learned items alone, so that the vector of a new item does not depend on which others are new, nor on when
it came: an item that is added to a trained run has the vector that it would have had in training.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch.nn.functional import embedding_bag, normalize
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.tokens import tokenise_inside

_COMPARED_AT_ONCE = 1 << 24  # cosines of texts that are held at a time
_ALPHAS = np.logspace(-1, 5, 25)  # of the ridge; features have unit variance


class TextFeatures:
    """Texts as vectors [D]: the mean of a text's tokens in the LLM's input space, rare tokens counting for more.

    ``sum_t w_t v_t / sum_t w_t`` over the text's tokens, with ``w_t = log((1 + K) / max(1, n_t))`` and n_t those of K learned texts that
    hold token t; 0 for a text without tokens. From it the mean over the learned texts is taken.

    Args:
        vocabulary: [V, D].
        learned: K texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: torch.Tensor, learned: Sequence[str]) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary.detach()
        tokens = self._tokens(learned)
        distinct = [np.unique(of_text) for of_text in tokens]
        counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *distinct]), minlength=len(vocabulary))
        self.weights = torch.log((1 + len(learned)) / torch.from_numpy(counts).clamp(min=1).float())  # [V]
        of_learned = self._means(tokens)
        self.mean = of_learned.mean(0)  # [D]
        self.of_learned = of_learned - self.mean  # [K, D]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, D] float32, on the CPU."""
        return self._means(self._tokens(texts)) - self.mean

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        tokens = tokenise_inside(self.tokenizer, [f" {text}" if text else "" for text in texts])
        return [np.asarray(of_text, dtype=np.int64) for of_text in tokens]

    def _means(self, tokens: Sequence[np.ndarray]) -> torch.Tensor:
        flat = np.concatenate([np.zeros(0, np.int64), *tokens])
        used, places = np.unique(flat, return_inverse=True)  # of a large vocabulary only these rows are read
        used, places = torch.from_numpy(used), torch.from_numpy(places)
        table = self.vocabulary[used.to(self.vocabulary.device)].float().cpu()
        starts = torch.tensor([0, *map(len, tokens)])[:-1].cumsum(0)
        weights = self.weights[used][places]
        total = embedding_bag(places, table, starts, mode="sum", per_sample_weights=weights)
        of_weights = embedding_bag(places, torch.ones(len(table), 1), starts, mode="sum", per_sample_weights=weights)
        return total / of_weights.clamp(min=torch.finfo(torch.float32).tiny)


class NewItemVectors:
    """Vectors of items that a recommender never learned, out of their texts.

    Args:
        kind: of ``FUNCTIONS``.
        features: of the texts of learned items.
        learned: [K, d] the vectors of these items.
        neighbours: (int, items) k.
    """

    def __init__(self, kind: str, features: TextFeatures, learned: torch.Tensor, neighbours: int) -> None:
        self.features, self._predict = features, FUNCTIONS[kind](features.of_learned, learned, neighbours)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, d] float32."""
        return self._predict(self.features(texts)).float()


def nearest_mean(known: torch.Tensor, embeddings: torch.Tensor, neighbours: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From texts [n, D] to the mean [n, d] of the embeddings [K, d] of the k texts [K, D] whose cosine with each is greatest."""
    units = normalize(known)

    def predict(asked: torch.Tensor) -> torch.Tensor:
        found = [embeddings[:0]]
        for part in normalize(asked).split(max(1, _COMPARED_AT_ONCE // len(known))):
            nearest = (part @ units.T).topk(min(neighbours, len(known)), dim=1).indices  # [b, k]
            found.append(embeddings[nearest].mean(1))
        return torch.cat(found)

    return predict


def ridge(known: torch.Tensor, embeddings: torch.Tensor, neighbours: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From texts [n, D] to what a ridge regression from texts [K, D] to embeddings [K, d] predicts for them.

    Its penalty is the one with the least error on items left out of the fit one at a time, which has a closed form. Where texts tell
    nothing it is great, and every prediction near the mean of the embeddings.
    """
    scale = known.std().clamp(min=torch.finfo(known.dtype).tiny)
    fitted = RidgeCV(alphas=_ALPHAS).fit((known / scale).double().numpy(), embeddings.double().numpy())
    return lambda asked: torch.from_numpy(fitted.predict((asked / scale).double().numpy()).reshape(len(asked), -1))


FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Callable[[torch.Tensor], torch.Tensor]]] = {
    "neighbours": nearest_mean,
    "text": ridge,
}


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
