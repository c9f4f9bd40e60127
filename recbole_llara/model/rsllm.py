"""RSLLM: Text-ID and hybrid prompts, two stages, and two contrastive losses between a user and an item tower."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from recbole_llara.data.dataset import PreparedData
from recbole_llara.errors import UserError
from recbole_llara.model.base import LLMRecommender, Step, TrainingRows
from recbole_llara.model.contrast import in_batch_contrast, masked_mean
from recbole_llara.model.item_encoder import Recommender
from recbole_llara.model.llm import hidden_states
from recbole_llara.model.readiness import ReadyLLM
from recbole_llara.prompt.encoding import IGNORED_LABEL
from recbole_llara.prompt.representation import Representation
from recbole_llara.settings import ContrastSettings, OptimSettings


@dataclass(frozen=True)
class ContrastStep(Step):
    """A step whose passes share what the item tower made of its targets.

    Args:
        items: [B, D] g^I of all rows of the step, as the item tower gave it.
        views: the same numbers, cut off from the item tower: the passes' gradients gather here.
    """

    items: torch.Tensor
    views: torch.Tensor

    def finish(self) -> None:
        """Take the gathered gradients back through the item tower; none where another process made all passes."""
        if self.views.grad is not None:
            self.items.backward(self.views.grad)


class RSLLM(LLMRecommender):
    """RSLLM over the frozen recommender ``rec_model``: ``L = L_N + gamma L_I + beta L_U`` (eq. 5).

    Both towers are the LLM. The user tower is the pass over prompt and answer that L_N needs anyway: the mean of
    the states over the history's titles is g^U, over the target's tokens in the answer g^(I|U). The item tower reads
    the targets alone, as the current stage writes items, all those of an optimiser step at once: the mean over all of one
    is g^I. L_I (eq. 3) contrasts g^I with g^(I|U), L_U (eq. 4) g^U with g^I, against other rows.

    Departures from the paper: rows with an equal target are no negatives of each other; and while L_U's negatives are the
    g^I of the whole step, L_I's are the g^(I|U) of ``micro_batch_size`` rows, since a pass over long prompts seldom holds
    the paper's batch of 256.

    Args:
        config: the run's LLaRAConfig.
        data: what ``prepare_data`` returned.
        recommender: the frozen recommender; None where no behavioural token is shown.
        ready: its LLM; None = loaded here.

    Raises:
        UserError: as ``LLMRecommender``; or a batch of one row, which has no negatives.
    """

    def __init__(self, config: Any, data: PreparedData, recommender: Recommender | None, ready: ReadyLLM | None = None) -> None:
        super().__init__(config, data, recommender, ready)
        self.contrast = ContrastSettings.from_config(config)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse batches that hold no negatives, and what ``LLMRecommender`` refuses."""
        super().check(config)
        contrast, optim = ContrastSettings.from_config(config), OptimSettings.from_config(config)
        if not (contrast.item_item_weight or contrast.user_item_weight):
            return
        for key in ("micro_batch_size", "train_batch_size"):
            if getattr(optim, key) == 1:
                raise UserError(
                    f"{key}: found 1, expected at least 2: the contrastive losses take their negatives from the other rows "
                    "of a pass; or set item_item_weight and user_item_weight to 0"
                )

    def begin_step(self, rows: TrainingRows, representation: Representation) -> Step:
        """The item tower reads the targets of all rows once; see ``LLMRecommender.begin_step``."""
        step = super().begin_step(rows, representation)
        if not any(self._weights().values()):
            return step
        # Computed again on the way back: the passes between need the memory.
        items = checkpoint(self._item_tower, rows.targets, representation, use_reentrant=False)
        return ContrastStep(*vars(step).values(), items, items.detach().requires_grad_())

    def step_losses(self, rows: TrainingRows, step: Step) -> dict[str, torch.Tensor]:
        """L_N, gamma L_I and beta L_U of one forward pass; see ``LLMRecommender.step_losses``."""
        if not isinstance(step, ContrastStep):
            return super().step_losses(rows, step)
        prompts = self.encode_training(rows, step.representation)
        answers = self.answer_pass(prompts, with_states=True)
        losses = {"answer": answers.sums.sum() / step.tokens}
        targets, step_targets, places = (t.to(self.device) for t in (rows.targets, step.targets, rows.places))
        weights, temperature = self._weights(), self.contrast.contrast_temperature
        if weights["item_item"]:  # eq. 3
            is_target = (prompts.labels != IGNORED_LABEL) & (prompts.labels != self.tokenizer.eos_token_id)  # [B, T]
            given = masked_mean(answers.states, is_target)  # g^(I|U) [B, D]
            own = torch.arange(len(targets), device=self.device)
            contrasted = in_batch_contrast(step.views[places], given, targets, targets, own, temperature)
            losses["item_item"] = weights["item_item"] * contrasted.sum() / len(step_targets)
        if weights["user_item"]:  # eq. 4
            user = masked_mean(answers.states, prompts.pooled)  # g^U [B, D]
            contrasted = in_batch_contrast(user, step.views, targets, step_targets, places, temperature)
            losses["user_item"] = weights["user_item"] * contrasted.sum() / len(step_targets)
        return losses

    def _weights(self) -> dict[str, float]:
        return {"item_item": self.contrast.item_item_weight, "user_item": self.contrast.user_item_weight}

    def _item_tower(self, items: torch.Tensor, representation: Representation) -> torch.Tensor:
        """g^I [B, D]: the mean state of each item [B] alone."""
        distinct, places = items.unique(return_inverse=True)
        prompts = self.encoder.encode_items(distinct, representation).to(self.device)
        states = hidden_states(self.llm, self.embed(prompts), prompts.attention_mask, prompts.position_ids)
        return masked_mean(states, prompts.pooled)[places.to(self.device)]
