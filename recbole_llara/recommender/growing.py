"""A recommender that meets items that it never learned: rows for them in its table, so that it reads them in histories and scores them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recbole_llara.llm.item_tokens import with_rows
from recbole_llara.llm.loading import first_line
from recbole_llara.recommender.frozen import NearestVectors
from recbole_llara.recommender.retriever import MostPopular, asked_of, padded
from recbole_llara.utils.errors import UserError


def set_items(model: nn.Module, config: Any, items: torch.Tensor, rows: torch.Tensor) -> Callable[[], None]:
    """Give a recommender further items, numbered on from its last, and other rows for some that it has; returns what undoes it.

    Args:
        model: of RecBole's kind, ``NearestVectors`` or ``MostPopular``.
        config: its own.
        items: [M] int64, ascending.
        rows: [M, d] for its item table; of ``MostPopular`` [M, 0].

    Raises:
        UserError: its scores do not come from its item table alone; it stays as it was.
    """
    if isinstance(model, MostPopular | NearestVectors):
        return model.set_items(items, rows)
    table, count = model.item_embedding, model.n_items

    def undo() -> None:
        model.item_embedding, model.n_items = table, count

    weight = with_rows(table.weight.detach(), items, rows)
    model.n_items = len(weight)
    model.item_embedding = nn.Embedding(*weight.shape, padding_idx=table.padding_idx, _weight=weight).requires_grad_(False)
    try:
        _try(model, config)
    except (RuntimeError, IndexError, ValueError) as error:
        undo()
        raise UserError(
            f"items: {type(model).__name__} cannot score items that it has not learned from ({first_line(error)}), expected a recommender "
            "whose only table of items is item_embedding, such as SASRec, GRU4Rec or Caser"
        ) from error
    return undo


@torch.no_grad()
def replace_rows(model: nn.Module, config: Any, items: torch.Tensor, rows: torch.Tensor) -> bool:
    """Give a recommender other rows for items that it has; whether it scores them by these rows, or else stays as it was.

    Args:
        model: of RecBole's kind.
        config: its own.
        items: [M] int64, of which it learned nothing.
        rows: [M, d] for its item table.
    """
    table, known = model.item_embedding, _known(model, items)
    weight, rows = table.weight.detach(), rows.to(table.weight)
    # Where the output layer is another table, no score changes with these rows.
    found = []
    for tried in (rows + 1, rows):
        new = with_rows(weight, items, tried)
        model.item_embedding = nn.Embedding(*new.shape, padding_idx=table.padding_idx, _weight=new).requires_grad_(False)
        found.append(_scores_after(model, config, known)[items])
    if not (is_scored := bool((found[0] != found[1]).all())):
        model.item_embedding = table
    return is_scored


def _known(model: nn.Module, items: torch.Tensor) -> int:
    """The first item that is none of ``items``."""
    return next(item for item in range(1, model.n_items) if not bool((items == item).any()))


def _scores_after(model: nn.Module, config: Any, item: int) -> torch.Tensor:
    """[N] scores after a history of one item."""
    asked = asked_of(config, padded([[item]], config["MAX_ITEM_LIST_LENGTH"]), torch.zeros(1, dtype=torch.int64))
    return model.full_sort_predict(asked.to(config["device"])).flatten()[: model.n_items]


@torch.no_grad()
def _try(model: nn.Module, config: Any) -> None:
    """Ask about a history with the last item in it; ValueError where not every item gets a score."""
    history = padded([[1, model.n_items - 1]], config["MAX_ITEM_LIST_LENGTH"])
    asked = asked_of(config, history, torch.zeros(1, dtype=torch.int64)).to(config["device"])
    found = model.full_sort_predict(asked).numel()
    if found != model.n_items:
        raise ValueError(f"it scores {found} of {model.n_items} items")
