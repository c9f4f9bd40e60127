"""Randomness on loan: a stage draws from its own seed and hands the global generators back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed

_PREFIX = "generator_state/"  # of the tensors' names


@dataclass(frozen=True)
class Generators:
    """The states of Python's, numpy's and torch's global generators: tensors by name, and what JSON can hold."""

    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]

    @classmethod
    def now(cls) -> "Generators":
        """As they are."""
        name, keys, position, has_gauss, cached = np.random.get_state()
        tensors = {f"{_PREFIX}numpy": torch.from_numpy(keys.astype(np.int64)), f"{_PREFIX}torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {f"{_PREFIX}cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
        return cls(tensors, {"python": random.getstate(), "numpy": [name, position, has_gauss, cached]})

    def restore(self) -> None:
        """Put them back; the states of GPUs that are not here are left out."""
        version, internal, gauss = self.plain["python"]
        random.setstate((version, tuple(internal), gauss))
        name, position, has_gauss, cached = self.plain["numpy"]
        np.random.set_state((name, self.tensors[f"{_PREFIX}numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(self.tensors[f"{_PREFIX}torch"])
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"{_PREFIX}cuda{number}" in self.tensors:
                torch.cuda.set_rng_state(self.tensors[f"{_PREFIX}cuda{number}"], number)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the global generators and the switches of cuDNN back in the end."""
    generators, cudnn = Generators.now(), (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    try:
        yield
    finally:
        generators.restore()
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


@contextmanager
def own_random_state(seed: int, reproducibility: bool) -> Iterator[None]:
    """Seed Python, numpy and torch as RecBole does, for a while; ``reproducibility`` is its key: deterministic cuDNN."""
    with kept_random_state():
        init_seed(seed, reproducibility)
        yield
