"""RecBole's own ``.pth`` checkpoints, read without running what they hold.

Such a file is a zip of a pickle and the bytes of the tensors. RecBole pickles its whole Config, its optimiser and at times
its dataset along with the weights, by protocol 4, which ``torch.load(weights_only=True)`` does not read, whatever it is
allowed. Here the pickle may name what RecBole checkpoints name and nothing else, and none of it is imported: classes and
functions become ``_Inert`` stand-ins that do nothing, tensors become records of where their bytes lie.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_llara.utils.errors import UserError

# What a pickle that is not RecBole's, or was cut or altered, can make the reader raise.
_MALFORMED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError,
    OverflowError, MemoryError, RecursionError, RuntimeError,
)  # fmt: skip
_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
# What decides by which numbers RecBole knows items, beside the files.
FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "benchmark_filename")
# Packages whose names become stand-ins: the Config's classes and values, and the layers and datasets kept beside weights.
_INERT_PACKAGES = ("recbole.", "recbole_llara.", "torch.nn.modules.", "numpy.", "pandas.", "yaml.loader.")
_INERT_NAMES = {
    "torch.device", "torch.Size", "torch._utils._rebuild_parameter", "collections.Counter", "collections.defaultdict",
    "logging.getLogger", "builtins.set", "builtins.slice", *map(str, _DTYPES.values()),
}  # fmt: skip


class _Inert:
    """Stands for any class, function or object; keeps the state it is given, and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drop an element of a list, or of what passes for one."""


@dataclass(frozen=True)
class _Stored:
    """A tensor that was not read yet: part of the storage ``key`` of the zip."""

    dtype: torch.dtype
    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Rebuild:
    """Stands for ``torch._utils._rebuild_tensor_v2``; an object, so that a pickle can change nothing about it."""

    __slots__ = ()

    def __call__(self, storage: tuple[torch.dtype, str], offset: int, size: tuple, stride: tuple, *others: Any) -> _Stored:
        dtype, key = storage
        numbers = (offset, *size, *stride)
        if not isinstance(dtype, torch.dtype) or not all(type(number) is int and number >= 0 for number in numbers):
            raise pickle.UnpicklingError("a tensor of no known type or shape")
        return _Stored(dtype, str(key), offset, tuple(size), tuple(stride))

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("an attempt to alter a function")


class _Unpickler(pickle.Unpickler):
    """Makes plain values, OrderedDicts, stand-ins and records of tensors; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; refuses one for which no RecBole checkpoint has use."""
        path = f"{module}.{name}"
        if path == "collections.OrderedDict":
            return OrderedDict
        if path == "torch._utils._rebuild_tensor_v2":
            return _Rebuild()
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if path in _INERT_NAMES or path.startswith(_INERT_PACKAGES):
            return type(_Inert.__name__, (_Inert,), {})  # one of its own, which a pickle may alter as it likes
        raise pickle.UnpicklingError(f"it names {path!r}, which has no place in a RecBole checkpoint")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        """Type and key of a storage."""
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, expected tensors alone")
        return dtype, key


def read_recbole_pickle(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a ``.pth`` that RecBole's trainer wrote.

    Returns:
        the weights by name; and ``model``, ``dataset``, ``epoch`` (counted from 0) and the keys of ``FILTERS``.

    Raises:
        UserError: no such file, no checkpoint of RecBole's, or one that would run code.
    """
    if not path.is_file():
        raise UserError(
            f"rec_checkpoint: no checkpoint at {path}: expected a model.safetensors of ours, its folder, or a .pth of "
            "RecBole's, a pickle that is read without running it"
        )
    try:
        return _read(path)
    except _MALFORMED as error:
        raise UserError(
            f"rec_checkpoint: {path} is a pickle that no RecBole trainer wrote, or a damaged one ({error}); nothing in it was "
            "run. Expected a .pth of RecBole's; or train the recommender again, or leave rec_checkpoint empty."
        ) from error


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise zipfile.BadZipFile("its entries are compressed, which torch's never are")
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise zipfile.BadZipFile("its numbers are big-endian")
        checkpoint = _Unpickler(io.BytesIO(archive.read(pickled))).load()
        weights = {str(name): _tensor(archive, root, value) for name, value in checkpoint["state_dict"].items()}
    config, epoch = checkpoint["config"].state["final_config_dict"], checkpoint["epoch"]
    if not isinstance(config, dict) or type(epoch) is not int:
        raise ValueError("its config or epoch is of another kind")
    told = {key: str(config.get(key)) for key in ("model", "dataset")}
    return weights, told | {key: config.get(key) for key in FILTERS} | {"epoch": epoch}


def _tensor(archive: zipfile.ZipFile, root: str, stored: Any) -> torch.Tensor:
    if not isinstance(stored, _Stored):
        raise TypeError(f"a weight is a {type(stored).__name__}, expected a tensor")
    if 0 in stored.size:
        return torch.empty(stored.size, dtype=stored.dtype)
    flat = torch.frombuffer(bytearray(archive.read(f"{root}data/{stored.key}")), dtype=stored.dtype)
    if math.prod(stored.size) > len(flat):
        raise ValueError(f"a weight of the shape {stored.size} has {len(flat)} numbers")
    return flat.as_strided(stored.size, stored.stride, stored.offset).clone()  # refuses what lies outside
