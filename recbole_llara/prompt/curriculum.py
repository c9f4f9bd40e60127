"""Which representation an optimiser step trains: direct, two stages, or a curriculum (LLaRA sec. 4.3; RSLLM alg. 1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from recbole_llara.config.settings import LETTER, LossSettings, OptimSettings, PromptSettings
from recbole_llara.prompt.representation import REPRESENTATIONS, Part, Representation
from recbole_llara.utils.errors import UserError

# p(progress): the probability that a step trains the hard task.
CURRICULA: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,  # p(tau) = tau / T, LLaRA eq. 9
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    "step": lambda progress: float(progress >= 0.5),
}


def _always(progress: float) -> float:
    return 1.0


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with a learning rate curve of its own; each of its steps trains an easy or a hard task.

    The task is a function of (seed, step) alone.
    """

    hard: Representation  # of the hard task, and of evaluation
    easy: Representation  # of the easy task; where there is none, the hard one again
    probability: Callable[[float], float]  # p(progress) of the hard task, progress = optimiser step / the stage's steps
    epochs: int  # at most
    learning_rate: float  # its maximum
    seed: int  # of the draws
    answer_loss: str = "token"  # what it minimises

    def hard_probability(self, step: int, total_steps: int) -> float:
        """p at an optimiser step, counted from 0."""
        return self.probability(min(1.0, step / max(1, total_steps)))

    def representation(self, step: int, total_steps: int) -> Representation:
        """What this step trains: one draw a step (LLaRA eq. 9-11)."""
        draw = torch.rand(1, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + step)).item()
        return self.hard if draw < self.hard_probability(step, total_steps) else self.easy


def make_stages(prompt: PromptSettings, optim: OptimSettings, seed: int) -> tuple[Stage, ...]:
    """The stages of a training: two for strategy two_stage, else one.

    ``epochs`` counts those of all stages. A representation without behavioural tokens has no use for a task that
    puts [PH] in their place: it is then trained directly, see ``lacks_easy_task``.

    Args:
        prompt: the representations, ``strategy`` and ``curriculum``.
        optim: ``epochs``, ``stage_1_epochs`` and the learning rates.
        seed: of the draws.

    Raises:
        UserError: stage 1 would take all epochs.
    """
    hard, easy = REPRESENTATIONS[prompt.representation], REPRESENTATIONS[_easy_task(prompt)[1]]
    told = {
        "has_user_token": prompt.user_token,
        "has_score_tokens": prompt.recommender_score_token != "none",
        "in_recommender_order": prompt.candidate_order == "recommender",
    }
    if prompt.answer_form == LETTER:
        hard, easy = replace(hard, answer=Part.LETTER), replace(easy, answer=Part.LETTER)
    # The easy task has nothing of the recommender.
    hard, easy = replace(hard, **told), replace(easy, **told) if easy.has_item_embedding else easy
    direct = Stage(hard, hard, _always, optim.epochs, optim.learning_rate, seed)
    strategy = "direct" if lacks_easy_task(prompt) else prompt.strategy
    if strategy == "direct" or optim.epochs == 0:
        return (direct,)
    if strategy == "curriculum":
        return (replace(direct, easy=easy, probability=CURRICULA[prompt.curriculum]),)
    if optim.stage_1_epochs >= optim.epochs:
        raise UserError(
            f"stage_1_epochs: found {optim.stage_1_epochs} of {optim.epochs} epochs, expected fewer, so that some are "
            "left for stage 2; raise epochs, or choose --strategy=direct and one representation"
        )
    first = replace(direct, hard=easy, easy=easy, epochs=optim.stage_1_epochs, learning_rate=optim.first_learning_rate)
    return (first, replace(direct, epochs=optim.epochs - optim.stage_1_epochs))


def _easy_task(prompt: PromptSettings) -> tuple[str, str]:
    """The key that names the easy task of the strategy, and its value."""
    key = "easy_representation" if prompt.strategy == "curriculum" else "stage_1_representation"
    return key, getattr(prompt, key)


def lacks_easy_task(prompt: PromptSettings) -> bool:
    """Whether the easy task of a strategy puts [PH] where the hard one has no behavioural token: both would be the same words."""
    hard, easy = REPRESENTATIONS[prompt.representation], REPRESENTATIONS[_easy_task(prompt)[1]]
    return prompt.strategy != "direct" and Part.PLACEHOLDER in easy.parts and not hard.has_item_embedding


def stages_of(config: Any) -> tuple[Stage, ...]:
    """``make_stages`` of a run's configuration.

    A model's own default strategy gives way to a representation that has no use for it; one that the user asks for does not.

    Raises:
        UserError: the strategy that the user gave has no easy task, or stage 1 would take all epochs.
    """
    prompt, optim = PromptSettings.from_config(config), OptimSettings.from_config(config)
    is_trained = optim.epochs > 0 and config["checkpoint"] is None
    if is_trained and "strategy" in config.external_config_dict and lacks_easy_task(prompt):
        key, easy = _easy_task(prompt)
        raise UserError(
            f"strategy: found {prompt.strategy} with representation {prompt.representation} and {key} "
            f"{easy}, whose [PH] stands for a behavioural token that {prompt.representation} has not; "
            f"expected a representation with one, such as hybrid, a {key} without [PH], such as text_id, or "
            "--strategy=direct"
        )
    losses = LossSettings.from_config(config)
    *earlier, last = make_stages(prompt, optim, config["seed"])
    first = losses.stage_1_answer_loss or losses.answer_loss
    return (*(replace(stage, answer_loss=first) for stage in earlier), replace(last, answer_loss=losses.answer_loss))


def shown_representations(config: Any) -> tuple[Representation, ...]:
    """Every representation that a prompt of the run may have, in training or evaluation, each once."""
    return tuple(dict.fromkeys(each for stage in stages_of(config) for each in (stage.easy, stage.hard)))


def reads_recommender(config: Any) -> bool:
    """Whether a prompt of the run may have something of a trained recommender."""
    return any(representation.reads_recommender for representation in shown_representations(config))


def shown_parts(config: Any) -> frozenset[Part]:
    """Every part that a prompt of the run may show, in training or evaluation."""
    return frozenset(part for representation in shown_representations(config) for part in representation.shown)
