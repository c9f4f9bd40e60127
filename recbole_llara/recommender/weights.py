"""Weights of a stock recommender, as plain values for its checkpoint; and back into the model, strictly.

The ``.safetensors`` file replaces RecBole's pickled ``.pth``, which current torch refuses to load and which would run whatever
code a stranger put into it. It is for evaluation, not for resuming: the optimiser is not kept.
"""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_llara.checkpoint.recbole_pickle import FILTERS
from recbole_llara.checkpoint.weights import Checkpoint, Format, Weights, read_checkpoint, write_stock_checkpoint
from recbole_llara.utils.errors import UserError

OTHER_PREFIX = "other_parameter/"  # what RecBole's models keep outside their state_dict, such as Pop's counts


def save_recommender(model: torch.nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a RecBole model's weights and other parameters to ``path``, whole or not at all.

    Args:
        model: a RecBole recommender, as ``stock.numbered`` gives it.
        path: a ``.safetensors`` file.
        facts: what JSON can hold about it; ``model``, its name, is needed to load it again.

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
        elif not isinstance(value, torch.nn.Module):  # a module's weights stand in the state dict
            raise TypeError(f"{type(model).__name__} keeps {name} of type {type(value).__name__}: no safe format holds it")
    weights = Weights(tensors, model.numbering, model.belongs_to, model.trained_on, {"other_parameter": plain})
    write_stock_checkpoint(path, weights, facts)


def load_recommender(
    model: torch.nn.Module, path: str | Path, model_name: str, keys: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Load a ``.safetensors`` of ours or a ``.pth`` of RecBole's: every weight, and nothing else.

    ``trained_on`` of the model then tells on which interactions it was trained, where the checkpoint does.

    Args:
        model: a RecBole recommender, built with the same keys and data, as ``stock.numbered`` gives it.
        path: the file.
        model_name: the name that the file must tell.
        keys: of this run; a ``.pth`` tells no ids, so that its filters are compared with those among the keys.

    Returns:
        the checkpoint.

    Raises:
        UserError: no such file, no checkpoint, another model's, of other keys or filters, weights of other names or shapes, or of
            items that are numbered otherwise.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.format is Format.RECBOLE:
        _load_recbole(model, checkpoint, model_name, keys or {})
    else:
        _load_own(model, checkpoint, model_name)
    model.trained_on = checkpoint.training_digest
    return checkpoint


def _load_own(model: torch.nn.Module, checkpoint: Checkpoint, model_name: str) -> None:
    path = checkpoint.path
    checkpoint.check_model(model_name)
    model.numbering.check_same(checkpoint.numbering, path)
    checkpoint.check_belongs_to(model.belongs_to, model_name)
    tensors = checkpoint.read_tensors()
    other = {name: value for name, value in tensors.items() if name.startswith(OTHER_PREFIX)}
    try:
        model.load_state_dict({name: value for name, value in tensors.items() if name not in other}, strict=True)
    except RuntimeError as error:
        told = [line.strip() for line in str(error).splitlines()]
        others = f" and {len(told) - 2} more" if len(told) > 2 else ""
        raise UserError(
            f"{path} does not fit this {model_name}: {' '.join(told[:2])}{others} Was it trained on other data or with other keys (a width, a "
            f"number of layers, MAX_ITEM_LIST_LENGTH)? It knows {len(checkpoint.numbering.users)} users, this run's data with them has "
            f"{len(model.numbering.users)}."
        ) from error
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    beside = {**checkpoint.facts["other_parameter"]}
    beside |= {name.removeprefix(OTHER_PREFIX): value.to(device) for name, value in other.items()}
    if unknown := sorted(beside.keys() - model.other_parameter().keys()):  # RecBole would set any attribute
        raise UserError(f"{path} does not fit this {model_name}, which keeps no {', '.join(unknown)} beside its weights.")
    model.load_other_parameter(beside)


def _load_recbole(model: torch.nn.Module, checkpoint: Checkpoint, model_name: str, keys: Mapping[str, Any]) -> None:
    """A ``.pth`` tells no ids: number and filters are compared; the order of the files' rows is left to the user, with a warning."""
    path, facts, weights = checkpoint.path, checkpoint.facts, checkpoint.read_tensors()
    checkpoint.check_model(model_name, "rec_checkpoint")
    for key in FILTERS:
        if key in keys and _filter(facts.get(key)) != _filter(keys[key]):
            raise UserError(
                f"rec_checkpoint: {path} was trained with {key} {facts.get(key)!r}, this run has {keys[key]!r}: RecBole numbers "
                f"what its filters leave, so the same number would be another item; set {key} as it was, or train again"
            )
    table = weights.get("item_embedding.weight")
    if table is not None and len(table) != model.n_items:
        raise UserError(
            f"rec_checkpoint: {path} knows {len(table)} items of {facts.get('dataset')}, this run has {model.n_items}: train "
            "it with the same dataset and filters"
        )
    there, here = ({name: list(value.shape) for name, value in state.items()} for state in (weights, model.state_dict()))
    if differing := [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]:
        first = "; ".join(f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here" for name in differing[:3])
        raise UserError(
            f"rec_checkpoint: {path} does not fit this {model_name}: {len(differing)} weights differ in shape or name ({first}). "
            "Give the keys that it was trained with: MAX_ITEM_LIST_LENGTH, and with the prefix rec_ widths, layers and the like."
        )
    model.load_state_dict(weights)
    getLogger().warning(
        f"rec_checkpoint: {path} was trained on {facts.get('dataset')} and tells no item ids. Its {model.n_items - 1} items are "
        "as many as this run's; whether they are numbered alike cannot be checked. If the rows of the .inter file stood in another "
        "order, every embedding is another item's: use it only with the very files that it was trained on."
    )


def _filter(value: Any) -> Any:
    """A filter's value, however it is written; None where it keeps everything."""
    if isinstance(value, str):
        value = value.replace(" ", "")
        return None if value == "[0,inf)" else value
    if isinstance(value, dict):
        return {str(key): _filter(entry) for key, entry in value.items()} or None
    return [str(entry) for entry in value] or None if isinstance(value, list | tuple) else value
