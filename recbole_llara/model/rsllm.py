"""RSLLM: Text-ID and hybrid prompts, two stages, and two contrastive losses between a user and an item tower."""

from typing import Any

import torch

from recbole_llara.data.dataset import PreparedData
from recbole_llara.errors import UserError
from recbole_llara.model.base import LLMRecommender, TrainingRows
from recbole_llara.model.contrast import in_batch_contrast, masked_mean
from recbole_llara.model.item_encoder import Recommender
from recbole_llara.model.llm import hidden_states
from recbole_llara.prompt.encoding import IGNORED_LABEL
from recbole_llara.prompt.representation import Representation
from recbole_llara.settings import ContrastSettings, OptimSettings


class RSLLM(LLMRecommender):
    """RSLLM over the frozen recommender ``rec_model``: ``L = L_N + gamma L_I + beta L_U`` (eq. 5).

    Both towers are the LLM. The user tower is the pass over prompt and answer that L_N needs anyway: the mean of
    the states over the history's titles is g^U, over the target's tokens in the answer g^(I|U). The item tower reads
    the target alone, as the current stage writes items: the mean over all of it is g^I. L_I (eq. 3) contrasts g^I with
    g^(I|U), L_U (eq. 4) g^U with g^I, against the other rows of the same forward pass, on all processes.

    Departures from the paper: rows with an equal target are no negatives of each other; the negatives are those of
    ``micro_batch_size`` rows, not of the paper's batch of 256, which one pass seldom holds.

    Args:
        config: the run's LLaRAConfig.
        data: what ``prepare_data`` returned.
        recommender: the frozen recommender; None where no behavioural token is shown.

    Raises:
        UserError: as ``LLMRecommender``; or a batch of one row, which has no negatives.
    """

    def __init__(self, config: Any, data: PreparedData, recommender: Recommender | None) -> None:
        super().__init__(config, data, recommender)
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

    def step_losses(
        self, rows: TrainingRows, representation: Representation, step_tokens: int, step_rows: int
    ) -> dict[str, torch.Tensor]:
        """L_N, gamma L_I and beta L_U of one forward pass; see ``LLMRecommender.step_losses``."""
        contrast = self.contrast
        weights = {"item_item": contrast.item_item_weight, "user_item": contrast.user_item_weight}
        if not any(weights.values()):
            return super().step_losses(rows, representation, step_tokens, step_rows)
        prompts = self.encode_training(rows, representation)
        answers = self.answer_pass(prompts, with_states=True)
        is_target = (prompts.labels != IGNORED_LABEL) & (prompts.labels != self.tokenizer.eos_token_id)  # [B, T]
        user = masked_mean(answers.states, prompts.pooled)  # g^U [B, D]
        item_given_user = masked_mean(answers.states, is_target)  # g^(I|U) [B, D]
        item = self._item_tower(rows.targets, representation)  # g^I [B, D]
        targets = rows.targets.to(self.device)
        pairs = {"item_item": (item, item_given_user), "user_item": (user, item)}  # eq. 3, eq. 4
        losses = {"answer": answers.sums.sum() / step_tokens}
        for name, (anchors, others) in pairs.items():
            if weights[name]:
                contrasted = in_batch_contrast(anchors, others, targets, contrast.contrast_temperature)
                losses[name] = weights[name] * contrasted.sum() / step_rows
        return losses

    def _item_tower(self, items: torch.Tensor, representation: Representation) -> torch.Tensor:
        """g^I [B, D]: the mean state of each item [B] alone."""
        prompts = self.encoder.encode_items(items, representation).to(self.device)
        states = hidden_states(self.llm, self.embed(prompts), prompts.attention_mask, prompts.position_ids)
        return masked_mean(states, prompts.pooled)
