"""What the benchmarks share: the clock, the machine's rate, and made-up titles."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

MATRIX = 2048  # side of the matrices whose product gives a CPU's rate; four times as long on a GPU


def settle(device: torch.device | str = "cpu") -> None:
    """Wait for what was launched on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """How long an action takes."""
    settle(device)
    started = perf_counter()
    action()
    settle(device)
    return perf_counter() - started


def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Operations a second in a large matrix product: the best of some."""
    side = MATRIX * (4 if torch.device(device).type == "cuda" else 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(6))


def titles_of(items: int, words: int) -> list[str]:
    """Made-up titles of so many words and a number, ``titles[0]`` the padding item's."""
    rng = np.random.default_rng(0)
    names = np.array(
        [
            "red",
            "star",
            "night",
            "river",
            "king",
            "of",
            "the",
            "lost",
            "city",
            "moon",
            "last",
            "winter",
            "dream",
            "house",
            "garden",
            "return",
        ]
    )
    drawn = names[rng.integers(0, len(names), (items, words))]
    return ["", *(f"{' '.join(row)} {number}" for number, row in enumerate(drawn))]
