"""The pretraining's course: how hard each step's tasks are, and its learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """How hard the tasks of a step are.

    Args:
        candidate_max: the most candidates a row has.
        short_share: probability that a batch's titles are cut to one token.
        lookup_share: probability of a lookup batch.
        reader_share: probability of a readers batch; the rest are selections.
        vector_share: probability that a lookup or readers batch asks by vectors.
        closeness: the least correlation of a query's vector with its item's.
        history_max: the most items of a history.
        hybrid_share: probability that a selection batch shows vectors; of the rest 4 in 7 have no slots, 3 placeholders.
        text_share: probability that only titles tell a hybrid selection's target; both tell it as often.
        size_spread: standard deviation of the logarithm of a selection's vectors' sizes.
        guidance_weight: of the losses inside the decoder.
        opener_share: probability that a made-up title begins with a word that many titles begin with.
        leading_tokens: how many of an answer's first tokens are guided and always count in the loss.
    """

    candidate_max: int
    short_share: float
    lookup_share: float
    reader_share: float
    vector_share: float
    closeness: float
    history_max: int
    hybrid_share: float = 0.65
    text_share: float = 0.25
    size_spread: float = 0.0
    guidance_weight: float = 0.0
    opener_share: float = 0.0
    leading_tokens: int = 1


WARMUP_STEPS = 200


@dataclass(frozen=True)
class Phase:
    """A stretch of the pretraining with a learning rate curve of its own.

    Args:
        steps: optimiser steps.
        learning_rate: its peak.
        stage: from progress, 0 to 1, to how hard the tasks are.
    """

    steps: int
    learning_rate: float
    stage: Callable[[float], Stage]

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine to 5 % of the peak."""
        if step < WARMUP_STEPS:
            return self.learning_rate * (step + 1) / WARMUP_STEPS
        progress = (step - WARMUP_STEPS) / max(1, self.steps - WARMUP_STEPS)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Recipe:
    """Phases one after another."""

    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Stage, float]:
        """The stage and the learning rate of a step, counted from 0 over all phases."""
        for phase in self.phases:
            if step < phase.steps:
                return phase.stage(step / phase.steps), phase.learning_rate_at(step)
            step -= phase.steps
        raise IndexError(f"step {step + self.steps} of a recipe of {self.steps}")


def foundation_stage(progress: float) -> Stage:
    """The first phase: exact lookups among few first, the recommenders' prompts among 20 at the end.

    Everything changes gradually: a sudden change makes a model this small unlearn how to match.

    Args:
        progress: 0 to 1.
    """
    progress = min(1.0, 2 * progress)
    return Stage(
        candidate_max=6 + round(14 * progress),
        short_share=max(0.0, 0.9 - 1.5 * progress),
        lookup_share=0.7 - 0.6 * progress,
        reader_share=0.25,
        vector_share=0.8,
        closeness=1.0 - 0.4 * progress,
        history_max=1 + round(9 * progress),
    )


def selection_stage(progress: float) -> Stage:
    """The second phase: the recommenders' prompts above all, their vectors ever noisier.

    Args:
        progress: 0 to 1.
    """
    return Stage(
        candidate_max=20,
        short_share=0.5 - 0.4 * progress,
        lookup_share=0.1,
        reader_share=0.1,
        vector_share=0.9,
        closeness=0.8 - 0.4 * min(1.0, 2 * progress),
        history_max=10,
        hybrid_share=0.85,
        text_share=0.1,
        size_spread=0.2,
        guidance_weight=0.5,
    )


def opener_stage(progress: float) -> Stage:
    """The third phase: as the second ended, with titles that begin alike, so that the second word must choose too.

    Args:
        progress: 0 to 1.
    """
    return replace(selection_stage(1.0), opener_share=0.35, leading_tokens=2)
