"""Texts of many items in one buffer, so that a catalogue of a million is read without making a million Python strings.

A table is the texts' UTF-8, one after another, and where each begins: two tensors of a safetensors file, which are mapped into memory
and not copied. A text is decoded when somebody asks for it. ``TextIndex`` finds the places of a text without looking at the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from operator import index
from typing import Any, overload

import numpy as np
import pandas as pd
import torch

_BYTES, _OFFSETS, _HASHES, _ORDER = "/bytes", "/offsets", "/hashes", "/order"
_BROKEN = "surrogatepass"  # ids may hold halves of surrogate pairs, which odd encodings bring


class TextTable(Sequence[str]):
    """N texts.

    Args:
        data: uint8, the texts' UTF-8; a table may be some consecutive texts of a larger one.
        offsets: [N + 1] int64, where each begins in it, and the end of the last.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data, self.offsets = data, offsets
        self._view = memoryview(data)

    @classmethod
    def of(cls, texts: Sequence[Any]) -> "TextTable":
        """That of texts; of what is a table already, itself. What is no text counts by its ``str``."""
        if isinstance(texts, TextTable):
            return texts
        encoded = [str(text).encode("utf-8", _BROKEN) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.concatenate([[0], lengths.cumsum()]).astype(np.int64))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What safetensors keep of it, under a name."""
        data = self.data[self.offsets[0] : self.offsets[-1]]
        return {
            name + _BYTES: torch.from_numpy(data.copy()),
            name + _OFFSETS: torch.from_numpy(self.offsets - self.offsets[0]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], name: str) -> "TextTable":
        """What ``tensors`` gave, over the same memory.

        Raises:
            KeyError, TypeError, ValueError: they are not what this class writes.
        """
        data, offsets = tensors[name + _BYTES], tensors[name + _OFFSETS]
        if data.dtype != torch.uint8 or offsets.dtype != torch.int64 or data.dim() != 1 or offsets.dim() != 1:
            raise TypeError(f"the texts {name} are of another kind")
        table = cls(data.numpy(), offsets.numpy())
        bounds, content = table.offsets, table.data
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(content) or (bounds[1:] < bounds[:-1]).any():
            raise ValueError(f"the texts {name} begin and end at other places than their bytes")
        inner = bounds[(bounds > 0) & (bounds < len(content))]
        if ((content[inner] & 0xC0) == 0x80).any():
            raise ValueError(f"a text of {name} begins within a character")
        str(table._view, "utf-8", _BROKEN)  # a ValueError where it is no UTF-8
        return table

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "TextTable": ...

    def __getitem__(self, place: int | slice) -> "str | TextTable":
        """A text; or, of a slice without steps, a table over the same memory."""
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                raise IndexError(f"texts by steps of {step}, expected 1")
            return TextTable(self.data, self.offsets[first : max(first, last) + 1])
        number = index(place)
        if not -len(self) <= number < len(self):
            raise IndexError(f"text {number} of {len(self)}")
        number %= len(self)
        return str(self._view[self.offsets[number] : self.offsets[number + 1]], "utf-8", _BROKEN)

    def __iter__(self) -> Iterator[str]:
        bounds = self.offsets.tolist()
        for start, end in pairwise(bounds):
            yield str(self._view[start:end], "utf-8", _BROKEN)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextTable):
            return len(self) == len(other) and self.sha256 == other.sha256
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None

    @property
    def nbytes(self) -> int:
        """Memory of its texts and of where they begin."""
        return int(self.offsets[-1] - self.offsets[0]) + self.offsets.nbytes

    @cached_property
    def sha256(self) -> str:
        """Digest of the texts in their order."""
        digest = sha256(np.diff(self.offsets).astype("<i8").tobytes())
        digest.update(self._view[self.offsets[0] : self.offsets[-1]])
        return digest.hexdigest()

    def without_visible_start(self) -> np.ndarray:
        """The numbers of texts that do not begin with a visible ASCII character, ascending."""
        starts, ends = self.offsets[:-1], self.offsets[1:]
        if not len(self.data):
            return np.arange(len(self))
        first = self.data[np.minimum(starts, len(self.data) - 1)]
        return np.flatnonzero((first <= 0x20) | (first >= 0x7F) | (ends == starts))

    def first_characters(self, numbers: np.ndarray) -> np.ndarray:
        """[n] the code points of the first characters of some texts, 0 of an empty one."""
        starts, ends = self.offsets[numbers], self.offsets[numbers + 1]
        last = max(len(self.data) - 1, 0)
        of_byte = [self.data[np.minimum(starts + place, last)].astype(np.int64) for place in range(4)] if len(self.data) else []
        if not of_byte:
            return np.zeros(len(numbers), np.int64)
        lead, second, third, fourth = of_byte
        tail = [byte & 0x3F for byte in (second, third, fourth)]
        found = np.select(
            [lead < 0x80, lead < 0xE0, lead < 0xF0],
            [lead, (lead & 0x1F) << 6 | tail[0], (lead & 0x0F) << 12 | tail[0] << 6 | tail[1]],
            (lead & 0x07) << 18 | tail[0] << 12 | tail[1] << 6 | tail[2],
        )
        return np.where(ends > starts, found, 0)


class TextIndex:
    """Finds where a text stands in a table, by hashes in their order; whoever asks compares the texts found.

    Args:
        hashes: [N] int64, ascending.
        order: [N] int32, the places of the texts that have them.
    """

    def __init__(self, hashes: np.ndarray, order: np.ndarray) -> None:
        self.hashes, self.order = hashes, order

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TextIndex":
        """That of N texts."""
        hashes = text_hashes(texts)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.int32))

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What safetensors keep of it, under a name."""
        return {name + _HASHES: torch.from_numpy(self.hashes), name + _ORDER: torch.from_numpy(self.order)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], name: str, count: int) -> "TextIndex":
        """What ``tensors`` gave, over the same memory, of ``count`` texts.

        Raises:
            KeyError, TypeError, ValueError: they are not what this class writes.
        """
        hashes, order = tensors[name + _HASHES], tensors[name + _ORDER]
        if (
            hashes.dtype != torch.int64
            or order.dtype != torch.int32
            or not tuple(hashes.shape) == tuple(order.shape) == (count,)
        ):
            raise TypeError(f"the index {name} is of another kind")
        if count and not 0 <= int(order.min()) <= int(order.max()) < count:
            raise ValueError(f"the index {name} names places that are not there")
        return cls(hashes.numpy(), order.numpy())

    def places(self, text: str) -> list[int]:
        """Where a text may stand, ascending: texts of its hash, which are nearly always its own."""
        wanted = text_hashes([text])[0]
        first, last = (int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right"))
        return sorted(self.order[first:last].tolist())


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """[N] int64 hashes of texts."""
    values = np.empty(len(texts), dtype=object)
    values[:] = [text.encode("utf-8", "replace").decode() for text in texts]  # pandas hashes no halves of surrogate pairs
    return pd.util.hash_array(values, categorize=False).view(np.int64)
