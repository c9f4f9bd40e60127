"""Checkpoints of stock recommenders: one safetensors file, what it belongs to told in JSON in its header.

The file keeps the ids of the items by their numbers (``data.numbering``); weights go only into a model whose data is numbered so.

Replaces RecBole's pickled ``.pth``, which current torch refuses to load and which would run whatever code a stranger
put into it. The best checkpoint alone is kept, without the optimiser: it is for evaluation, not for resuming.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_llara.data.numbering import PREFIX, Numbering
from recbole_llara.utils.atomic import write_file
from recbole_llara.utils.digests import json_ready
from recbole_llara.utils.errors import UserError

HEADER_KEY = "recbole_llara"
FACTS = frozenset(
    {"model", "dataset", "epoch", "numbering_sha256", "training_digest", "belongs_to", "other_parameter"}
)  # what a header tells at least
_DICTS = ("belongs_to", "other_parameter")
OTHER_PREFIX = "other_parameter/"  # what RecBole's models keep outside their state_dict, such as Pop's counts


class StockCheckpointMixin:
    """Put before a RecBole Trainer: ``saved_model_file`` is then a ``.safetensors`` file.

    ``best_epoch`` is the epoch, counted from 0, of the checkpoint on disk; None before there is one.
    """

    best_epoch: int | None = None

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        super().__init__(config, model)
        self.saved_model_file = str(Path(self.saved_model_file).with_suffix(".safetensors"))

    def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> tuple[float, Mapping[str, float] | None]:
        """Train as RecBole does; on Ctrl-C say where the best checkpoint is, then let the interrupt pass."""
        try:
            return super().fit(train_data, *args, **kwargs)
        except KeyboardInterrupt:
            kept = "no checkpoint yet" if self.best_epoch is None else f"best checkpoint kept: {self.saved_model_file}"
            self.logger.info(f"Training interrupted; {kept}")
            raise

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        facts = {
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "epoch": epoch,
            "valid_metric": self.valid_metric,
            "best_valid_score": json_ready(float(self.best_valid_score)),
        }
        save_stock_model(self.model, path, facts)
        self.best_epoch = epoch if epoch >= 0 else None
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def load_checkpoint(self, path: str | Path) -> None:
        """Load the weights of a checkpoint of this trainer's model.

        Raises:
            UserError: no such file, not one of our checkpoints, another model's, or one that numbers its items otherwise.
        """
        facts = load_stock_model(self.model, path, self.config["model"])
        self.logger.info(f"Loading model structure and parameters from {path} (epoch {facts['epoch']})")

    def resume_checkpoint(self, resume_file: str) -> None:
        """Refuse: the optimiser's state is not kept."""
        raise UserError(f"Stock training cannot be resumed from {resume_file}: start it again, it takes minutes.")


def save_stock_model(model: torch.nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a RecBole model's weights and other parameters to ``path``, whole or not at all.

    Args:
        model: a RecBole recommender, as ``model.numbered`` gives it.
        path: a ``.safetensors`` file.
        facts: what JSON can hold about it; ``model``, its name, is needed to load it again.

    Raises:
        TypeError: the model keeps something that is neither a tensor, an array nor plain JSON beside its weights.
    """
    tensors = {name: _own(tensor) for name, tensor in model.state_dict().items()}
    plain: dict[str, Any] = {}
    for name, value in model.other_parameter().items():
        if isinstance(value, torch.Tensor | np.ndarray):
            tensors[OTHER_PREFIX + name] = _own(torch.as_tensor(value))
        elif value is None or isinstance(value, str | int | float | bool):
            plain[name] = value
        elif not isinstance(value, torch.nn.Module):  # a module's weights stand in the state dict
            raise TypeError(f"{type(model).__name__} keeps {name} of type {type(value).__name__}: no safe format holds it")
    tensors |= model.numbering.tensors()
    digests = {"numbering_sha256": model.numbering.sha256, "training_digest": model.trained_on}
    told = {**facts, **digests, "belongs_to": model.belongs_to, "other_parameter": plain}
    header = {HEADER_KEY: json.dumps(told)}
    write_file(path, lambda place: save_file(tensors, place, metadata=header))


def load_stock_model(model: torch.nn.Module, path: str | Path, model_name: str) -> dict[str, Any]:
    """Load what ``save_stock_model`` wrote, strictly: every weight, and nothing else; ``trained_on`` tells on which interactions.

    Args:
        model: a RecBole recommender, built with the same keys for data that is numbered as the file tells, as
            ``model.numbered`` gives it.
        path: the file.
        model_name: the name the file must carry.

    Returns:
        The facts saved with it.

    Raises:
        UserError: no such file, not one of our checkpoints, another model's, one that was trained with keys that would make
            other answers of it, weights of other names or shapes, or of items that are numbered otherwise.
    """
    facts, tensors = read_stock_model(path)
    if facts["model"] != model_name:
        raise UserError(f"{path} holds a {facts['model']}, expected a {model_name}: change the model or the checkpoint.")
    ids = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    numbering = Numbering.from_tensors(ids, str(path))
    model.numbering.check_same(numbering, path)
    here, there = model.belongs_to, facts.pop("belongs_to")
    if differing := [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]:
        lines = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differing)
        raise UserError(
            f"{path} does not fit this {model_name}: {lines}. Give it the keys that it was trained with (of a recommender under an "
            "LLM with the prefix rec_), or train again."
        )
    other = {name: value for name, value in tensors.items() if name.startswith(OTHER_PREFIX)}
    try:
        model.load_state_dict({name: value for name, value in tensors.items() if name not in other}, strict=True)
    except RuntimeError as error:
        told = [line.strip() for line in str(error).splitlines()]
        others = f" and {len(told) - 2} more" if len(told) > 2 else ""
        raise UserError(
            f"{path} does not fit this {model_name}: {' '.join(told[:2])}{others} Was it trained on other data or with other keys (a width, a "
            f"number of layers, MAX_ITEM_LIST_LENGTH)? It knows {len(numbering.users)} users, this run's data with them has "
            f"{len(model.numbering.users)}."
        ) from error
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    tensors_beside = {name.removeprefix(OTHER_PREFIX): value.to(device) for name, value in other.items()}
    beside = {**facts.pop("other_parameter"), **tensors_beside}
    if unknown := sorted(beside.keys() - model.other_parameter().keys()):  # RecBole would set any attribute
        raise UserError(f"{path} does not fit this {model_name}, which keeps no {', '.join(unknown)} beside its weights.")
    model.load_other_parameter(beside)
    model.trained_on = facts["training_digest"]
    return facts


def read_stock_model(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The facts and the tensors, on the CPU, of a checkpoint.

    Raises:
        UserError: no such file, not one that ``save_stock_model`` wrote, or one whose ids were altered since.
    """
    if not Path(path).is_file():
        raise UserError(
            f"No checkpoint at {path} (checkpoint, rec_checkpoint), expected a .safetensors file written by a training run."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}): expected one written by a training run.") from error
    if header is None:
        raise UserError(f"{path} was not written by recbole-llara: its header names no model.")
    try:
        facts = json.loads(header)
    except ValueError as error:
        raise UserError(f"{path}: its header is damaged ({error}); train it again.") from error
    if not isinstance(facts, dict) or not facts.keys() >= FACTS or not all(isinstance(facts[name], dict) for name in _DICTS):
        raise UserError(f"{path}: its header tells not all of {', '.join(sorted(FACTS))}; train it again.")
    ids = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    if Numbering.from_tensors(ids, str(path)).sha256 != facts["numbering_sha256"]:
        raise UserError(f"{path}: its ids of items and users were altered since it was written; train it again.")
    return facts, tensors


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    return tensor.detach().to("cpu", copy=True).contiguous()
