"""Recommenders whose score of an item is a product of two vectors: the history's and the item's.

RecBole's ``full_sort_predict`` multiplies a batch's B vectors with the table of all N items, so that B x N scores are in memory before
the best are looked for. Here the two factors are taken out of that call just before they are multiplied. Whether a model is such a one is
tried, not looked up: its scores must be those products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset({"matmul", "__matmul__", "mm"})
BLOCK = 1 << 16  # items whose scores are held at a time


class _FoundFactors(Exception):
    """A model is about to multiply histories [B, d] with all items [N, d]."""

    def __init__(self, histories: torch.Tensor, items: torch.Tensor) -> None:
        self.histories, self.items = histories, items


class _Watching(TorchFunctionMode):
    """Within, in this thread, the product with a table of N rows or more ends the call by ``_FoundFactors``."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``func``, unless it is that product."""
        is_of_tables = getattr(func, "__name__", "") in _PRODUCTS and len(args) == 2 and args[0].dim() == args[1].dim() == 2
        if is_of_tables and args[1].shape[1] >= self.n_items:
            raise _FoundFactors(args[0], args[1].T)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def factors(model: nn.Module, asked: Interaction, n_items: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The vectors of histories [B, d] and of the items [N or more, d] of which a model's scores are products; None where it takes none."""
    try:
        with _Watching(n_items):
            model.full_sort_predict(asked)
    except _FoundFactors as found:
        return found.histories, found.items
    return None


@torch.no_grad()
def is_product(model: nn.Module, asked: Interaction, n_items: int) -> bool:
    """Whether the scores that a model gives are the products of its ``factors``, tried with rows such as it is asked."""
    if (found := factors(model, asked, n_items)) is None:
        return False
    expected = model.full_sort_predict(asked).view(len(asked), -1)
    products = found[0] @ found[1].T
    return products.shape == expected.shape and torch.allclose(products, expected, rtol=1e-5, atol=1e-6)


def best_products(
    histories: torch.Tensor, items: torch.Tensor, count: int, left_out: Callable[[int, torch.Tensor], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` greatest products [B, count] of each history with items, greatest first, and the items' numbers; exact.

    Example, blocks of 2: of the products 5 1 | 4 9 | 7 2 the best two are 5 1, then 9 5, then 9 7.

    Args:
        histories: [B, d].
        items: [N, d].
        count: at most N.
        left_out: is given the first item of a block and its products [B, block], and sets to minus infinity what does not count.
    """
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    for first in range(0, len(items), BLOCK):
        products = (histories @ items[first : first + BLOCK].T).float()
        left_out(first, products)
        values, numbers = products.topk(min(count, products.shape[1]), dim=1)
        numbers = numbers + first
        if best is not None:
            values, numbers = torch.cat([best[0], values], 1), torch.cat([best[1], numbers], 1)
            values, places = values.topk(min(count, values.shape[1]), dim=1)
            numbers = numbers.gather(1, places)
        best = values, numbers
    return best


def products_of(histories: torch.Tensor, items: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """[B, C] the products of each history [B, d] with its own candidates [B, C] of the items [N, d]."""
    some, places = candidates.unique(return_inverse=True)
    return (histories @ items[some].T).gather(1, places).float()
