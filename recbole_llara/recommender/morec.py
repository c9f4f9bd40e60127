"""MoRec: a text encoder's features of the items' texts in place of a recommender's id embeddings."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import FeatureType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.checkpoint.weights import llm_digest, tensors_sha256
from recbole_llara.config.run_config import ChecksConfig, check_titles
from recbole_llara.config.settings import TextEncoderSettings
from recbole_llara.data.dataset import CandidateDataset
from recbole_llara.data.snapshot import Column, SnapshotDataset
from recbole_llara.data.text_table import TextTable
from recbole_llara.llm.item_tokens import Projector
from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.llm.loading import check_no_code, first_line, load_llm, read_tokenizer, why
from recbole_llara.llm.source import resolve_llm_path
from recbole_llara.llm.text_states import text_states
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.tokens import opening_tokens, tokenise
from recbole_llara.recommender.frozen import has_mask_token, item_embedding_table
from recbole_llara.recommender.stock import make_recommender
from recbole_llara.utils.atomic import sole_writer, write_file
from recbole_llara.utils.errors import UserError

PROMPT = "prompt"  # what an LLM knows of a title behind the words that begin a prompt, see ``llm.text_states``
POOLINGS = ("mean", "cls", PROMPT)
FEATURES = "text_features"  # the column of a snapshot that holds them
CACHE_FORMAT = 1  # raise it when the meaning of a cached file changes


class Texts(NamedTuple):
    """The tokens of N texts, padded on the right."""

    input_ids: torch.Tensor  # [N, T]
    attention_mask: torch.Tensor  # [N, T] 1 on tokens, 0 on padding


class TextEncoder(nn.Module):
    """A Hugging Face text encoder, its states pooled.

    Args:
        path: "tiny" (the embedded Llama), a folder, or the id of a model of the Hugging Face hub.
        pooling: mean = over a text's tokens; cls = the state of its first token, for encoders that have one for it.

    Attributes:
        width: (int, numbers) d_text.

    Raises:
        UserError: no encoder can be loaded, or it yields no states to pool.
    """

    def __init__(self, path: str, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.model, self.tokenizer = _load(path)
        if pooling == "cls" and self.tokenizer.cls_token_id is None:
            raise UserError(
                f"text_pooling: found cls, but the tokenizer of text_encoder_path {path!r} puts no CLS token before a text; "
                "expected mean"
            )
        try:
            with torch.no_grad():
                self.width = self(self.tokenise(["title"], 8)).shape[1]
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"text_encoder_path: {type(self.model).__name__} of {path!r} gives no states of a text's tokens that could be "
                f"pooled ({first_line(error)}); expected a text encoder or a causal LM"
            ) from error

    def tokenise(self, texts: Sequence[str], max_tokens: int) -> Texts:
        """Tokens of texts as the encoder wants them, its own special tokens included."""
        options = {"truncation": True, "max_length": max_tokens, "padding": True, "padding_side": "right"}
        encoded = self.tokenizer(list(texts), split_special_tokens=True, return_tensors="pt", **options)
        return Texts(encoded["input_ids"], encoded["attention_mask"])

    def forward(self, texts: Texts) -> torch.Tensor:
        """[N, d_text] the pooled states of N texts, float32."""
        states = self.model(**texts._asdict()).last_hidden_state  # [N, T, d_text]
        if self.pooling == "cls":
            return states[:, 0].float()
        return masked_mean(states, texts.attention_mask.bool())

    def sha256(self) -> str:
        """Digest of the weights in use and of the tokenizer."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(_bytes(value))
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()


def _load(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = resolve_llm_path(path, "text_encoder_path")
    options = source.options(trust_remote_code=False)  # left out, transformers may ask on the screen
    try:
        check_no_code(source.where, options)
        model = AutoModel.from_pretrained(source.where, dtype=torch.float32, **options)
        tokenizer = read_tokenizer(source.where, options)
    except (
        OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, SafetensorError, UnpicklingError,
    ) as error:  # fmt: skip
        raise UserError(
            f"text_encoder_path is {path!r}: no text encoder can be read there ({why(error)}); expected tiny, a folder "
            "with config.json, weights and tokenizer, or the id of a hub model"
        ) from error
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"text_encoder_path is {path!r}: its tokenizer has neither a padding nor an EOS token, expected one of them"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def encode_all(encoder: TextEncoder, texts: Texts, batch_size: int) -> torch.Tensor:
    """[N, d_text] features of all texts on the encoder's device, those of like length together so that little is padded."""
    device, lengths = next(encoder.parameters()).device, texts.attention_mask.sum(1)
    order, features = lengths.argsort(), []
    for rows in order.split(batch_size):
        width = int(lengths[rows].max())
        features.append(encoder(Texts(*(tensor[rows, :width].to(device) for tensor in texts))))
    return torch.cat(features)[order.argsort().to(device)]


@torch.no_grad()
def cached_features(encoder: TextEncoder, texts: Texts, batch_size: int, folder: Path) -> torch.Tensor:
    """[N, d_text] features of all texts by an encoder that stays as it is, on the CPU.

    They are made once and kept as ``<digest of encoder, pooling and texts>.safetensors``.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT}/{encoder.pooling}/{encoder.sha256()}".encode())
    for tensor in texts:
        digest.update(_bytes(tensor))
    return _kept(folder, digest.hexdigest(), lambda: encode_all(encoder.eval(), texts, batch_size).cpu())


def cached_states(path: str, texts: Sequence[str], domain: str, folder: Path) -> tuple[torch.Tensor, str]:
    """[N, D] what a causal LM knows of N texts, kept likewise, and the LLM's digest.

    Args:
        path: of the LLM.
        texts: N.
        domain: whose first prompt template begins with the words before a text.

    Raises:
        UserError: no causal LM can be loaded.
    """
    llm, tokenizer = load_llm(path, llm_tuning="frozen")
    words = load_templates(domain, 1)[0].segments[0]
    beginning, told = opening_tokens(tokenizer) + tokenise(tokenizer, [words])[0], llm_digest(llm)
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, PROMPT, told, beginning, list(texts)]).encode())
    return _kept(folder, digest.hexdigest(), lambda: text_states(llm, tokenizer, beginning, texts)), told


def _kept(folder: Path, digest: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The features of a file that is named by a digest of all that they depend on, made where there is none."""
    path = folder / f"{digest[:32]}.safetensors"
    with sole_writer(path):  # processes started together wait for the one that encodes
        if path.exists():
            try:
                with safe_open(path, framework="pt") as file:
                    told, features = (file.metadata() or {}).get("sha256"), file.get_tensor("features")
                if told == tensors_sha256({"features": features}):
                    return features
                fault = "its features are not those whose SHA-256 it tells"
            except (SafetensorError, OSError) as error:
                fault = first_line(error)
            getLogger().warning(f"The cached text features {path} are damaged ({fault}): they are made again")
        features = make()
        told = {"sha256": tensors_sha256({"features": features})}
        write_file(path, lambda place: save_file({"features": features}, place, metadata=told))
    return features


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()


class TextItemEmbedding(nn.Module):
    """Stands where a recommender keeps its item table: every row is computed from the item's text.

    Args:
        width: (int, numbers) d_rec of the recommender.
        features: [N, d_text] of all texts, where the text encoder does not learn; else ``encoder`` computes them again.
        encoder, texts: one that learns, and the tokens of N texts; the first belongs to the padding item, whose row is 0.
        batch_size: (int, texts) that the encoder reads at a time.
        is_held_out: [N] whose rows are 0 in training, where they would be negatives of every softmax; None = of no item.
    """

    def __init__(
        self,
        width: int,
        features: torch.Tensor | None = None,
        encoder: TextEncoder | None = None,
        texts: Texts | None = None,
        batch_size: int = 1,
        is_held_out: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = len(texts.input_ids if features is None else features), width
        self.projector = Projector(encoder.width if features is None else features.shape[1], width)
        self.encoder, self.batch_size = encoder, batch_size
        self.register_buffer("features", features, persistent=False)
        for name, tokens in zip(Texts._fields, texts or (None, None), strict=True):
            self.register_buffer(name, tokens, persistent=False)
        is_learned = torch.ones(self.num_embeddings, dtype=torch.bool)
        if is_held_out is not None:
            is_learned &= torch.from_numpy(~is_held_out)
        self.register_buffer("is_learned", is_learned, persistent=False)
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
            features = encode_all(self.encoder, Texts(self.input_ids, self.attention_mask), self.batch_size)
        table = self.projector(features)  # [N, d_rec]
        is_item = torch.arange(len(table), device=table.device) > 0
        return table * (is_item & self.is_learned if self.training else is_item)[:, None]


class MoRec(ChecksConfig, SequentialRecommender):
    """MoRec (Yuan et al., SIGIR 2023): the recommender ``rec_model``, its item table made out of the items' texts.

    A text is a title and its ``item_fields``, popularity left out, as LLaRA's vectors of new items are made of them. A text encoder's
    pooled states go through two linear layers into the recommender, which learns with them, and with the encoder where
    ``text_encoder_tuning`` is full. The papers' tables have BERT feeding SASRec.

    Raises:
        UserError: no titles, no text encoder, or a recommender without an item table.
    """

    def __init__(self, config: Any, dataset: CandidateDataset | SnapshotDataset) -> None:
        super().__init__(config, dataset)
        settings = TextEncoderSettings.from_config(config)
        self.rec_model, self.text_encoder = config["rec_model"], settings.text_encoder_path
        self.recommender = make_recommender(self.rec_model, config, dataset)
        if has_mask_token(self.recommender):
            raise UserError(
                f"rec_model: found {self.rec_model}, expected a recommender without a mask token, which has no title: MoRec makes "
                "every row of the item table out of one; choose such as SASRec, GRU4Rec or Caser"
            )
        width = item_embedding_table(self.recommender).shape[1]
        self._identity: dict[str, Any] = {}
        if isinstance(dataset, SnapshotDataset) and settings.text_encoder_tuning == "frozen":
            self.items = TextItemEmbedding(width, dataset.item_feat[FEATURES], is_held_out=dataset.is_held_out)
        else:
            self.items = self._table_of_texts(settings, config, dataset, width)
        self.recommender.item_embedding = self.items
        self.encoder_learning_rate = settings.text_encoder_learning_rate

    def _table_of_texts(
        self, settings: TextEncoderSettings, config: Any, dataset: CandidateDataset | SnapshotDataset, width: int
    ) -> TextItemEmbedding:
        """The item table out of all texts."""
        texts, folder = ["-", *dataset.catalogue.texts()[1:]], Path(config["checkpoint_dir"]) / "text_features"
        self._identity["texts_sha256"] = TextTable.of(texts).sha256
        if settings.text_pooling == PROMPT:
            features, told = cached_states(settings.text_encoder_path, texts, dataset.catalogue.domain, folder)
            self._identity["text_encoder_sha256"] = told
            # Each number by itself, as ``new_items.TextFeatures``: some vary ten times as much as the others.
            features = (features - features[1:].mean(0)) / features[1:].std(0).clamp(min=1e-6)
            return TextItemEmbedding(width, features, is_held_out=dataset.is_held_out)
        encoder = TextEncoder(settings.text_encoder_path, settings.text_pooling).to(config["device"])
        tokens = encoder.tokenise(texts, settings.max_title_tokens)
        self._identity["text_encoder_sha256"] = encoder.sha256()  # as it was before it learned, where it does
        if settings.text_encoder_tuning == "full":
            return TextItemEmbedding(width, None, encoder, tokens, settings.text_batch_size, dataset.is_held_out)
        features = cached_features(encoder, tokens, settings.text_batch_size, folder)
        # At unit variance for the projector; one number for all of them, so that distances keep their order.
        features = (features - features[1:].mean(0)) / features[1:].std()
        return TextItemEmbedding(width, features, is_held_out=dataset.is_held_out)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a run without titles, and unknown or mistyped keys of the text encoder."""
        check_titles(config)
        settings = TextEncoderSettings.from_config(config)
        if settings.text_pooling == PROMPT and settings.text_encoder_tuning == "full":
            raise UserError(
                "text_pooling: found prompt with text_encoder_tuning full, expected frozen, or the pooling mean or cls: the states behind a "
                "prompt's words are made once"
            )

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``HasResultFields``."""
        return {"rec_model": self.rec_model, "text_encoder": self.text_encoder}

    def identity(self) -> dict[str, Any]:
        """Which texts, and which text encoder where it was read; see ``TellsIdentity``."""
        return self._identity

    def item_columns(self) -> dict[str, Column]:
        """The texts' features, of an encoder that does not learn; see ``KeepsColumns``."""
        features = self.items.features
        return {} if features is None else {FEATURES: Column(features.cpu(), FeatureType.FLOAT_SEQ, features.shape[1])}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser moves, the encoder at a learning rate of its own."""
        encoder = [] if self.items.encoder is None else list(self.items.encoder.parameters())
        slow = set(encoder)
        others = {"params": [parameter for parameter in self.parameters() if parameter not in slow]}
        return [others, {"params": encoder, "lr": self.encoder_learning_rate}] if encoder else [others]

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """The recommender's own loss."""
        with self.items.held():
            return self.recommender.calculate_loss(interaction)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The recommender's scores of all items, [B, N]."""
        with self.items.held():
            return self.recommender.full_sort_predict(interaction)
