"""RSLLM: Text-ID and hybrid prompts, two stages, and two contrastive losses between a user and an item tower."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from recbole_llara.config.settings import ContrastSettings, OptimSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.llm.architecture import hidden_states
from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.model.base import ROWS, LLMRecommender
from recbole_llara.model.losses import ForwardPass, Step, TrainingRows, in_batch_contrast
from recbole_llara.model.prepare_llm import PreparedLLM
from recbole_llara.prompt.encoding import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.recommender.frozen import Recommender
from recbole_llara.utils.errors import UserError

ITEMS = "item tower"  # what dropout calls its passes


@dataclass(frozen=True)
class ContrastStep(Step):
    """A step whose passes share what the item tower made of its targets, and what the user tower made of all rows.

    Args:
        items: [B, D] g^I of all rows of the step, as the item tower gave it.
        views: the same numbers, cut off from the item tower: the passes' gradients gather here.
        given: [B, D] float32, g^(I|U) of all rows, without gradients; None where nothing reads it, or one pass holds all rows.
    """

    items: torch.Tensor
    views: torch.Tensor
    given: torch.Tensor | None = None

    def with_previews(self, places: torch.Tensor, previews: torch.Tensor) -> "ContrastStep":
        """The step with g^(I|U) of all rows; see ``Step.with_previews``."""
        given = torch.zeros_like(self.views, requires_grad=False)
        given[places.to(given.device)] = previews.to(given)
        return replace(self, given=given)

    def as_one_pass(self) -> "ContrastStep":
        """The step whose views are the item tower's own tensors: one backward pass reaches the tower too."""
        return replace(self, views=self.items)

    def finish(self) -> None:
        """Backpropagate the gathered gradients through the item tower; none where other processes made all passes."""
        if self.views.grad is not None:
            self.items.backward(self.views.grad)


class RSLLM(LLMRecommender):
    """RSLLM over the frozen recommender ``rec_model``: ``L = L_N + gamma L_I + beta L_U`` (eq. 5).

    Both towers are the LLM. The user tower is the pass over prompt and answer that L_N needs anyway: the mean of the
    states over all parts of the history's items is g^U, over the target's tokens in the answer g^(I|U). The item tower
    reads the targets alone, as the current stage writes items: the mean over all parts of one is g^I. L_I (eq. 3)
    contrasts g^I with g^(I|U), L_U (eq. 4) g^U with g^I, against all other rows of the optimiser step.

    The paper's batch seldom fits into one pass, and L_I contrasts a row with the user tower's view of every other row. So
    g^(I|U) of all rows is computed first, pass by pass and without gradients; then each pass is made again with gradients,
    its rows in their places among those of the others (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size
    under Memory Limited Setup"). Losses and gradients are those of one pass over the whole step; memory is that of one
    micro-batch.

    A departure from the paper: rows with an equal target are no negatives of each other.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.
        recommender: the frozen recommender; None where no behavioural token is shown.
        prepared: its LLM; None = loaded here.

    Raises:
        UserError: as ``LLMRecommender``; or an optimiser step of one row, which has no negatives.
    """

    def __init__(
        self, config: Any, data: PreparedData, recommender: Recommender | None, prepared: PreparedLLM | None = None
    ) -> None:
        super().__init__(config, data, recommender, prepared)
        self.contrast = ContrastSettings.from_config(config)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse steps that hold no negatives, and what ``LLMRecommender`` refuses."""
        super().check(config)
        contrast, optim = ContrastSettings.from_config(config), OptimSettings.from_config(config)
        if (contrast.item_item_weight or contrast.user_item_weight) and optim.train_batch_size == 1:
            raise UserError(
                "train_batch_size: found 1, expected at least 2: the contrastive losses take their negatives from the other "
                "rows of an optimiser step; or set item_item_weight and user_item_weight to 0"
            )

    @property
    def needs_previews(self) -> bool:
        """L_I reads g^(I|U) of all rows of the step."""
        return self.contrast.item_item_weight > 0

    @property
    def needs_states(self) -> bool:
        """Both contrastive losses read the user tower."""
        return any(self._weights().values())

    def preview(self, rows: TrainingRows, step: Step) -> torch.Tensor:
        """[B, D] g^(I|U); see ``LLMRecommender.preview``."""
        prompts = self.encode_training(rows, step.representation)
        self.key_dropout(ROWS, step.number, rows.row_ids, prompts.position_ids)
        with torch.no_grad():
            return self._given(hidden_states(self.llm, *self._inputs(prompts)), prompts)

    def begin_step(
        self, rows: TrainingRows, representation: Representation, number: int = 0, pass_rows: int | None = None
    ) -> Step:
        """The item tower reads the targets of all rows once; see ``LLMRecommender.begin_step``."""
        step = super().begin_step(rows, representation, number, pass_rows)
        if not any(self._weights().values()):
            return step
        distinct, places = rows.targets.unique(return_inverse=True)
        # At most as many items at once as a pass of prompts holds, so that they need no more memory than it.
        items_at_once = (pass_rows or len(rows.targets)) * (rows.history.shape[1] + rows.candidates.shape[1])
        # Computed again in the backward pass: the passes between need the memory.
        towers = [
            checkpoint(self._item_tower, part, representation, number, use_reentrant=False)
            for part in distinct.split(items_at_once)
        ]
        items = torch.cat(towers)[places.to(self.device)]
        return ContrastStep(*vars(step).values(), items, items.detach().requires_grad_())

    def losses(self, forward: ForwardPass) -> dict[str, torch.Tensor]:
        """L_N, gamma L_I and beta L_U of one forward pass; see ``LLMRecommender.losses``.

        Raises:
            ValueError: other passes hold rows that were not previewed.
        """
        losses, step, states = self.answer_loss(forward), forward.step, forward.answers.states
        if not isinstance(step, ContrastStep):
            return losses
        targets, step_targets, places = (
            values.to(self.device) for values in (forward.rows.targets, step.targets, forward.rows.places)
        )
        weights, temperature = self._weights(), self.contrast.contrast_temperature
        if weights["item_item"]:  # eq. 3
            contrasted = self._item_item(step, places, self._given(states, forward.prompts), step_targets)
            losses["item_item"] = weights["item_item"] * contrasted / step.n_rows
        if weights["user_item"]:  # eq. 4
            user = masked_mean(states, forward.prompts.pooled)  # g^U [B, D]
            contrasted = in_batch_contrast(user, step.views, targets, step_targets, places, temperature)
            losses["user_item"] = weights["user_item"] * contrasted.sum() / step.n_rows
        return losses

    def _item_item(
        self, step: ContrastStep, places: torch.Tensor, given: torch.Tensor, step_targets: torch.Tensor
    ) -> torch.Tensor:
        """The sum of l_i (eq. 3) over the rows of a pass, with the gradients that all l_j of the step send to these rows.

        g^(I|U) of a row is a negative of every other row. Over all passes each row gets every gradient once.

        Args:
            step: with g^(I|U) of all rows, unless this pass holds all of them.
            places: [B] of the pass's rows in the step.
            given: [B, D] their g^(I|U).
            step_targets: [M] of all rows.
        """
        if step.given is None and len(places) < len(step_targets):
            raise ValueError(
                f"a pass of {len(places)} of the step's {len(step_targets)} rows, but none was previewed: expected a step from "
                "Step.with_previews"
            )
        others = torch.zeros_like(step.views) if step.given is None else step.given
        others = others.index_copy(0, places, given)
        anchors = step.views.detach().index_copy(0, places, step.views[places])
        every = torch.arange(len(step_targets), device=places.device)
        contrasted = in_batch_contrast(anchors, others, step_targets, step_targets, every, self.contrast.contrast_temperature)
        own = contrasted[places].sum()
        rest = contrasted.sum() - own
        return own + rest - rest.detach()  # the value of these rows alone

    def _weights(self) -> dict[str, float]:
        return {"item_item": self.contrast.item_item_weight, "user_item": self.contrast.user_item_weight}

    def _given(self, states: torch.Tensor, prompts: EncodedPrompts) -> torch.Tensor:
        """g^(I|U) [B, D]: the mean state over the target's tokens in the answer."""
        is_target = (prompts.labels != IGNORED_LABEL) & (prompts.labels != self.tokenizer.eos_token_id)  # [B, T]
        return masked_mean(states, is_target)

    def _inputs(self, prompts: EncodedPrompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.embed(prompts), prompts.attention_mask, prompts.position_ids

    def _item_tower(self, items: torch.Tensor, representation: Representation, step: int) -> torch.Tensor:
        """g^I [B, D]: the mean state of each item [B] alone.

        Dropout is told its tokens in here, so that whoever computes the tower again gets the same masks.
        """
        prompts = self.encoder.encode_items(items, representation).to(self.device)
        self.key_dropout(ITEMS, step, items, prompts.position_ids)
        return masked_mean(hidden_states(self.llm, *self._inputs(prompts)), prompts.pooled)
