"""``item_embeddings: vectors.npy``: a table of the user's own in the place of a trained recommender's item embeddings."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from recbole.data.interaction import Interaction
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn
from torch.nn.functional import normalize

from recbole_llara.config.settings import ids_file
from recbole_llara.utils.digests import file_sha256
from recbole_llara.utils.errors import UserError


def vectors_sha256(path: Path) -> str:
    """Digest of a table and of the ids beside it."""
    return hashlib.sha256((file_sha256(path) + file_sha256(ids_file(path))).encode()).hexdigest()


def vectors_of_items(path: Path, items: Sequence[str]) -> torch.Tensor:
    """The rows of the catalogue's items.

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
    table, ids = _read_table(path), ids_path.read_text(encoding="utf-8-sig").splitlines()
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


def _read_table(path: Path) -> np.ndarray:
    try:
        tensors = {"": np.load(path, allow_pickle=False)} if path.suffix == ".npy" else load_file(path)
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise UserError(
            f"item_embeddings: {path} cannot be read ({error}), expected a {path.suffix} file of numbers"
        ) from error
    if len(tensors) != 1:
        raise UserError(f"item_embeddings: {path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}), expected one")
    return next(iter(tensors.values()))


class NearestVectors(nn.Module):
    """Proposes items whose vectors point where the history's do: what retrieves where no recommender was trained.

    The score of an item is the cosine of its vector and the mean of the history's unit vectors.

    Args:
        table: [N, d], row 0 the padding item's.
        history_field: of the interaction, [B, L] item ids.
    """

    def __init__(self, table: torch.Tensor, history_field: str) -> None:
        super().__init__()
        units = normalize(table - table[1:].mean(0))
        units[0] = 0
        self.register_buffer("units", units, persistent=False)
        self.history_field = history_field

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """The scores of all items, [B, N]."""
        history = interaction[self.history_field]  # [B, L]
        mean = self.units[history].sum(1) / (history > 0).sum(1, keepdim=True).clamp(min=1)  # [B, d]
        return mean @ self.units.T
