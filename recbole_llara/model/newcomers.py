"""Items that come after training: what an LLM recommender reads of them, and what its recommender is given for them.

Their texts are tokenised as those of the other items; their vectors are predicted from the texts, see ``recommender.new_items``, and the
recommender scores them by these. Under ``new_item_token: placeholder`` nothing is said of them: the placeholder stands for their score, and they
stand behind the candidates that the recommender has learned. Among those that they join, no item's tokens, vectors or scores change.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from logging import getLogger
from typing import Any

import torch
from torch import nn

from recbole_llara.config.settings import OWN, PLACEHOLDER
from recbole_llara.recommender.frozen import Recommender
from recbole_llara.recommender.growing import set_items
from recbole_llara.recommender.new_items import NewItemVectors, TextFeatures, fitted_on

FROM_TEXT = "text"  # what stands for a new item where the run has no rule of its own


class Newcomers:
    """Gives new items their place in a trained model and in the recommender that proposes with it.

    Args:
        model: an ``LLMRecommender`` in evaluation mode.
        recommender: what is known of the recommender that proposes; None = it learned nothing of items.
        texts: of the N items of training, with their fields, the padding item's first.
        settings: keys of ``RecommenderSettings``: ``new_item_token`` and ``new_item_neighbours``.
        networks: the recommenders that are to know the new items, each with its configuration.

    Attributes:
        token: what stands for a new item's behavioural token; ``text`` in a run of ``new_item_token: own``, which has no row for it.
    """

    def __init__(
        self,
        model: Any,
        recommender: Recommender | None,
        texts: Sequence[str],
        settings: Any,
        networks: Sequence[tuple[nn.Module, Any]],
    ) -> None:
        self.model, self.recommender, self._texts = model, recommender, texts
        self.token = FROM_TEXT if settings.new_item_token == OWN else settings.new_item_token
        self._neighbours = settings.new_item_neighbours
        self._networks = list({id(network): (network, config) for network, config in networks}.values())
        is_known = recommender is not None and recommender.is_new is not None
        is_new = recommender.is_new.clone() if is_known else torch.zeros(len(texts), dtype=torch.bool)
        is_new[0] = True  # the padding item
        self._learned = fitted_on(is_new)

    def change(self, titles: Mapping[int, str], fields: Mapping[int, str], texts: Mapping[int, str], added: int) -> None:
        """Take in items that are numbered on from the last one, and rename others.

        A renamed item that came after training gets the vectors of its new text, one that the recommender learned keeps its own.

        Args:
            titles: by item, of new and of renamed ones.
            fields: what stands behind these titles, by item.
            texts: title and fields of the same items.
            added: (int, items) M, how many are new.

        Raises:
            UserError: a title that the tokenizer cannot take, or a recommender that cannot have further items; then nothing has changed.
        """
        first, undo = len(self._texts), []
        later = {item: text for item, text in sorted(texts.items()) if item >= first}  # all that training never saw
        items, new = torch.tensor([*later], dtype=torch.int64), list(later.values())
        try:
            if later:
                tokens, own = self._token_rows(new), self._own_rows(new)
                undo = [set_items(network, config, items, own) for network, config in self._networks]
            self.model.encoder.set_texts(titles, fields)
        except Exception:
            for take_back in undo:
                take_back()
            raise
        if later:
            self.model.item_tokens.set_items(items, tokens)
        if added:
            conclude = self.model.conclude
            if conclude is not None and (self.token == PLACEHOLDER or conclude.is_new is not None):
                conclude.add_items(added)
            self.model.n_items += added

    def _token_rows(self, texts: Sequence[str]) -> torch.Tensor | None:
        """[M, d] what the projector reads of new items; None = nothing, the placeholder stands for them."""
        has_tokens = self.model.item_tokens.projector is not None and self.token != PLACEHOLDER
        return self._token_vectors(texts) if has_tokens else None

    def _own_rows(self, texts: Sequence[str]) -> torch.Tensor:
        """[M, d] rows for a recommender's table; d is 0 where none learned anything of items."""
        return torch.zeros(len(texts), 0) if self.recommender is None else self._own_vectors(texts)

    @cached_property
    def _features(self) -> TextFeatures:
        getLogger().info(f"New items: the LLM reads the texts of {len(self._learned):,} items that the recommender has learned")
        return TextFeatures(self._read, [self._texts[item] for item in self._learned.tolist()])

    def _read(self, texts: Sequence[str]) -> torch.Tensor:
        with self.model.evaluation_arithmetic():  # the weights of products may be held in its type
            return self.model.read_texts(texts)

    @cached_property
    def _token_vectors(self) -> NewItemVectors:
        table = self.model.item_tokens.item_embeddings.detach().cpu().float()
        return NewItemVectors(self.token, self._features, table[self._learned], self._neighbours)

    @cached_property
    def _own_vectors(self) -> NewItemVectors:
        kind = FROM_TEXT if self.token == PLACEHOLDER else self.token
        return NewItemVectors(kind, self._features, self.recommender.item_embeddings[self._learned], self._neighbours)
