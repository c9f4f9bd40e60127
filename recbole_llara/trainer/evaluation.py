"""Evaluation over each row's own candidates, for stock recommenders and LLMs alike, inside RecBole's Trainer.

RecBole's loop, collector and metrics stay; only the score row of each question is made here: candidates in the
order of the answer, everything else minus infinity, and item 0 on top where an LLM's answer named no candidate.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import recbole.trainer.trainer
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from recbole.data.interaction import Interaction
from recbole.utils import calculate_valid_score

from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD
from recbole_llara.evaluator.answer import CandidateAnswers, EvaluatedCases, joined
from recbole_llara.evaluator.ranking import question_keys, rank_candidates, score_rows, settle_near_ties
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import Processes, processes_of

ALONE = Processes()


@runtime_checkable
class AnswersCandidates(Protocol):
    """A model that answers a batch of questions itself rather than by scoring every item."""

    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Answer each row of ``interaction`` from its candidates."""


class CandidateTrainer:
    """Goes before one of RecBole's Trainers, whose ``evaluate`` then asks for one of the candidates of every row.

    Where answers name one item and rank nothing (generated text), metrics at K > 1 are left out of the result: there is no
    second place to look at.

    Args:
        config: the run's RunConfig.
        model: the recommender.
        processes: among which the rows of a batch are dealt out, where the model answers itself.

    Attributes:
        last_cases: what the latest ``evaluate`` asked and got.
    """

    last_cases: EvaluatedCases | None = None

    def __init__(self, config: Any, model: torch.nn.Module, processes: Processes = ALONE) -> None:
        self.processes = processes
        self._model_answers = ModelAnswers(processes)
        with nullcontext() if processes_of(config).is_main else _without_tensorboard():
            super().__init__(config, model)

    def load_checkpoint(self, path: str | Path) -> None:
        """Load the weights of ``path`` into the model; each trainer has its own format."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> "OrderedDict[str, float] | None":
        """Evaluate as RecBole does, on ``eval_data`` whose rows carry ``candidate_id_list`` [rows, C].

        Args:
            eval_data: a validation or test loader.
            load_best_model: whether to load ``model_file``, or the best checkpoint of this training, first.

        Raises:
            Diverged: scores that are not finite.
            ValueError: an answer that is no candidate.
        """
        if load_best_model:
            self.load_checkpoint(model_file or self.saved_model_file)
        self._cases: list[EvaluatedCases] = []
        result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        if result is None:
            return None
        self.last_cases = joined(self._cases)
        if self.last_cases.scores is None:
            return OrderedDict((key, value) for key, value in result.items() if key.rpartition("@")[2] in ("1", key))
        return result

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, "OrderedDict[str, float]"]:
        result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        if self.valid_metric not in result:
            raise UserError(
                f"valid_metric {self.valid_metric} was not measured, only {', '.join(result)}: choose one of these "
                "(answers that rank nothing have metrics at 1 only)."
            )
        return calculate_valid_score(result, self.valid_metric), result

    def _full_sort_batch_eval(
        self, batched_data: tuple[Interaction, None, torch.Tensor, torch.Tensor]
    ) -> tuple[Interaction, torch.Tensor, torch.Tensor, torch.Tensor]:
        interaction, _, positive_u, positive_i = batched_data
        interaction = interaction.to(self.device)
        rows, candidates = interaction[ROW_FIELD], interaction[CANDIDATE_FIELD]  # [B], [B, C]
        item_field = self.config["ITEM_ID_FIELD"]
        targets = interaction[item_field]  # [B]
        _check_targets(rows, candidates, targets)
        histories = interaction[item_field + self.config["LIST_SUFFIX"]]  # [B, L]
        questions = question_keys(histories)  # [B]
        answers = self._answer(interaction, questions, candidates)
        items = answers.items.to(self.device)  # [B]
        if answers.scores is None:
            ranking = items.unsqueeze(1)  # [B, 1]
            _check_named(rows, candidates, items)
        else:
            ranking = rank_candidates(answers.scores.to(self.device), candidates, questions, named=items)  # [B, C]
        asked = {"rows": rows, "histories": histories, "candidates": candidates, "targets": targets}
        users = interaction[self.config["USER_ID_FIELD"]]
        self._cases.append(EvaluatedCases(**vars(answers), **asked, users=users).cpu())
        return interaction, score_rows(ranking, self.tot_item_num), positive_u, positive_i

    def _answer(self, interaction: Interaction, questions: torch.Tensor, candidates: torch.Tensor) -> CandidateAnswers:
        if isinstance(self.model, AnswersCandidates):
            return self._model_answers.to(interaction, self.model)
        scores = settle_near_ties(
            self._candidate_scores(interaction, candidates),
            lambda row: self._candidate_scores(interaction[row : row + 1], candidates[row : row + 1])[0],
        )  # [B, C]
        return CandidateAnswers(items=rank_candidates(scores, candidates, questions)[:, 0], scores=scores, texts=None)

    def _candidate_scores(self, interaction: Interaction, candidates: torch.Tensor) -> torch.Tensor:
        """Scores [B, C] of a stock model: from its scores of all items, or item by item where it has no such method."""
        try:
            scores = self.model.full_sort_predict(interaction).view(-1, self.tot_item_num)  # [B, N]
        except NotImplementedError:
            pairs = interaction.repeat_interleave(candidates.size(1))  # B * C rows
            pairs.update(self.item_tensor[candidates.flatten().to(self.item_tensor[self.config["ITEM_ID_FIELD"]].device)])
            if len(pairs) <= self.test_batch_size:
                return self.model.predict(pairs).view_as(candidates)
            return self._spilt_predict(pairs, len(pairs)).view_as(candidates)
        return scores.gather(1, candidates)


class ModelAnswers:
    """Answers of a model that answers itself, its rows dealt out among processes.

    Args:
        processes: of the run.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._rows_at_once: int | None = None  # where memory has run out

    def to(self, interaction: Interaction, model: AnswersCandidates) -> CandidateAnswers:
        """The answers to a batch of rows, from all processes."""
        is_sharded = getattr(model, "is_sharded", False)  # every process then passes through the model equally often
        first, end = self.processes.bounds(len(interaction))
        own = self._within_memory(interaction[first:end], model, is_sharded) if first < end else None
        if own is None and is_sharded:
            model.answer_candidates(interaction[:1])
        return joined([part for part in self.processes.gather(own) if part is not None])

    def _within_memory(self, interaction: Interaction, model: AnswersCandidates, is_sharded: bool) -> CandidateAnswers:
        """Where memory runs out, half as many rows are answered at once from now on."""
        parts: list[CandidateAnswers] = []
        answered = 0
        while answered < len(interaction):
            rows = interaction[answered : answered + (self._rows_at_once or len(interaction))]
            try:
                parts.append(model.answer_candidates(rows).cpu())
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or len(rows) == 1 or is_sharded:
                    raise
                self._rows_at_once = math.ceil(len(rows) / 2)
                getLogger().warning(f"Out of memory: {len(rows)} rows are answered {self._rows_at_once} at a time from now on")
            else:
                answered += len(rows)
                continue
            clear_device_cache(garbage_collection=True)  # here, where the error's frames are gone
        return joined(parts)


class _NoBoard:
    """A TensorBoard writer for processes that write nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values, **keys: None


@contextmanager
def _without_tensorboard() -> Iterator[None]:
    """RecBole's trainers make a writer of files, unasked; one that is made within writes none."""
    made = recbole.trainer.trainer.get_tensorboard
    recbole.trainer.trainer.get_tensorboard = lambda logger: _NoBoard()
    try:
        yield
    finally:
        recbole.trainer.trainer.get_tensorboard = made


def _check_targets(rows: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> None:
    count = (candidates == targets.unsqueeze(1)).sum(dim=1)  # [B]
    if (count != 1).any():
        row = int((count != 1).nonzero()[0])
        raise ValueError(
            f"row {int(rows[row])} holds its target {int(targets[row])} {int(count[row])} times among its candidates "
            f"{candidates[row].tolist()}, expected once: check candidate_file, or clear the saved candidate sets"
        )


def _check_named(rows: torch.Tensor, candidates: torch.Tensor, items: torch.Tensor) -> None:
    foreign = (items != 0) & ~(candidates == items.unsqueeze(1)).any(dim=1)  # [B]
    if foreign.any():
        row = int(foreign.nonzero()[0])
        raise ValueError(
            f"row {int(rows[row])} answers item {int(items[row])}, expected one of its candidates "
            f"{candidates[row].tolist()} or 0 for an invalid answer"
        )
