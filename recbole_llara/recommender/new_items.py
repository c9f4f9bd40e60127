"""What stands for the embedding of an item that a recommender never learned: a vector made out of the texts of all items.

The row of such an item in a recommender's table is what it was initialised with, which the projector reads as if it meant
something. ``vectors_of_new_items`` puts in its place what items of like texts have, by one of two functions:

- ``neighbours``: the mean of the embeddings of the k learned items with the nearest texts.
- ``text``: what a linear map from texts to embeddings, fitted on the learned items, predicts; as van den Oord et al. (Deep
  content-based music recommendation, NIPS 2013) predict factors of unheard songs by a network.

An item's text is the mean of the LLM's own input embeddings of its tokens, each weighted by how rare it is among the texts. It needs
no pass of a model, so that a growing catalogue is quickly computed again.
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


def text_features(tokenizer: PreTrainedTokenizerBase, vocabulary: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
    """[N, D] float32, on the CPU: the mean of each text's tokens in the LLM's input space, rare tokens counting for more.

    ``sum_t w_t v_t / sum_t w_t`` over the text's tokens, with ``w_t = log((1 + N) / n_t)`` and n_t the texts that hold token t; 0 for
    a text without tokens.

    Args:
        vocabulary: [V, D].
        texts: N.
    """
    tokens = tokenise_inside(tokenizer, [f" {text}" if text else "" for text in texts])
    distinct = [np.unique(np.asarray(of_text, dtype=np.int64)) for of_text in tokens]
    n_texts = torch.from_numpy(np.bincount(np.concatenate(distinct), minlength=len(vocabulary)))  # [V]
    flat = torch.tensor([token for of_text in tokens for token in of_text], dtype=torch.int64)
    starts = torch.tensor([0, *map(len, tokens)])[:-1].cumsum(0)
    weights = torch.log((1 + len(texts)) / n_texts[flat].float())
    table = vocabulary.detach().float().cpu()
    total = embedding_bag(flat, table, starts, mode="sum", per_sample_weights=weights)
    of_weights = embedding_bag(flat, torch.ones(len(table), 1), starts, mode="sum", per_sample_weights=weights)
    return total / of_weights.clamp(min=torch.finfo(torch.float32).tiny)


def vectors_of_new_items(
    kind: str, table: torch.Tensor, is_new: torch.Tensor, features: torch.Tensor, neighbours: int
) -> torch.Tensor:
    """A table [N, d] in which new items have vectors of their own; the rows of learned ones are as they were.

    Args:
        kind: of ``FUNCTIONS``.
        table: [N, d] what a recommender learned, row 0 the padding item's; of new items it may hold anything.
        is_new: [N] bool, the padding item being one of them.
        features: [N, D] of the items' texts.
        neighbours: (int, items) k.
    """
    learned, new = ~is_new, is_new.clone()
    new[0] = False
    filled = table.clone()
    if new.any():
        moved = features - features[learned].mean(0)
        filled[new] = FUNCTIONS[kind](moved[learned], table[learned], moved[new], neighbours).to(table.dtype)
    return filled


def nearest_mean(known: torch.Tensor, embeddings: torch.Tensor, asked: torch.Tensor, neighbours: int) -> torch.Tensor:
    """[n, d] the mean of the embeddings [K, d] of the k texts [K, D] whose cosine with each text asked for [n, D] is greatest."""
    units, found = normalize(known), []
    for part in normalize(asked).split(max(1, _COMPARED_AT_ONCE // len(known))):
        nearest = (part @ units.T).topk(min(neighbours, len(known)), dim=1).indices  # [b, k]
        found.append(embeddings[nearest].mean(1))
    return torch.cat(found)


def ridge(known: torch.Tensor, embeddings: torch.Tensor, asked: torch.Tensor, neighbours: int) -> torch.Tensor:
    """[n, d] what a ridge regression from texts [K, D] to embeddings [K, d] predicts for texts [n, D].

    Its penalty is the one with the least error on items left out of the fit one at a time, which has a closed form. Where texts tell
    nothing it is great, and every prediction near the mean of the embeddings.
    """
    scale = known.std().clamp(min=torch.finfo(known.dtype).tiny)
    fitted = RidgeCV(alphas=_ALPHAS).fit((known / scale).double().numpy(), embeddings.double().numpy())
    return torch.from_numpy(fitted.predict((asked / scale).double().numpy()))


FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "neighbours": nearest_mean,
    "text": ridge,
}
