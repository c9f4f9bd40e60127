"""Randomness on loan: a stage draws from its own seed and hands the global generators back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from recbole.utils import init_seed


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the states of Python's, numpy's and torch's generators, and the switches of cuDNN, back in the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


@contextmanager
def own_random_state(seed: int, reproducibility: bool) -> Iterator[None]:
    """Seed Python, numpy and torch as RecBole does, for a while, then put their states back.

    Args:
        seed: of the stage.
        reproducibility: RecBole's key: deterministic cuDNN.
    """
    with kept_random_state():
        init_seed(seed, reproducibility)
        yield
