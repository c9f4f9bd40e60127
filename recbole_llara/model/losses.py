"""What an optimiser step minimises: one table of losses by name, chosen by ``answer_loss``.

A loss is a function of one forward pass. A step reads ``train_batch_size`` rows in several passes, so a loss gives its share
of the loss of the whole step: it divides by numbers of the step (``forward.step``), never by those of the pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from recbole_llara.llm.likelihood import AnswerPass, score_candidates
from recbole_llara.model.answering import answer_context
from recbole_llara.prompt.encoding import EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.transfer import send

CANDIDATES = "candidates"  # what dropout calls passes over prompts and the answers of all candidates


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one forward pass, as the prompt encoder wants them."""

    history: torch.Tensor  # [B, L] item ids, 0-padded on the right
    candidates: torch.Tensor  # [B, C]
    targets: torch.Tensor  # [B]
    template_index: torch.Tensor  # [B]
    places: torch.Tensor  # [B] which rows of the optimiser step these are
    row_ids: torch.Tensor  # [B] which rows of the training split

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
        items: [M, D] what a tower made of every row, with gradients (RSLLM's g^I); None where no loss reads it.
        views: the same numbers, cut off from the tower: the passes' gradients gather here.
        given: [M, D] float32, the previews of all rows, without gradients (RSLLM's g^(I|U)); None where nothing reads them, or
            one pass holds all rows.
    """

    representation: Representation
    tokens: int
    targets: torch.Tensor
    number: int
    items: torch.Tensor | None = None
    views: torch.Tensor | None = None
    given: torch.Tensor | None = None

    @property
    def n_rows(self) -> int:
        """How many rows the step has, over all passes."""
        return len(self.targets)

    def with_previews(self, places: torch.Tensor, previews: torch.Tensor) -> "Step":
        """The step once every row has been previewed.

        Args:
            places: [B] of the rows in the step; a row may come twice.
            previews: [B, D].
        """
        given = torch.zeros_like(self.views, requires_grad=False)
        given[send(places, given.device)] = send(previews, given.device).to(given)
        return replace(self, given=given)

    def as_one_pass(self) -> "Step":
        """The step for a single pass that holds all its rows: one backward pass reaches the tower too."""
        return replace(self, views=self.items)

    def finish(self) -> None:
        """Backpropagate the gradients that the passes gathered; none where other processes made all passes."""
        if self.views is not None and self.views.grad is not None:
            self.items.backward(self.views.grad)


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
        model, rows, representation = self.model, self.rows, self.step.representation
        prompts = model.encode_training(rows, representation, with_answers=False)

        def key_dropout(position_ids: torch.Tensor) -> None:
            model.key_dropout(CANDIDATES, self.step.number, rows.row_ids, position_ids)

        context = answer_context(model, prompts, rows.candidates, representation)
        return score_candidates(*context, model.read_answers, key_dropout)


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
