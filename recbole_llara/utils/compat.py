"""What RecBole 1.2.1 needs from us to run on Pythons after 3.11, numpy 2, pandas 3 and today's torch: all of it stands here.

RecBole is installed without its dependencies: it asks for ray <= 2.6.3, which has no wheel above Python 3.11, and pins colorlog
and colorama; what it does import is named in setup.py. ``recbole.quick_start`` alone imports ray: we import ``recbole.config``,
``data``, ``trainer`` and ``model``. ``torch.load`` of RecBole's pickled checkpoints, refused since torch 2.6, is replaced by
safetensors (``checkpoint.weights``).
"""

from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.utils import FeatureType

# RecBole's Config gives numpy back the names that numpy 1.24 dropped, out of others (the last three) that numpy 2 dropped.
_NAMES = {
    "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_, "str": np.str_,
    "long": np.int_, "unicode": np.str_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_,
}  # fmt: skip


def name_numpy_types() -> None:
    """Give numpy the names that RecBole's code reads, where numpy itself has none.

    ``RunConfig`` calls it in the place of RecBole's ``Config.compatibility_settings``, which fails on numpy 2; a program that makes
    a ``Config`` of RecBole's own there calls it first.
    """
    for name, kind in _NAMES.items():
        if name not in vars(np):
            setattr(np, name, kind)


class Column(pd.Series):
    """A column of a ``Table``.

    ``agg(len)`` gives the length of each sequence, ``agg(np.concatenate)`` all of them in a row. ``values`` may be written into:
    pandas 3 gives out read-only ones, of which torch warns when RecBole makes tensors of them.
    """

    @property
    def _constructor(self) -> type["Column"]:
        return Column

    @property
    def values(self) -> Any:
        values = super().values
        return values.copy() if isinstance(values, np.ndarray) and not values.flags.writeable else values

    def agg(self, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        """pandas' method, but for the two functions that RecBole aggregates sequences by: pandas 3 calls them with the column."""
        if func is len:
            return self.map(len)
        return np.concatenate(self.to_numpy()) if func is np.concatenate else super().agg(func, *args, **kwargs)


class Table(pd.DataFrame):
    """A table that RecBole works on, of columns as it expects them."""

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    @property
    def _constructor_sliced(self) -> type[Column]:
        return Column


def fill_holes(dataset: Any) -> None:
    """RecBole's ``Dataset._fill_nan``, which fills columns in place: pandas 3 leaves the table as it was.

    Ids become 0, numbers the mean of their column, sequences empty.
    """
    for name in dataset.feat_name_list:
        feat = getattr(dataset, name)
        for field in feat:
            kind = dataset.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]


def sequential_recommenders() -> ModuleType:
    """RecBole's sequential models, imported without their switching on anomaly detection.

    SINE's module turns it on for the whole process: autograd then looks for NaN in every gradient, and a training step takes more
    than twice as long.
    """
    enabled = torch.is_anomaly_enabled()
    from recbole.model import sequential_recommender

    torch.autograd.set_detect_anomaly(enabled)
    return sequential_recommender
