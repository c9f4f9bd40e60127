"""Titles as vectors: a Hugging Face text encoder and the pooling of its states. RecBole-free."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.llm.loading import check_no_code, first_line, read_tokenizer, why
from recbole_llara.llm.source import Source, resolve_llm_path
from recbole_llara.utils.atomic import sole_writer, write_file
from recbole_llara.utils.errors import UserError

POOLINGS = ("mean", "cls")
CACHE_FORMAT = 1  # raise it when the meaning of a cached file changes


@dataclass(frozen=True)
class Titles:
    """The tokens of N titles, padded on the right."""

    input_ids: torch.Tensor  # [N, T]
    attention_mask: torch.Tensor  # [N, T] 1 on tokens, 0 on padding

    def to(self, device: torch.device) -> "Titles":
        """The same titles on another device."""
        return Titles(self.input_ids.to(device), self.attention_mask.to(device))

    def take(self, rows: torch.Tensor) -> "Titles":
        """Some of them, without the columns that none of these needs."""
        mask = self.attention_mask[rows]
        width = int(mask.sum(1).max())
        return Titles(self.input_ids[rows, :width], mask[:, :width])


class TextEncoder(nn.Module):
    """A text encoder with mean or CLS pooling.

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
        self.path = path
        self.model, self.tokenizer = _load(path, resolve_llm_path(path, "text_encoder_path"))
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

    def tokenise(self, texts: Sequence[str], max_tokens: int) -> Titles:
        """Tokens of texts as the encoder wants them, its own special tokens included."""
        options = {"truncation": True, "max_length": max_tokens, "padding": True, "padding_side": "right"}
        encoded = self.tokenizer(list(texts), split_special_tokens=True, return_tensors="pt", **options)
        return Titles(encoded["input_ids"], encoded["attention_mask"])

    def forward(self, titles: Titles) -> torch.Tensor:
        """[N, d_text] the pooled states of N titles, float32."""
        output = self.model(input_ids=titles.input_ids, attention_mask=titles.attention_mask)
        states = output.last_hidden_state  # [N, T, d_text]
        if self.pooling == "cls":
            return states[:, 0].float()
        return masked_mean(states, titles.attention_mask.bool())

    def sha256(self) -> str:
        """Digest of the weights in use and of the tokenizer."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        return digest.hexdigest()


def _load(path: str, source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"text_encoder_path is {path!r}: its tokenizer has neither a padding nor an EOS token, expected one of them"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.no_grad()
def cached_features(encoder: TextEncoder, titles: Titles, batch_size: int, folder: Path) -> torch.Tensor:
    """[N, d_text] features of all titles by an encoder that stays as it is, made once and kept in a folder; on the CPU.

    Args:
        encoder: frozen, on the device that computes them.
        titles: N of them.
        batch_size: (int, titles) of one pass.
        folder: where files of the name ``<digest of encoder, pooling and titles>.safetensors`` are kept.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT}/{encoder.pooling}/{encoder.sha256()}".encode())
    for tensor in (titles.input_ids, titles.attention_mask):
        digest.update(tensor.numpy().tobytes())
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    with sole_writer(path):  # processes started together wait for the one that encodes
        features = _kept_features(path)
        if features is None:
            encoder.eval()
            features = encode_all(encoder, titles, batch_size).cpu()
            told = {"sha256": _tensor_sha256(features)}
            write_file(path, lambda place: save_file({"features": features}, place, metadata=told))
    return features


def _kept_features(path: Path) -> torch.Tensor | None:
    """The features in a file; None where there is none, or where it is not as it was written."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told, features = (file.metadata() or {}).get("sha256"), file.get_tensor("features")
        if told == _tensor_sha256(features):
            return features
        fault = "its features are not those whose SHA-256 it tells"
    except (SafetensorError, OSError) as error:
        fault = first_line(error)
    getLogger().warning(f"The cached text features {path} are damaged ({fault}): they are made again")
    return None


def _tensor_sha256(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def encode_all(encoder: TextEncoder, titles: Titles, batch_size: int) -> torch.Tensor:
    """[N, d_text] features of all titles on the encoder's device, those of like length together so that little is padded."""
    device = next(encoder.parameters()).device
    order = titles.attention_mask.sum(1).argsort()
    features = torch.cat([encoder(titles.take(rows).to(device)) for rows in order.split(batch_size)])
    return features[order.argsort().to(device)]
