"""Making a model whose weights a file is about to bring: no number is drawn for them, and the file's memory takes their place."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from recbole_llara.config.models import MODELS, replaces_item_table, stock_models

_DRAWS = frozenset({"normal_", "uniform_", "exponential_", "bernoulli_", "random_", "log_normal_", "cauchy_", "geometric_"})


class Undrawn(TorchFunctionMode):
    """Within, a tensor that is to be filled with random numbers stays as it was allocated, in this thread alone.

    Memory that nobody has written to is in no page of the machine: a table of a million items costs nothing until its weights are
    taken by ``take_weights``. Only for models all of whose drawn numbers are weights.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``func``, unless it draws into a tensor, which is its first argument or called ``tensor``."""
        named = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def undrawn(config: Any, is_asked_only: bool) -> AbstractContextManager[Any]:
    """``Undrawn`` for the model of a configuration that is only going to be asked, where RecBole or this package wrote it.

    A class of the user's may draw more than weights, so that it is made as ever.
    """
    name = config["model"]
    written = {name, config["rec_model"]} if replaces_item_table(name) else {name}
    return Undrawn() if is_asked_only and written <= {*stock_models(), *MODELS} else nullcontext()


def take_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a model weights, every one and no other, without copying those that are on its device in its type already.

    The model then reads the memory of ``weights``; where these were mapped from a file, pages are read when they are asked for.
    """
    own = model.state_dict()
    placed = {name: tensor.to(own[name].device, own[name].dtype) for name, tensor in weights.items()}
    model.load_state_dict(placed, assign=True)
