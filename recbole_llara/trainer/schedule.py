"""The learning rate of an optimiser step."""

import math

from recbole_llara.config.settings import OptimSettings


def learning_rate_factor(step: int, total_steps: int, settings: OptimSettings) -> float:
    """The share of the maximal learning rate at an optimiser step: linear warm-up, then cosine (LLaRA sec. 5.1.2).

    Args:
        step: counted from 0.
        total_steps: of the whole training.
        settings: its ``warmup_ratio``, ``warmup_learning_rate_ratio`` and ``min_learning_rate_ratio``.
    """
    warmup = round(settings.warmup_ratio * total_steps)
    if step < warmup:
        start = settings.warmup_learning_rate_ratio
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    end = settings.min_learning_rate_ratio
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
