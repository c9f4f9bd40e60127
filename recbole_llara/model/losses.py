"""What an optimiser step minimises: one table of losses by name, chosen by ``answer_loss``; and RSLLM's contrast.

A loss is a function of one forward pass. A step reads ``train_batch_size`` rows in several passes, so a loss gives its share
of the loss of the whole step: it divides by numbers of the step (``forward.step``), never by those of the pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from recbole_llara.llm.likelihood import AnswerPass
from recbole_llara.prompt.encoding import EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import UserError


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one forward pass, as the prompt encoder wants them.

    Args:
        history: [B, L] item ids, 0-padded on the right.
        candidates: [B, C].
        targets: [B].
        template_index: [B].
        places: [B] which rows of the optimiser step these are.
        row_ids: [B] which rows of the training split.
    """

    history: torch.Tensor
    candidates: torch.Tensor
    targets: torch.Tensor
    template_index: torch.Tensor
    places: torch.Tensor
    row_ids: torch.Tensor

    def take(self, rows: torch.Tensor) -> "TrainingRows":
        """Some of the rows."""
        return TrainingRows(**{name: tensor[rows] for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Step:
    """What the forward passes of one optimiser step share.

    Args:
        representation: how items stand in its prompts.
        tokens: answer tokens of all its rows, over which the answers' loss is averaged.
        targets: [M] of all its rows.
        number: of the step, counted over the whole training: dropout's draws differ from step to step.
    """

    representation: Representation
    tokens: int
    targets: torch.Tensor
    number: int

    @property
    def n_rows(self) -> int:
        """How many rows the step has, over all passes."""
        return len(self.targets)

    def with_previews(self, places: torch.Tensor, previews: torch.Tensor) -> "Step":
        """The step once every row has been previewed; see ``LLMRecommender.preview``.

        Args:
            places: [B] of the rows in the step; a row may come twice.
            previews: [B, D].
        """
        raise NotImplementedError

    def as_one_pass(self) -> "Step":
        """The step for a single pass that holds all its rows: its losses' ``backward`` is all there is to do."""
        return self

    def finish(self) -> None:
        """Backpropagate through what the passes share, after the backward pass of each."""


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass of an optimiser step: what a loss reads.

    Args:
        model: the ``LLMRecommender``.
        step: what all passes of the step share; ``step.tokens`` and ``step.n_rows`` are what to divide by.
        rows: [B] of this pass.
        prompts: what the LLM read, on its device.
        answers: the likelihood of the targets' answers, with gradient.
    """

    model: Any
    step: Step
    rows: TrainingRows
    prompts: EncodedPrompts
    answers: AnswerPass

    def candidate_scores(self) -> torch.Tensor:
        """[B, C] log-likelihood of every candidate's answer in nats, with gradient, at the cost of one more pass of the LLM."""
        return self.model.training_scores(self.rows, self.step)


# Named losses [] of a pass, as shares of the step's; their sum is minimised, each is logged by its name.
Loss = Callable[[ForwardPass], dict[str, torch.Tensor]]


def token(forward: ForwardPass) -> dict[str, torch.Tensor]:
    """Mean negative log-likelihood over all answer tokens of the step (LLaRA eq. 7, RSLLM eq. 2)."""
    return {"answer": forward.answers.sums.sum() / forward.step.tokens}


LOSSES: dict[str, Loss] = {"token": token}
_BUILT_IN = frozenset(LOSSES)


def register_loss(name: str, loss: Loss) -> None:
    """Add a loss to the table, so that ``answer_loss: name`` chooses it; one of your own may be registered again.

    Raises:
        UserError: a loss of this package has this name.
    """
    if name in _BUILT_IN:
        raise UserError(f"answer_loss: {name!r} is built in; register yours under another name")
    LOSSES[name] = loss


def in_batch_contrast(
    anchors: torch.Tensor,
    others: torch.Tensor,
    targets: torch.Tensor,
    other_targets: torch.Tensor,
    own: torch.Tensor,
    temperature: float,
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
        targets: [B] the rows' target items.
        other_targets: [M] those of the others.
        own: [B] which of the others is the row's own.
        temperature: t > 0.

    Returns:
        [B] float32, nats.
    """
    same = targets[:, None] == other_targets[None]  # [B, M]
    same = same.scatter(1, own[:, None], False)
    # Autocast would round the cosines to its 8 or 11 bits, and the division by t magnifies what was rounded off.
    with torch.autocast(anchors.device.type, enabled=False):
        cosines = F.normalize(anchors.float(), dim=1) @ F.normalize(others.float(), dim=1).T  # [B, M]
        return F.cross_entropy((cosines / temperature).masked_fill(same, -torch.inf), own, reduction="none")
