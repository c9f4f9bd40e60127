"""The frozen recommender: trained on the run's own rows and cached, or loaded, or a table of vectors; it feeds the projector.

The cache lies in ``<checkpoint_dir>/recommenders/<model>-<dataset>-<hash>/``; the hash covers everything the weights
depend on, so a second run with the same recommender trains nothing, and one with another key trains its own. What a folder
holds is sealed by digests when it is written, and checked when it is taken.

Under ``recommender_rows: earlier`` a run has two: that of training has learned from each user's earlier rows alone, so that what it
says of the later ones, on which the LLM is tuned, is as far from certain as what a recommender says of test rows. The other, which
answers, continues from its weights with all training rows: trained from scratch it would have vectors that the projector has never seen.
"""

import hashlib
import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import recbole
import torch
from recbole.data.interaction import Interaction
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn
from torch.nn.functional import normalize

from recbole_llara.checkpoint.recbole_pickle import FILTERS
from recbole_llara.checkpoint.weights import contents_sha256, weights_sha256
from recbole_llara.config.keys import REC_PREFIX, recommender_keys
from recbole_llara.config.models import own_code
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import EARLIER, VECTORS, ids_file, vectors_file
from recbole_llara.data.dataset import PreparedData, prepare_data, training_part
from recbole_llara.data.numbering import Numbering
from recbole_llara.data.rows import TrainingPart
from recbole_llara.llm.item_tokens import with_rows
from recbole_llara.recommender.stock import load_recommender, make_recommender, numbered, train_stock
from recbole_llara.recommender.undrawn import undrawn
from recbole_llara.utils.atomic import sole_writer, write_folder
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import facts_sha256, file_sha256, json_ready
from recbole_llara.utils.random_state import own_random_state

WEIGHTS, META = "model.safetensors", "meta.json"
FORMAT = 4  # raise it when the meaning of a cached folder changes
IRRELEVANT_KEYS = frozenset({"loss_decimal_place", "eval_batch_size"})  # they change no weight and no metric


@dataclass(frozen=True)
class Recommender:
    """A trained recommender or the user's own vectors, of which an LLM sees the item embeddings only."""

    model: str  # its name; of vectors that of their file
    sha256: str  # of its weights and what they know of the items; of vectors that of the table and its ids
    item_embeddings: torch.Tensor  # [N, d_rec] float32, detached, on the CPU; row 0 belongs to the padding item
    path: Path  # folder or file of its weights
    # RecBole's metrics of the recommender itself, by split; empty for a given checkpoint and for vectors.
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0  # that this call spent on training it
    trained_on: str | None = None  # digest of its training interactions; None where nobody knows
    unlearned_items: int = 0  # that occur in later training rows only, where it learned from earlier ones
    # [N] bool, which items stand in none of the rows that it learned from; None of vectors, which it has of all.
    is_new: torch.Tensor | None = None

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return weights_file(self.path)

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of it."""
        told = {"sha256": self.sha256, "path": str(self.path), "metrics": self.metrics}
        return {**told, "training_seconds": round(self.seconds, 1)}


def weights_file(path: Path) -> Path:
    """The file of weights that a folder of the cache holds; any other path is that file."""
    return path / WEIGHTS if path.is_dir() else path


def keep_beside(recommender: Recommender, folder: Path) -> None:
    """Give a run's folder the files of its recommender, as links where the file system lets a file have two names.

    Every file of weights is written once and replaced as a whole, so that neither name's file changes under the other's.
    """
    if recommender.path.suffix in VECTORS and ids_file(recommender.path).is_file():
        files = {path.name: path for path in (recommender.path, ids_file(recommender.path))}
    else:
        files = {Path(WEIGHTS).stem + recommender.weights.suffix: recommender.weights}  # a .pth stays one

    if is_cached := (recommender.weights.parent / META).is_file():
        files[META] = recommender.weights.parent / META

    def fill(place: Path) -> None:
        for name, path in files.items():
            if is_cached and name != META:  # a file of the user's may change in place
                with suppress(OSError):
                    (place / name).hardlink_to(path)
            if not (place / name).exists():
                shutil.copyfile(path, place / name)

    write_folder(folder, fill)


def prepare_recommender(config: RunConfig, prepared: PreparedData) -> Recommender:
    """Get the frozen recommender of a run: the user's own vectors, from ``rec_checkpoint``, from the cache, or by training it now.

    It learns from all training rows (but see ``recommender_at_test``) and stops early on the run's own validation candidates. The
    caller's random state is left as it was, so a run draws the same numbers whether its recommender was cached or not. ``rec_model`` and keys
    with the prefix ``rec_`` of the LLM's configuration describe it.

    Raises:
        UserError: the recommender has no item embedding table, or ``rec_checkpoint`` does not fit model or data.
    """
    return recommender_and_model(config, prepared)[0]


def recommender_model(
    config: RunConfig, prepared: PreparedData, of_training: bool = False
) -> tuple[Recommender, nn.Module, RunConfig]:
    """The recommender of a run, its whole model (over the user's own vectors ``NearestVectors``), and its own configuration."""
    recommender, model = recommender_and_model(config, prepared, of_training)
    return recommender, model.to(config["device"]).eval(), config.for_recommender()


def recommender_and_model(
    config: RunConfig, prepared: PreparedData, of_training: bool = False
) -> tuple[Recommender, nn.Module]:
    """What an LLM sees of its recommender, and the recommender itself; see ``prepare_recommender``.

    Args:
        of_training: under ``recommender_rows: earlier``, the one with which training rows are read; else the one that answers.
    """
    if vectors := vectors_file(config["item_embeddings"]):
        table = vectors_of_items(vectors, prepared.dataset.field2id_token[prepared.dataset.iid_field])
        model = NearestVectors(table, config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"])
        return Recommender(vectors.name, vectors_sha256(vectors), table, vectors), model
    rec_config, told, seconds = config.for_recommender(), {}, 0.0
    if not config["rec_checkpoint"]:
        path, told, seconds = _cached(config, rec_config, prepared, of_training)
        is_new = _unpacked(told["new_items"], prepared.dataset.item_num)
    else:
        path = Path(config["rec_checkpoint"])
        folder, is_new = weights_file(path).parent, torch.from_numpy(prepared.dataset.training_counts == 0)
        try:
            if weights_file(path) == folder / WEIGHTS and (folder / META).is_file():  # an entry of the cache
                is_new = _unpacked(unseal(folder)["new_items"], prepared.dataset.item_num)
        except DamagedEntry as damage:
            raise UserError(
                f"rec_checkpoint: {folder} is damaged ({damage}); leave rec_checkpoint empty and it is trained again"
            ) from damage
    model, weights = _build_model(rec_config, prepared, is_frozen=True), weights_file(path)
    load_recommender(model, weights, rec_config["model"], {key: rec_config[key] for key in FILTERS}, is_frozen=True)
    table, sha256 = item_embedding_table(model), weights_sha256(weights)
    known = told.get("metrics", {}), seconds, model.trained_on, told.get("unlearned_items", 0)
    return Recommender(rec_config["model"], sha256, table, path, *known, is_new), model


def learned_part(config: RunConfig, of_training: bool) -> TrainingPart | None:
    """The training rows from which the recommender of a run learns; None = all."""
    part = training_part(config)
    is_earlier = part is not None and (of_training or config["recommender_at_test"] == EARLIER)
    return replace(part, is_later=False) if is_earlier else None


def learned_data(config: RunConfig, rec_config: RunConfig, prepared: PreparedData, of_training: bool) -> PreparedData:
    """The data of a run's recommender, whose training rows are those that it learns from; RecBole notes columns in ``rec_config``."""
    numbering = Numbering.of(prepared.dataset, rec_config["selected_features"])
    return prepare_data(rec_config, numbering, learned_part(config, of_training))


def _cached(
    config: RunConfig, rec_config: RunConfig, prepared: PreparedData, of_training: bool
) -> tuple[Path, dict[str, Any], float]:
    """The folder of the cached recommender, trained now where there is none; its facts, and the seconds spent on training."""
    is_parted, start = training_part(config) is not None, None
    if is_parted and learned_part(config, of_training) is None:
        start = recommender_and_model(config, prepared, of_training=True)
    # The run's rows may be some of what the recommender learns from and is measured on.
    is_some = is_parted or any(config[key] != rec_config[key] for key in ("max_train_rows", "max_eval_rows"))
    data = learned_data(config, rec_config, prepared, of_training) if is_some else prepared
    sha256 = recommender_sha256(rec_config, data, None if start is None else start[0].sha256)
    name = f"{rec_config['model']}-{rec_config['dataset']}-{sha256[:16]}"
    path, logger = Path(rec_config["checkpoint_dir"]) / "recommenders" / name, getLogger()
    with sole_writer(path):  # runs started together wait for the one that trains
        if path.exists():
            try:
                told = unseal(path, sha256)
            except DamagedEntry as damage:
                logger.warning(f"The cached recommender {path} is damaged ({damage}): it is trained again")
            else:
                logger.info(f"Recommender taken from the cache: {path}")
                return path, told, 0.0
        logger.info(f"Training the recommender {rec_config['model']}, to be kept in {path}")
        started = perf_counter()
        # Loaders of its own: other batch sizes, and negatives where its loss asks for them.
        data = learned_data(config, rec_config, prepared, of_training)
        write_folder(path, lambda folder: _train_into(folder, rec_config, data, sha256, None if start is None else start[1]))
        return path, unseal(path, sha256), perf_counter() - started


def _train_into(folder: Path, rec_config: RunConfig, data: PreparedData, sha256: str, start: nn.Module | None) -> None:
    """Train a recommender into an empty folder, from its initialisation or from the weights of another."""
    started = perf_counter()
    model = _build_model(rec_config, data)
    if start is not None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start.parameters(), strict=True):
                parameter.copy_(value)
    with own_random_state(rec_config["seed"], rec_config["reproducibility"]):
        trained = train_stock(rec_config, model, data, folder / WEIGHTS)
    seconds = perf_counter() - started
    facts = {"model": rec_config["model"], "dataset": rec_config["dataset"], "sha256": sha256, **trained}
    facts["new_items"] = b64encode(np.packbits(never_learned(data)).tobytes()).decode()  # a million numbers would take 8 MB
    if data.dataset.part is not None:
        facts["unlearned_items"] = unlearned_items(data)
    seal(folder, {**facts, "candidate_sha256": data.candidate_sha256, "training_seconds": round(seconds, 1)})
    getLogger().info(f"Recommender trained in {seconds:.0f} s: test {dict(trained['metrics']['test'])}")


def _build_model(rec_config: RunConfig, data: PreparedData, is_frozen: bool = False) -> nn.Module:
    with own_random_state(rec_config["seed"], rec_config["reproducibility"]), undrawn(rec_config, is_frozen):
        try:
            model = make_recommender(rec_config["model"], rec_config, data.dataset)
        except UserError as error:
            raise UserError(f"{REC_PREFIX}{error}") from error
    model = model.to(rec_config["device"])
    item_embedding_table(model)  # before training it in vain
    return numbered(model, rec_config, data.dataset)


def never_learned(data: PreparedData) -> np.ndarray:
    """[N] bool, which items stand in none of the training rows that are taken; the padding item counts as one of them."""
    rows, is_new = data.dataset.rows_of(data.dataset.inter_feat), np.ones(data.dataset.item_num, dtype=bool)
    is_new[np.append(rows.history, rows.targets)] = False
    is_new[0] = True
    return is_new


def _unpacked(text: str, n_items: int) -> torch.Tensor:
    """[N] bool, what ``never_learned`` said when it was kept."""
    bits = np.frombuffer(b64decode(text), np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=n_items).astype(bool))


def unlearned_items(data: PreparedData) -> int:
    """How many items occur among a split's training interactions, but in none of the training rows that are taken."""
    return int((never_learned(data) & (data.dataset.training_counts > 0)).sum())


def recommender_sha256(rec_config: RunConfig, data: PreparedData, start: str | None = None) -> str:
    """Digest of everything a recommender's weights and metrics depend on, save the machine: its own keys, rows and candidates.

    ``start`` is the SHA-256 of the weights it continues from.
    """
    rows, item_field = hashlib.sha256(), rec_config["ITEM_ID_FIELD"]  # user, history and target of each row, in order
    for name in (rec_config["USER_ID_FIELD"], item_field, item_field + rec_config["LIST_SUFFIX"]):
        values = np.ascontiguousarray(data.dataset.inter_feat[name].numpy().astype("<i8"))
        rows.update(f"{name}{values.shape}".encode())
        rows.update(values)
    facts = {
        "format": FORMAT,
        "recbole": recbole.__version__,
        "model": rec_config["model"],
        "keys": {key: rec_config[key] for key in sorted(recommender_keys(rec_config["model"]) - IRRELEVANT_KEYS)},
        "seed": rec_config["seed"],
        "reproducibility": rec_config["reproducibility"],
        "max_history": rec_config["MAX_ITEM_LIST_LENGTH"],
        "items": Numbering.of(data.dataset).items_sha256,
        "training_rows": rows.hexdigest(),
        "candidates": data.candidate_sha256,
    }
    if start is not None:
        facts["start"] = start
    if not rec_config["keep_cases"]:
        facts["keep_cases"] = False  # its file tells no user
    if data.dataset.is_held_out is not None:
        facts["held_out"] = data.dataset.held_out_digest
    if code := own_code(rec_config["model"]):
        facts["code"] = file_sha256(code)
    return facts_sha256(json_ready(facts))


def item_embedding_table(model: nn.Module) -> torch.Tensor:
    """The table [N, d_rec] a recommender looks its items up in: float32 on the CPU, over the memory of its weights where they are so.

    Raises:
        UserError: the model has no ``item_embedding`` of N rows, or of N + 1 with a mask token, as BERT4Rec has.
    """
    table = getattr(model, "item_embedding", None)
    rows = model.n_items + has_mask_token(model)
    if not isinstance(table, nn.Embedding) or table.num_embeddings != rows:
        found = "none" if table is None else f"a {type(table).__name__}"
        raise UserError(
            f"rec_model: {type(model).__name__} has no item embedding table (item_embedding: {found}), expected one row "
            "for each item; choose a recommender such as SASRec, GRU4Rec or Caser"
        )
    return table.weight.detach()[: model.n_items].to("cpu", torch.float32)


def has_mask_token(model: nn.Module) -> bool:
    """Whether the row behind those of a model's items is the mask that it puts in an item's place."""
    return getattr(model, "mask_token", None) == model.n_items


class DamagedEntry(ValueError):
    """A folder of the cache that is not as ``seal`` left it; the message says in what."""


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write facts that JSON can hold beside a folder's weights, with digests of the weights and of the facts."""
    meta = json_ready({**facts, "weights_sha256": contents_sha256(folder / WEIGHTS)})
    sealed = {**meta, "meta_sha256": facts_sha256(meta)}
    (folder / META).write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def unseal(folder: Path, sha256: str | None = None) -> dict[str, Any]:
    """The facts of a folder whose files are as they were written, of the recommender ``sha256``; None = whichever it is.

    Raises:
        DamagedEntry: a file is missing or altered, or the folder is another recommender's.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        weights_sha256 = contents_sha256(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedEntry(f"{META} or {WEIGHTS} cannot be read: {error}") from error
    if not isinstance(meta, dict) or meta.pop("meta_sha256", None) != facts_sha256(meta):
        raise DamagedEntry(f"{META} is not as it was written")
    if meta["weights_sha256"] != weights_sha256:
        raise DamagedEntry(f"{WEIGHTS} is not as it was written")
    if sha256 is not None and meta["sha256"] != sha256:
        raise DamagedEntry(f"{META} is that of another recommender")
    return meta


def vectors_sha256(path: Path) -> str:
    """Digest of a table and of the ids beside it."""
    return hashlib.sha256((file_sha256(path) + file_sha256(ids_file(path))).encode()).hexdigest()


def vectors_of_items(path: Path, items: Sequence[str]) -> torch.Tensor:
    """The rows of the catalogue's items in a table of the user's own, which ``item_embeddings: vectors.npy`` names.

    Args:
        path: ``.npy``, or ``.safetensors`` with one tensor: [n, d] float32. ``<stem>.ids.txt`` beside it holds the n ids, one a
            line.
        items: ids of N items, the padding item's first.

    Returns:
        [N, d] float32, row 0 zero.

    Raises:
        UserError: a file cannot be read, is of another form, or lacks items.
    """
    subject, ids_path = f"item_embeddings: {path}", ids_file(path)
    try:
        tensors = {"": np.load(path, allow_pickle=False)} if path.suffix == ".npy" else load_file(path)
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise UserError(f"{subject} cannot be read ({error}), expected a {path.suffix} file of numbers") from error
    if len(tensors) != 1:
        raise UserError(f"{subject} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}), expected one")
    (table,), ids = tensors.values(), ids_path.read_text(encoding="utf-8-sig").splitlines()
    if table.ndim != 2 or table.dtype != np.float32:
        raise UserError(f"{subject} holds {list(table.shape)} {table.dtype}, expected a table [n, d] of float32")
    if len(ids) != len(table):
        raise UserError(f"{subject} has {len(table)} rows, but {ids_path} {len(ids)} ids, expected one a row")
    row_of = {item: row for row, item in enumerate(ids)}
    if len(row_of) < len(ids):
        repeated = next(item for row, item in enumerate(ids) if row_of[item] != row)
        raise UserError(f"item_embeddings: {ids_path} holds the id {repeated!r} twice, expected each once")
    if missing := [item for item in items[1:] if item not in row_of]:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"{subject} lacks {len(missing)} of the {len(items) - 1} items of the dataset: {shown}; expected a row for each, its id in "
            f"{ids_path.name}"
        )
    rows = table[[row_of[item] for item in items[1:]]]
    if not np.isfinite(rows).all():
        broken = items[1 + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])]
        raise UserError(f"{subject}: the vector of item {broken!r} holds NaN or infinity, expected finite numbers")
    return torch.from_numpy(np.concatenate([np.zeros_like(rows[:1]), rows]))


class NearestVectors(nn.Module):
    """Proposes items whose vectors point where the history's do: what retrieves where no recommender was trained.

    The score of an item is the cosine of its vector and the mean of the history's unit vectors.

    Args:
        table: [N, d], row 0 the padding item's.
        history_field: of the interaction, [B, L] item ids.
    """

    def __init__(self, table: torch.Tensor, history_field: str) -> None:
        super().__init__()
        self.centre = table[1:].mean(0)  # [d]
        units = normalize(table - self.centre)
        units[0] = 0
        self.register_buffer("units", units, persistent=False)
        self.history_field = history_field

    def set_items(self, items: torch.Tensor, rows: torch.Tensor) -> Callable[[], None]:
        """Other vectors [M, d] for some items, and further items; see ``growing.set_items``."""
        before = self.units
        self.units = with_rows(before, items, normalize(rows - self.centre.to(rows)))
        return lambda: setattr(self, "units", before)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The scores of all items, [B, N]."""
        history = interaction[self.history_field]  # [B, L]
        mean = self.units[history].sum(1) / (history > 0).sum(1, keepdim=True).clamp(min=1)  # [B, d]
        return mean @ self.units.T
