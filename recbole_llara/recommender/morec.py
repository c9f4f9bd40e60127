"""MoRec: a text encoder's features of the titles in place of a recommender's id embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn

from recbole_llara.config.run_config import check_titles
from recbole_llara.config.settings import TextEncoderSettings
from recbole_llara.data.titles import load_catalogue
from recbole_llara.llm.item_tokens import Projector
from recbole_llara.recommender.frozen import has_mask_token, item_embedding_table
from recbole_llara.recommender.stock import make_recommender
from recbole_llara.recommender.text_encoder import TextEncoder, Titles, cached_features, encode_all
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.protocols import ChecksConfig


class TextItemEmbedding(nn.Module):
    """Stands where a recommender keeps its item table: every row is computed from the item's title.

    Args:
        encoder: of the titles.
        titles: tokens of N titles; the first belongs to the padding item, whose row is 0.
        width: (int, numbers) d_rec of the recommender.
        settings: whether the encoder learns, and how many titles one pass holds.
        cache: folder of features, for an encoder that does not learn.
    """

    def __init__(self, encoder: TextEncoder, titles: Titles, width: int, settings: TextEncoderSettings, cache: Path) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = len(titles.input_ids), width
        self.projector = Projector(encoder.width, width)
        self.batch_size = settings.text_batch_size
        self.encoder = encoder if settings.text_encoder_tuning == "full" else None
        if self.encoder is None:
            features = cached_features(encoder, titles, self.batch_size, cache)
            # At unit variance for the projector; one number for all of them, so that distances keep their order.
            self.register_buffer("features", (features - features[1:].mean(0)) / features[1:].std(), persistent=False)
        self.register_buffer("input_ids", titles.input_ids, persistent=False)
        self.register_buffer("attention_mask", titles.attention_mask, persistent=False)
        self._held: torch.Tensor | None = None

        self.register_load_state_dict_post_hook(lambda *_: self._forget())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute the table once for all that is looked up inside.

        In evaluation mode without gradients it is kept for what follows, until ``train`` or ``eval`` is called, weights are
        loaded or the module is moved: every evaluation begins with ``eval``, so it encodes the catalogue once.
        """
        is_kept = not self.training and not torch.is_grad_enabled()
        if self._held is None or not is_kept:
            self._held = self._table()
        try:
            yield
        finally:
            if not is_kept:
                self._forget()

    def train(self, mode: bool = True) -> "TextItemEmbedding":
        """As ``nn.Module.train``; what was kept of earlier weights is forgotten."""
        self._forget()
        return super().train(mode)

    def _apply(self, *arguments: Any, **options: Any) -> "TextItemEmbedding":
        self._forget()
        return super()._apply(*arguments, **options)

    def _forget(self) -> None:
        self._held = None

    @property
    def weight(self) -> torch.Tensor:
        """[N, d_rec], as ``nn.Embedding.weight``, with a gradient to the projector and to an encoder that learns."""
        return self._table() if self._held is None else self._held

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """[..., d_rec] the rows of items [...]."""
        return self.weight[items]

    def _table(self) -> torch.Tensor:
        if self.encoder is None:
            features = self.features
        else:
            features = encode_all(self.encoder, Titles(self.input_ids, self.attention_mask), self.batch_size)
        table = self.projector(features)  # [N, d_rec]
        is_item = torch.arange(len(table), device=table.device) > 0
        return table * is_item[:, None]


class MoRec(ChecksConfig, SequentialRecommender):
    """MoRec (Yuan et al., SIGIR 2023): the recommender ``rec_model``, its item table made out of the titles.

    A text encoder's pooled states go through two linear layers into the recommender, which learns with them, and with
    the encoder where ``text_encoder_tuning`` is full. The papers' tables have BERT feeding SASRec.

    Args:
        config: the run's RunConfig.
        dataset: the training split.

    Raises:
        UserError: no titles, no text encoder, or a recommender without an item table.
    """

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        settings = TextEncoderSettings.from_config(config)
        catalogue = load_catalogue(dataset, config)
        self.recommender = make_recommender(config["rec_model"], config, dataset)
        if has_mask_token(self.recommender):
            raise UserError(
                f"rec_model: found {config['rec_model']}, expected a recommender without a mask token, which has no title: MoRec makes "
                "every row of the item table out of one; choose such as SASRec, GRU4Rec or Caser"
            )
        width = item_embedding_table(self.recommender).shape[1]
        encoder = TextEncoder(settings.text_encoder_path, settings.text_pooling).to(config["device"])
        titles = encoder.tokenise(["-", *catalogue.titles[1:]], settings.max_title_tokens)
        cache = Path(config["checkpoint_dir"]) / "text_features"
        self.items = TextItemEmbedding(encoder, titles, width, settings, cache)
        self.recommender.item_embedding = self.items
        self.rec_model, self.text_encoder = config["rec_model"], settings.text_encoder_path
        self._identity = {"text_encoder_sha256": encoder.sha256()}  # as it was before it learned, where it does
        self.encoder_learning_rate = settings.text_encoder_learning_rate

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a run without titles, and unknown or mistyped keys of the text encoder."""
        check_titles(config)
        TextEncoderSettings.from_config(config)

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``HasResultFields``."""
        return {"rec_model": self.rec_model, "text_encoder": self.text_encoder}

    def identity(self) -> dict[str, Any]:
        """Which text encoder; see ``TellsIdentity``."""
        return self._identity

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves, the encoder at a learning rate of its own."""
        encoder = [] if self.items.encoder is None else list(self.items.encoder.parameters())
        slow = {id(parameter) for parameter in encoder}
        groups = [
            {"params": [parameter for parameter in self.parameters() if id(parameter) not in slow]},
            {"params": encoder, "lr": self.encoder_learning_rate},
        ]
        return [group for group in groups if group["params"]]

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """The recommender's own loss."""
        with self.items.held():
            return self.recommender.calculate_loss(interaction)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The recommender's scores of all items, [B, N]."""
        with self.items.held():
            return self.recommender.full_sort_predict(interaction)
