"""Which representation an optimiser step trains: direct, two stages, or a curriculum (LLaRA sec. 4.3, table 3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from recbole_llara.errors import UserError
from recbole_llara.prompt.representation import REPRESENTATIONS, Representation

TWO_STAGE_SWITCH = 2 / 5  # two epochs text-only, then three hybrid; LLaRA table 3.

# p(progress): the probability that a step trains the hard task.
CURRICULA: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,  # p(tau) = tau / T, LLaRA eq. 10
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    "step": lambda progress: float(progress >= 0.5),
}


@dataclass(frozen=True)
class Strategy:
    """The task of each optimiser step, a function of (seed, step) alone, so that a resumed run goes on alike.

    Args:
        easy: the representation of the easy task.
        hard: the representation of the hard task, and of evaluation.
        probability: p(progress) of the hard task, progress = optimiser step / all steps.
        seed: of the draws.
    """

    easy: Representation
    hard: Representation
    probability: Callable[[float], float]
    seed: int

    def hard_probability(self, step: int, total_steps: int) -> float:
        """p at an optimiser step, counted from 0."""
        return self.probability(min(1.0, step / max(1, total_steps)))

    def representation(self, step: int, total_steps: int) -> Representation:
        """What this step trains: one draw a step (LLaRA eq. 9-11)."""
        draw = torch.rand(1, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + step)).item()
        return self.hard if draw < self.hard_probability(step, total_steps) else self.easy


def make_strategy(strategy: str, curriculum: str, representation: str, seed: int) -> Strategy:
    """Build a strategy from its keys.

    A representation without item embeddings has no easier task: every strategy then trains it directly.

    Args:
        strategy: direct, two_stage or curriculum.
        curriculum: a key of ``CURRICULA``, read by strategy curriculum.
        representation: a key of ``REPRESENTATIONS``: the hard task.
        seed: of the draws.

    Raises:
        UserError: an unknown strategy.
    """
    hard = REPRESENTATIONS[representation]
    probabilities: dict[str, Callable[[float], float]] = {
        "direct": lambda progress: 1.0,
        "two_stage": lambda progress: float(progress >= TWO_STAGE_SWITCH),
        "curriculum": CURRICULA[curriculum],
    }
    if strategy not in probabilities:
        raise UserError(f"strategy: found {strategy!r}, expected one of {', '.join(probabilities)}")
    if not hard.has_item_embedding:
        strategy = "direct"
    return Strategy(REPRESENTATIONS["text_only"], hard, probabilities[strategy], seed)
