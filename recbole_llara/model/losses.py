"""What an optimiser step minimises: one table of losses by name, chosen by ``answer_loss``.

``token`` looks at the target's answer alone, ``listwise`` and ``sdpo`` at what ``score`` ranks by. A loss is a function of one
forward pass. A step reads ``train_batch_size`` rows in several passes, so a loss gives its share of the loss of the whole step: it
divides by numbers of the step (``forward.step``), never by those of the pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from recbole_llara.llm.likelihood import AnswerPass, answer_scores
from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.transfer import send


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one forward pass, in the form that the prompt encoder takes."""

    history: torch.Tensor  # [B, L] item ids, 0-padded on the right
    candidates: torch.Tensor  # [B, C]
    targets: torch.Tensor  # [B]
    template_index: torch.Tensor  # [B]
    places: torch.Tensor  # [B] which rows of the optimiser step these are
    row_ids: torch.Tensor  # [B] which rows of the training split
    read_as: torch.Tensor  # [B, C] the candidates, N + i for item i where its vector and score are read as if it were new
    draws: torch.Tensor  # [B] the stream of ``hashing.numbers`` of each row in this epoch, as int64

    def take(self, rows: torch.Tensor) -> "TrainingRows":
        """Some of the rows."""
        return TrainingRows(**{name: tensor[rows] for name, tensor in vars(self).items()})

    @property
    def target_columns(self) -> torch.Tensor:
        """[B] where each row's target stands among its candidates."""
        return (self.candidates == self.targets[:, None]).int().argmax(1)


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
        log_probs: [B, C, A] of the tokens of all candidates' answers, with gradient, where the pass read them.
    """

    model: Any
    step: Step
    rows: TrainingRows
    prompts: EncodedPrompts
    answers: AnswerPass
    log_probs: torch.Tensor | None = None

    def candidate_scores(self) -> torch.Tensor:
        """[B, C] log-likelihood of every candidate's answer in nats, with gradient: exactly what ``score`` ranks by.

        Of a loss registered with ``reads_candidates`` the pass has read them; else they cost one more pass of the LLM.
        """
        log_probs = self.log_probs
        if log_probs is None:
            log_probs = self.model.candidates_pass(self.rows, self.step)[2]
        return answer_scores(log_probs)

    def reference_scores(self) -> torch.Tensor:
        """``candidate_scores`` of the weights with which the stage began, without gradient and dropout; see ``reads_reference``."""
        with self.model.as_reference():
            return answer_scores(self.model.candidates_pass(self.rows, self.step)[2])

    def prior_scores(self) -> torch.Tensor:
        """[B, C] the recommender's log-probabilities of the candidates in nats; where the model ``has_prior``."""
        asked = (send(items, self.model.device) for items in (self.rows.history, self.rows.read_as))
        return self.model.conclude(*asked).log_probs

    def ranking_loss(self, scores: torch.Tensor) -> torch.Tensor:
        """[] the targets' mean negative log-likelihood in nats under a softmax over scores [B, C], as a share of the step's.

        Candidates whose answer is the target's very text are no negatives: no score could tell them apart.
        """
        encoder, listed = self.model.encoder, self.prompts.listed
        answer_ids = encoder.answer_ids(self.rows.candidates, self.step.representation, listed)  # [B, C, A]
        columns = self.rows.target_columns
        same = (answer_ids == answer_ids[torch.arange(len(columns)), columns][:, None]).all(2)  # [B, C]
        same.scatter_(1, columns[:, None], False)
        same, columns = send(same, scores.device), send(columns, scores.device)
        return cross_entropy(scores.masked_fill(same, -torch.inf), columns, reduction="sum") / self.step.n_rows


# Named losses [] of a pass, as shares of the step's; their sum is minimised, each is logged by its name.
Loss = Callable[[ForwardPass], dict[str, torch.Tensor]]


def token(forward: ForwardPass) -> dict[str, torch.Tensor]:
    """Mean negative log-likelihood over all answer tokens of the step (LLaRA eq. 7, RSLLM eq. 2)."""
    return {"answer": forward.answers.sums.sum() / forward.step.tokens}


def listwise(forward: ForwardPass) -> dict[str, torch.Tensor]:
    """A softmax over the likelihoods of all candidates' answers (ListNet's top-one loss, Cao et al., ICML 2007), beside ``token``.

    Under ``listwise_prior: recommender`` the softmax is over the recommender's log-probabilities too: a product of experts.
    """
    settings = forward.model.loss_settings
    scores = forward.candidate_scores() / settings.listwise_temperature
    if forward.model.has_prior:
        scores = scores + forward.prior_scores()
    ranking = forward.ranking_loss(scores)
    return {"listwise": ranking, **_weighted_token(forward)}


def sdpo(forward: ForwardPass) -> dict[str, torch.Tensor]:
    """Softmax direct preference optimisation (S-DPO, Chen et al., NeurIPS 2024), beside ``token``.

    ``-log sigma(-log sum_d exp(m_d - m_p))`` over the negatives d of the target p is a softmax over the margins
    ``m = beta (log pi - log pi_ref)`` of all candidates. pi_ref are the weights with which the stage began.
    """
    reference = forward.reference_scores()
    margins = forward.model.loss_settings.sdpo_beta * (forward.candidate_scores() - reference)
    return {"sdpo": forward.ranking_loss(margins), **_weighted_token(forward)}


def _weighted_token(forward: ForwardPass) -> dict[str, torch.Tensor]:
    weight = forward.model.loss_settings.token_loss_weight
    return {name: weight * value for name, value in token(forward).items()} if weight else {}


@dataclass(frozen=True)
class AnswerLoss:
    """A loss of the table."""

    function: Loss
    # Whether it reads ``candidate_scores``: one pass over the prompts and all candidates' answers then serves it and ``answers``.
    reads_candidates: bool = False
    reads_reference: bool = False  # whether it reads ``reference_scores``


LOSSES: dict[str, AnswerLoss] = {
    "token": AnswerLoss(token),
    "listwise": AnswerLoss(listwise, reads_candidates=True),
    "sdpo": AnswerLoss(sdpo, reads_candidates=True, reads_reference=True),
}
_BUILT_IN = frozenset(LOSSES)


def register_loss(name: str, loss: Loss, reads_candidates: bool = False, reads_reference: bool = False) -> None:
    """Add an ``AnswerLoss`` to the table, so that ``answer_loss: name`` chooses it; one of your own may be registered again.

    Raises:
        UserError: a loss of this package has this name.
    """
    if name in _BUILT_IN:
        raise UserError(f"answer_loss: {name!r} is built in; register yours under another name")
    LOSSES[name] = AnswerLoss(loss, reads_candidates, reads_reference)
