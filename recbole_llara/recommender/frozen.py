"""The frozen recommender: trained on the run's own rows and cached, or loaded; its item embeddings feed the projector.

The cache lies in ``<checkpoint_dir>/recommenders/<model>-<dataset>-<hash>/``; the hash covers everything the weights
depend on, so a second run with the same recommender trains nothing, and one with another key trains its own.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import recbole
import torch
from torch import nn

from recbole_llara.checkpoint.recbole_pickle import FILTERS
from recbole_llara.config.keys import REC_PREFIX, recommender_keys
from recbole_llara.config.models import own_code
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import vectors_file
from recbole_llara.data.dataset import PreparedData, prepare_data
from recbole_llara.data.numbering import Numbering
from recbole_llara.recommender.cache import META, WEIGHTS, DamagedEntry, seal, unseal
from recbole_llara.recommender.stock import make_recommender, numbered
from recbole_llara.recommender.vectors import NearestVectors, vectors_of_items, vectors_sha256
from recbole_llara.recommender.weights import load_recommender
from recbole_llara.utils.atomic import sole_writer, write_folder
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import file_sha256, json_ready
from recbole_llara.utils.random_state import own_random_state

FORMAT = 2  # raise it when the meaning of a cached folder changes
# Trains a model by its own keys and rows into a file; returns ``best_epoch`` and ``metrics``. It stands above: ``trainer.stock``.
TrainStock = Callable[[RunConfig, nn.Module, PreparedData, Path], dict[str, Any]]
IRRELEVANT_KEYS = frozenset({"loss_decimal_place", "eval_batch_size"})  # they change no weight and no metric


@dataclass(frozen=True)
class Recommender:
    """A trained recommender or the user's own vectors, of which an LLM sees the item embeddings only."""

    model: str  # its name; of vectors that of their file
    sha256: str  # of its weights' file; of vectors that of the table and its ids
    item_embeddings: torch.Tensor  # [N, d_rec] float32, detached, on the CPU; row 0 belongs to the padding item
    path: Path  # folder or file of its weights
    # The others are empty where nobody knows: of a given checkpoint, and of vectors.
    metrics: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # split -> RecBole's metrics of the recommender itself
    best_epoch: int | None = None  # counted from 0
    seconds: float = 0.0  # that this call spent on training it
    trained_on: str | None = None  # digest of its training interactions

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.path / WEIGHTS if self.path.is_dir() else self.path

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of it."""
        told = {"sha256": self.sha256, "path": str(self.path), "metrics": self.metrics}
        return {**told, "training_seconds": round(self.seconds, 1)}


def prepare_recommender(config: RunConfig, prepared: PreparedData, train: TrainStock) -> Recommender:
    """Get the frozen recommender of a run: the user's own vectors, from ``rec_checkpoint``, from the cache, or by training it now.

    It learns from all training rows and stops early on the run's own validation candidates. The caller's random
    state is left as it was, so a run draws the same numbers whether its recommender was cached or not.

    Args:
        config: the LLM's configuration; ``rec_model`` and keys with the prefix ``rec_`` describe the recommender.
        prepared: the run's data.
        train: trains a stock recommender, where neither a checkpoint nor the cache has it.

    Raises:
        UserError: the recommender has no item embedding table, or ``rec_checkpoint`` does not fit model or data.
    """
    vectors = vectors_file(config["item_embeddings"])
    if vectors is not None:
        table = vectors_of_items(vectors, prepared.dataset.field2id_token[prepared.dataset.iid_field])
        return Recommender(vectors.name, vectors_sha256(vectors), table, vectors)
    return _prepare(config, prepared, train)[0]


def recommender_model(config: RunConfig, prepared: PreparedData, train: TrainStock) -> tuple[nn.Module, RunConfig]:
    """The recommender of a run as a whole, as ``prepare_recommender`` gets it, and its own configuration.

    Over vectors of the user's own it is ``NearestVectors``, which nobody trained.
    """
    if vectors_file(config["item_embeddings"]) is not None:
        table = prepare_recommender(config, prepared, train).item_embeddings
        history = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        return NearestVectors(table, history).to(config["device"]).eval(), config.for_recommender()
    return _prepare(config, prepared, train)[1].eval(), config.for_recommender()


def _prepare(config: RunConfig, prepared: PreparedData, train: TrainStock) -> tuple[Recommender, nn.Module]:
    """What an LLM sees of its recommender, and the recommender."""
    rec_config = config.for_recommender()
    if config["rec_checkpoint"]:
        return _given_recommender(rec_config, prepared, Path(config["rec_checkpoint"]))
    # The run's rows may be a sample of what the recommender learns from and is measured on.
    sampled = config["max_train_rows"] != rec_config["max_train_rows"] or config["max_eval_rows"] != rec_config["max_eval_rows"]
    numbering = Numbering.of(prepared.dataset, rec_config["selected_features"])
    sha256 = recommender_sha256(rec_config, prepare_data(rec_config, numbering) if sampled else prepared)
    name = f"{rec_config['model']}-{rec_config['dataset']}-{sha256[:16]}"
    path = Path(rec_config["checkpoint_dir"]) / "recommenders" / name
    with sole_writer(path):  # runs started together wait for the one that trains
        meta, seconds = _from_cache(path, rec_config, numbering, sha256, train)
        model = _build_model(rec_config, prepared)
        load_recommender(model, path / WEIGHTS, rec_config["model"])
    table, digest = item_embedding_table(model), meta["weights_sha256"]
    return Recommender(
        rec_config["model"], digest, table, path, meta["metrics"], meta["best_epoch"], seconds, model.trained_on
    ), model


def recommender_sha256(rec_config: RunConfig, data: PreparedData) -> str:
    """Digest of everything a recommender's weights and metrics depend on, save the machine.

    Args:
        rec_config: its own configuration.
        data: rows and candidates it learns from and is measured on.
    """
    keys = sorted(recommender_keys(rec_config["model"]) - IRRELEVANT_KEYS)
    facts = {
        "format": FORMAT,
        "recbole": recbole.__version__,
        "model": rec_config["model"],
        "keys": {key: rec_config[key] for key in keys},
        "seed": rec_config["seed"],
        "reproducibility": rec_config["reproducibility"],
        "max_history": rec_config["MAX_ITEM_LIST_LENGTH"],
        "items": Numbering.of(data.dataset).items_sha256,
        "training_rows": _rows_sha256(data.train_data.dataset, rec_config),
        "candidates": data.candidate_sha256,
    }
    code = own_code(rec_config["model"])
    if code is not None:
        facts["code"] = file_sha256(code)
    return hashlib.sha256(json.dumps(json_ready(facts), sort_keys=True).encode()).hexdigest()


def item_embedding_table(model: nn.Module) -> torch.Tensor:
    """The table [N, d_rec] a recommender looks its items up in: a float32 copy on the CPU that no training touches.

    A row behind those of the items, which BERT4Rec has for its mask token, is left out.

    Raises:
        UserError: the model has no ``item_embedding`` of N rows, or of N + 1 with a mask token.
    """
    table = getattr(model, "item_embedding", None)
    rows = model.n_items + has_mask_token(model)
    if not isinstance(table, nn.Embedding) or table.num_embeddings != rows:
        found = "none" if table is None else f"a {type(table).__name__}"
        raise UserError(
            f"rec_model: {type(model).__name__} has no item embedding table (item_embedding: {found}), expected one row "
            "for each item; choose a recommender such as SASRec, GRU4Rec or Caser"
        )
    return table.weight.detach()[: model.n_items].to("cpu", torch.float32, copy=True)


def has_mask_token(model: nn.Module) -> bool:
    """Whether the row behind those of a model's items is the mask that it puts in an item's place."""
    return getattr(model, "mask_token", None) == model.n_items


def _build_model(rec_config: RunConfig, data: PreparedData) -> nn.Module:
    with own_random_state(rec_config["seed"], rec_config["reproducibility"]):
        try:
            model = make_recommender(rec_config["model"], rec_config, data.train_data.dataset)
        except UserError as error:
            raise UserError(f"{REC_PREFIX}{error}") from error
    model = model.to(rec_config["device"])
    item_embedding_table(model)  # before training it in vain
    return numbered(model, rec_config, data.train_data.dataset)


def _from_cache(
    path: Path, rec_config: RunConfig, numbering: Numbering, sha256: str, train: TrainStock
) -> tuple[dict[str, Any], float]:
    """The facts of the cached recommender, trained now where there is none, and the seconds spent on that."""
    if path.exists():
        try:
            meta = unseal(path, sha256)
        except DamagedEntry as damage:
            getLogger().warning(f"The cached recommender {path} is damaged ({damage}): it is trained again")
        else:
            getLogger().info(f"Recommender taken from the cache: {path}")
            return meta, 0.0
    getLogger().info(f"Training the recommender {rec_config['model']}, to be kept in {path}")
    started = perf_counter()
    write_folder(path, lambda folder: _train_into(folder, rec_config, numbering, sha256, train))
    return unseal(path, sha256), perf_counter() - started


def _train_into(folder: Path, rec_config: RunConfig, numbering: Numbering, sha256: str, train: TrainStock) -> None:
    """Train a recommender into an empty folder."""
    started = perf_counter()
    # Loaders of its own: other batch sizes, and negatives where its loss asks for them.
    data = prepare_data(rec_config, numbering)
    model = _build_model(rec_config, data)
    with own_random_state(rec_config["seed"], rec_config["reproducibility"]):
        trained = train(rec_config, model, data, folder / WEIGHTS)
    seconds = perf_counter() - started
    facts = {
        "model": rec_config["model"],
        "dataset": rec_config["dataset"],
        "sha256": sha256,
        "best_epoch": trained["best_epoch"],
        "metrics": trained["metrics"],
        "candidate_sha256": data.candidate_sha256,
        "training_seconds": round(seconds, 1),
    }
    seal(folder, facts)
    getLogger().info(f"Recommender trained in {seconds:.0f} s: test {dict(trained['metrics']['test'])}")


def _given_recommender(rec_config: RunConfig, prepared: PreparedData, checkpoint: Path) -> tuple[Recommender, nn.Module]:
    weights = checkpoint / WEIGHTS if checkpoint.is_dir() else checkpoint
    if weights.name == WEIGHTS and (weights.parent / META).is_file():  # an entry of the cache
        try:
            unseal(weights.parent)
        except DamagedEntry as damage:
            raise UserError(
                f"rec_checkpoint: {weights.parent} is damaged ({damage}); leave rec_checkpoint empty and it is trained again"
            ) from damage
    model = _build_model(rec_config, prepared)
    loaded = load_recommender(model, weights, rec_config["model"], {key: rec_config[key] for key in FILTERS})
    table = item_embedding_table(model)
    return Recommender(
        rec_config["model"], file_sha256(weights), table, checkpoint, {}, loaded.facts["epoch"], 0.0, model.trained_on
    ), model


def _rows_sha256(dataset: Any, rec_config: RunConfig) -> str:
    """Digest of the training rows: user, history and target of each, in order."""
    digest = hashlib.sha256()
    item_field = rec_config["ITEM_ID_FIELD"]
    for name in (rec_config["USER_ID_FIELD"], item_field, item_field + rec_config["LIST_SUFFIX"]):
        values = np.ascontiguousarray(dataset.inter_feat[name].numpy().astype("<i8"))
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values)
    return digest.hexdigest()
