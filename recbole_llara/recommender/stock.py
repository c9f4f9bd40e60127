"""Stock recommenders: made and trained as RecBole does, their weights saved as plain values and loaded strictly.

The ``.safetensors`` file replaces RecBole's pickled ``.pth``, which current torch refuses to load and which would run whatever
code a stranger put into it. It is for evaluation, not for resuming: the optimiser is not kept.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from recbole.utils import get_trainer
from torch import nn

from recbole_llara.checkpoint.recbole_pickle import FILTERS
from recbole_llara.checkpoint.weights import (
    Checkpoint,
    Format,
    Weights,
    read_checkpoint,
    shapes,
    training_digest,
    write_stock_checkpoint,
)
from recbole_llara.config.keys import answering_keys
from recbole_llara.config.models import is_llm_recommender, replaces_item_table, resolve_model, stock_models
from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.snapshot import Column, Snapshot, SnapshotDataset
from recbole_llara.evaluator.evaluation import CandidateTrainer
from recbole_llara.recommender.quick_training import quick_training
from recbole_llara.recommender.undrawn import take_weights
from recbole_llara.utils.errors import Diverged, UserError, differences
from recbole_llara.utils.hashing import json_ready

OTHER_PREFIX = "other_parameter/"  # what RecBole's models keep outside their state_dict, such as Pop's counts


def make_recommender(name: str, config: Any, dataset: Any) -> nn.Module:
    """Make a model that is not ours as RecBole does, from its keys and the training split; see ``blank_held_out`` too.

    Raises:
        UserError: a partition of items that is larger than the catalogue, or partitions that do not add up.
    """
    model_class, stock, n_items = resolve_model(name), stock_models(), dataset.item_num
    if not issubclass(model_class, (stock["SASRecCPR"], stock["GRU4RecCPR"])):
        return blank_held_out(model_class(config, dataset), dataset)
    text = str(config["reranker_CAN_NUM"])  # Softmax-CPR ranks the best so many items anew
    sizes = [int(size) if size.strip().isdecimal() else 0 for size in text.split(",")]
    if min(sizes) < 1 or (max(sizes) > n_items and config["n_facet_reranker"] > 0):
        raise UserError(
            f"reranker_CAN_NUM: found {text!r}, expected whole numbers from 1 to {n_items}, the {n_items - 1} items of "
            f"{config['dataset']} and the padding item, separated by commas; lower it, or set n_facet_reranker to 0 and n_facet_all "
            "accordingly"
        )
    facets = config["n_facet"] + config["n_facet_context"] + config["n_facet_reranker"] * len(sizes) + config["n_facet_emb"]
    if facets != config["n_facet_all"]:
        raise UserError(
            f"n_facet_all: found {config['n_facet_all']}, expected {facets}: n_facet + n_facet_context + n_facet_reranker for each of "
            f"the {len(sizes)} sizes of reranker_CAN_NUM + n_facet_emb"
        )
    return blank_held_out(model_class(config, dataset), dataset)


def blank_held_out(model: nn.Module, dataset: Any) -> nn.Module:
    """Keep at zero, whatever is trained, the rows of a model's item table that belong to held-out items.

    A softmax over all items has every item that is no target for a negative, and would teach the model which items are held out. At
    zero they are as the padding item is: nothing is learned of them, and all of them score the same.
    """
    if dataset.is_held_out is None or not _has_item_table(model):
        return model
    held_out, weight = torch.from_numpy(np.flatnonzero(dataset.is_held_out)), model.item_embedding.weight
    with torch.no_grad():
        weight[held_out] = 0
    weight.register_hook(lambda gradient: gradient.index_fill(0, held_out.to(gradient.device), 0))
    return model


def _has_item_table(model: nn.Module) -> bool:
    """Whether a model looks items up in a table of its own, by the name that RecBole's sequential models give it."""
    return isinstance(getattr(model, "item_embedding", None), nn.Embedding)


@runtime_checkable
class TellsIdentity(Protocol):
    """A stock model whose answers depend on more than its weights and its keys."""

    def identity(self) -> dict[str, Any]:
        """What must be the same where its checkpoint is loaded, as JSON has it."""


@runtime_checkable
class KeepsColumns(Protocol):
    """A model that is made over more of the items than the data holds."""

    def item_columns(self) -> dict[str, Column]:
        """What its checkpoint keeps beside the columns of the data, by name."""


def numbered(model: nn.Module, config: Any, dataset: Any) -> nn.Module:
    """Add to a model what goes into its checkpoints and is compared with theirs.

    ``snapshot`` is that of the data it was made for and ``training_digest`` tells its training interactions, None over the dataset
    of a snapshot; ``belongs_to`` is what a stock model's answers depend on beside its weights.
    """
    name = config["model"]
    model.snapshot = Snapshot.of(dataset, config["selected_features"])
    if isinstance(model, KeepsColumns):
        model.snapshot = replace(model.snapshot, columns={**model.snapshot.columns, **model.item_columns()})
    # A table of users needs to know whose its rows are.
    has_users = not is_llm_recommender(name) and any(
        model.snapshot.n_users in weight.shape[:1] for weight in model.parameters()
    )
    if not config["keep_cases"] and not has_users:
        model.snapshot = replace(model.snapshot, numbering=model.snapshot.numbering.without_users())
    model.training_digest = None if isinstance(dataset, SnapshotDataset) else training_digest(dataset)
    model.trained_on = model.training_digest
    if not is_llm_recommender(name):
        keys = answering_keys(name, config["rec_model"] if replaces_item_table(name) else None)
        own = model.identity() if isinstance(model, TellsIdentity) else {}
        model.belongs_to = json_ready({**{key: config[key] for key in sorted(keys)}, **own})
    return model


def save_recommender(model: nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the weights and other parameters of a ``numbered`` model to a ``.safetensors`` file, whole or not at all.

    Args:
        model: the recommender.
        path: the file.
        facts: what JSON can hold; ``model``, ``dataset`` and ``epoch`` are read again.

    Raises:
        TypeError: the model keeps something that is neither a tensor, an array nor plain JSON beside its weights.
    """
    tensors = dict(model.state_dict())
    plain: dict[str, Any] = {}
    for name, value in model.other_parameter().items():
        if isinstance(value, torch.Tensor | np.ndarray):
            tensors[OTHER_PREFIX + name] = torch.as_tensor(value)
        elif value is None or isinstance(value, str | int | float | bool):
            plain[name] = value
        elif not isinstance(value, nn.Module):  # a module's weights stand in the state dict
            raise TypeError(f"{type(model).__name__} keeps {name} of type {type(value).__name__}: no safe format holds it")
    weights = Weights(tensors, model.snapshot, model.belongs_to, model.trained_on, {"other_parameter": plain})
    write_stock_checkpoint(path, weights, facts)


def load_recommender(
    model: nn.Module, path: str | Path, model_name: str, keys: Mapping[str, Any] | None = None, is_frozen: bool = False
) -> Checkpoint:
    """Load a ``.safetensors`` of ours or a ``.pth`` of RecBole's: every weight, and nothing else.

    ``trained_on`` of the model then tells on which interactions it was trained, where the checkpoint does.

    Args:
        model: ``numbered``, built with the same keys and data.
        path: the file.
        model_name: the name that the file must tell.
        keys: of this run; a ``.pth`` tells no ids, so that its filters are compared with those among the keys.
        is_frozen: whether the model is only asked: its weights then stay in the file's memory, see ``take_weights``.

    Raises:
        UserError: no such file, no checkpoint, another model's, of other keys or filters, weights of other names or shapes, or of
            items that are numbered otherwise.
    """
    checkpoint = read_checkpoint(path)
    is_recbole, ids = checkpoint.format is Format.RECBOLE, checkpoint.numbering
    key = "rec_checkpoint" if is_recbole else "checkpoint"
    checkpoint.check_model(model_name, key)
    if is_recbole:
        _check_recbole(model, checkpoint, keys or {})
    else:
        model.snapshot.numbering.check_same(ids, checkpoint.path)
        # What cannot be known without the data, as the digest of a text encoder that is not read, is what the weights tell.
        told = {} if model.training_digest is not None else checkpoint.facts["belongs_to"]
        checkpoint.check_belongs_to({**told, **model.belongs_to}, model_name)
    tensors = checkpoint.read_tensors()
    weights = {name: value for name, value in tensors.items() if not name.startswith(OTHER_PREFIX)}
    if differing := differences(shapes(weights), shapes(model.state_dict())):
        here = f"this run's data with them has {len(model.snapshot.numbering.users)}" if ids else ""
        users = f" It knows {len(ids.users)} users, {here}." if ids else ""
        raise UserError(
            f"{key}: {checkpoint.path} does not fit this {model_name}: {len(differing)} weights differ in shape or name ({'; '.join(differing[:3])}). Give "
            "the data and the keys that it was trained with: MAX_ITEM_LIST_LENGTH, widths, layers and the like, of a recommender under "
            f"an LLM with the prefix rec_.{users}"
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    beside = {} if is_recbole else dict(checkpoint.facts["other_parameter"])
    beside |= {name.removeprefix(OTHER_PREFIX): tensors[name].to(device) for name in tensors.keys() - weights.keys()}
    if unknown := sorted(beside.keys() - model.other_parameter().keys()):  # RecBole would set any attribute
        raise UserError(
            f"{key}: {checkpoint.path} does not fit this {model_name}, which keeps no {', '.join(unknown)} beside its weights."
        )
    if is_frozen:
        take_weights(model, weights)
    else:
        model.load_state_dict(weights)
    model.load_other_parameter(beside)
    model.trained_on = checkpoint.training_digest
    if is_recbole:
        getLogger().warning(
            f"rec_checkpoint: {path} was trained on {checkpoint.facts.get('dataset')} and tells no item ids. Its {model.n_items - 1} items "
            "are as many as this run's; whether they are numbered alike cannot be checked. If the rows of the .inter file stood in another "
            "order, every embedding is another item's: use it only with the very files that it was trained on."
        )
    return checkpoint


def _check_recbole(model: nn.Module, checkpoint: Checkpoint, keys: Mapping[str, Any]) -> None:
    """A ``.pth`` tells no ids: filters and the number of items are compared."""
    path, facts = checkpoint.path, checkpoint.facts
    for key in FILTERS:
        if key in keys and _filter(facts.get(key)) != _filter(keys[key]):
            raise UserError(
                f"rec_checkpoint: {path} was trained with {key} {facts.get(key)!r}, this run has {keys[key]!r}: RecBole numbers "
                f"what its filters leave, so the same number would be another item; set {key} as it was, or train again"
            )
    table = checkpoint.read_tensors().get("item_embedding.weight")
    if table is not None and len(table) != model.n_items:
        raise UserError(
            f"rec_checkpoint: {path} knows {len(table)} items of {facts.get('dataset')}, this run has {model.n_items}: train "
            "it with the same dataset and filters"
        )


def _filter(value: Any) -> Any:
    """A filter's value, however it is written; None where it keeps everything."""
    if isinstance(value, str):
        value = value.replace(" ", "")
        return None if value == "[0,inf)" else value
    if isinstance(value, dict):
        return {str(key): _filter(entry) for key, entry in value.items()} or None
    return [str(entry) for entry in value] or None if isinstance(value, list | tuple) else value


@runtime_checkable
class GroupsParameters(Protocol):
    """A model whose parts learn at different rates."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups as torch's optimisers take them; a group without ``lr`` learns at ``learning_rate``."""


def stock_trainer(config: Any, model: torch.nn.Module) -> CandidateTrainer:
    """RecBole's own trainer of a model, evaluating over candidates; its ``saved_model_file`` is a ``.safetensors`` file."""

    class StockTrainer(CandidateTrainer, get_trainer(config["MODEL_TYPE"], config["model"])):
        def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> tuple[float, Mapping[str, float] | None]:
            """Train as RecBole does; on Ctrl-C say where the best checkpoint is, then let the interrupt pass."""
            has_blanks = train_data.dataset.is_held_out is not None and _has_item_table(self.model)
            if has_blanks and self.config["eval_step"] and self.config["epochs"]:
                raise UserError(
                    f"eval_step (of an LLM's recommender rec_eval_step): found {self.config['eval_step']} with protocol cold_items, under "
                    f"whose validation rows a {self.config['model']} has equal scores for all candidates, so that no epoch is better than "
                    "the first; expected 0, and epochs (rec_epochs) such as 12"
                )
            try:
                return super().fit(train_data, *args, **kwargs)
            except KeyboardInterrupt:
                kept = "no checkpoint yet" if self.best_epoch is None else f"best checkpoint kept: {self.saved_model_file}"
                self.logger.info(f"Training interrupted; {kept}")
                raise

        def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
            with nullcontext() if self.enable_amp else quick_training(self.model):
                return super()._train_epoch(*args, **kwargs)

        def write_weights(self, path: Path, facts: Mapping[str, Any]) -> None:
            save_recommender(self.model, path, facts)

        def read_weights(self, path: str | Path) -> Checkpoint:
            return load_recommender(self.model, path, self.config["model"])

        def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
            if isinstance(self.model, GroupsParameters):
                kwargs.setdefault("params", self.model.parameter_groups())
            return super()._build_optimizer(**kwargs)

        def _check_nan(self, loss: torch.Tensor) -> None:
            if torch.isnan(loss):
                raise Diverged(f"training: the loss is {loss.item()}, expected a number; try a smaller learning_rate")

    trainer = StockTrainer(config.redacted(), model)  # it tells TensorBoard and Weights & Biases all keys; no secrets
    trainer.saved_model_file = str(Path(trainer.saved_model_file).with_suffix(".safetensors"))
    return trainer


def train_stock(config: Any, model: torch.nn.Module, data: PreparedData, weights: Path) -> dict[str, Any]:
    """Train a stock recommender by its own configuration, write its best epoch's weights, and measure those on the test rows.

    Returns:
        ``best_epoch``, counted from 0, and ``metrics``: RecBole's, of ``valid`` and ``test``.
    """
    trainer = stock_trainer(config, model)
    trainer.saved_model_file, show_progress = str(weights), bool(config["show_progress"])
    _, valid = trainer.fit(data.train_data, data.valid_data, show_progress=show_progress)
    test = trainer.evaluate(data.test_data, show_progress=show_progress)
    return {"best_epoch": trainer.best_epoch, "metrics": {"valid": valid or {}, "test": test}}
