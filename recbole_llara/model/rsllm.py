"""RSLLM: Text-ID and hybrid prompts, two stages, and two contrastive losses between a user and an item tower."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from recbole_llara.config.settings import ContrastSettings, OptimSettings
from recbole_llara.llm.architecture import hidden_states
from recbole_llara.llm.likelihood import masked_mean
from recbole_llara.model.base import ROWS, LLMRecommender
from recbole_llara.model.losses import ForwardPass, Step, TrainingRows
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.transfer import send

ITEMS = "item tower"  # what dropout calls its passes


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
    """

    def __init__(self, config: Any, *prepared: Any) -> None:
        super().__init__(config, *prepared)
        contrast = ContrastSettings.from_config(config)
        self.item_item_weight, self.user_item_weight = contrast.item_item_weight, contrast.user_item_weight
        self.contrast_temperature = contrast.contrast_temperature
        self.needs_previews = self.item_item_weight > 0
        self.needs_states = self.needs_previews or self.user_item_weight > 0

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

    def begin_step(
        self, rows: TrainingRows, representation: Representation, number: int = 0, pass_rows: int | None = None
    ) -> Step:
        """The item tower reads the targets of all rows once; see ``LLMRecommender.begin_step``."""
        step = super().begin_step(rows, representation, number, pass_rows)
        if not self.needs_states:
            return step
        distinct, places = rows.targets.unique(return_inverse=True)
        # At most as many items at once as a pass of prompts holds, so that they need no more memory than it.
        items_at_once = (pass_rows or len(rows.targets)) * (rows.history.shape[1] + rows.candidates.shape[1])
        # Computed again in the backward pass: the passes between need the memory.
        towers = [
            checkpoint(self._item_tower, part, representation, number, use_reentrant=False)
            for part in distinct.split(items_at_once)
        ]
        items = torch.cat(towers)[send(places, self.device)]
        return replace(step, items=items, views=items.detach().requires_grad_())

    def _item_tower(self, items: torch.Tensor, representation: Representation, step: int) -> torch.Tensor:
        """g^I [B, D]: the mean state of each item [B] alone.

        Dropout is told its tokens in here, so that whoever computes the tower again gets the same masks.
        """
        prompts = self.encoder.encode_items(items, representation).to(self.device)
        self.key_dropout(ITEMS, step, items, prompts.position_ids)
        return masked_mean(self._states(prompts), prompts.pooled)

    def preview(self, rows: TrainingRows, step: Step) -> torch.Tensor:
        """[B, D] g^(I|U), which L_I of other passes reads of these rows, by a pass without gradients."""
        prompts = self.encode_training(rows, step.representation)
        self.key_dropout(ROWS, step.number, rows.row_ids, prompts.position_ids)
        with torch.no_grad():
            return self._given(self._states(prompts), prompts)

    def losses(self, forward: ForwardPass) -> dict[str, torch.Tensor]:
        """L_N, gamma L_I and beta L_U of one forward pass; see ``LLMRecommender.losses``.

        Raises:
            ValueError: other passes hold rows that were not previewed.
        """
        losses, step, states = self.answer_loss.function(forward), forward.step, forward.answers.states
        targets, places = (send(each, self.device) for each in (step.targets, forward.rows.places))
        if self.item_item_weight:  # eq. 3
            contrasted = self._item_item(step, places, self._given(states, forward.prompts), targets)
            losses["item_item"] = self.item_item_weight * contrasted / step.n_rows
        if self.user_item_weight:  # eq. 4
            user = masked_mean(states, forward.prompts.pooled)  # g^U [B, D]
            contrasted = in_batch_contrast(user, step.views, targets, places, self.contrast_temperature)
            losses["user_item"] = self.user_item_weight * contrasted.sum() / step.n_rows
        return losses

    def _item_item(self, step: Step, places: torch.Tensor, given: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of l_i (eq. 3) over the rows of a pass, with the gradients that all l_j of the step send to these rows.

        g^(I|U) of a row is a negative of every other row. Over all passes each row gets every gradient once. ``places`` [B] and
        ``given`` [B, D], their g^(I|U), are of the pass; ``targets`` [M] of all rows.
        """
        if step.given is None and len(places) < len(targets):
            raise ValueError(
                f"a pass of {len(places)} of the step's {len(targets)} rows, but none was previewed: expected a step from "
                "Step.with_previews"
            )
        others = torch.zeros_like(step.views) if step.given is None else step.given
        others = others.index_copy(0, places, given)
        anchors = step.views.detach().index_copy(0, places, step.views[places])
        every = torch.arange(len(targets), device=places.device)
        contrasted = in_batch_contrast(anchors, others, targets, every, self.contrast_temperature)
        own = contrasted[places].sum()
        rest = contrasted.sum() - own
        return own + rest - rest.detach()  # the value of these rows alone

    def _given(self, states: torch.Tensor, prompts: EncodedPrompts) -> torch.Tensor:
        """g^(I|U) [B, D]: the mean state over the target's tokens in the answer."""
        is_target = (prompts.labels != IGNORED_LABEL) & (prompts.labels != self.tokenizer.eos_token_id)  # [B, T]
        return masked_mean(states, is_target)

    def _states(self, prompts: EncodedPrompts) -> torch.Tensor:
        """[B, T, D] the decoder's last states."""
        return hidden_states(self.llm, self.training_inputs(prompts))


def in_batch_contrast(
    anchors: torch.Tensor, others: torch.Tensor, targets: torch.Tensor, own: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE of each row: its own pair against its anchor with other rows' (RSLLM eq. 3 and 4).

    ``l_i = - log exp(cos(a_i, o_own(i)) / t) / sum_j exp(cos(a_i, o_j) / t)``, j over the M others. A departure from
    the paper: others j whose target is that of row i are no negatives of i, since they say the same thing. A row without
    negatives has the loss 0.

    Example, three rows that are their own others (own 0, 1, 2), targets 7, 4, 7: rows 0 and 2 have row 1 alone as
    negative, row 1 has rows 0 and 2.

    Args:
        anchors: [B, D].
        others: [M, D], the other view of these rows, and of more.
        targets: [M] the others' target items.
        own: [B] which of the others is the row's own.
        temperature: t > 0.

    Returns:
        [B] float32, nats.
    """
    same = targets[own][:, None] == targets[None]  # [B, M]
    same = same.scatter(1, own[:, None], False)
    # Autocast would round the cosines to its 8 or 11 bits, and the division by t magnifies what was rounded off.
    with torch.autocast(anchors.device.type, enabled=False):
        cosines = F.normalize(anchors.float(), dim=1) @ F.normalize(others.float(), dim=1).T  # [B, M]
        return F.cross_entropy((cosines / temperature).masked_fill(same, -torch.inf), own, reduction="none")
