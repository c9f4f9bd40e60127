"""Evaluation over each row's own candidates, for stock recommenders and LLMs alike, inside RecBole's Trainer.

RecBole's loop, collector and metrics stay; only the score row of each question is made here: candidates in the
order of the answer, everything else minus infinity, and item 0 on top where an LLM's answer named no candidate.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, runtime_checkable

import recbole.trainer.trainer
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from recbole.data.interaction import Interaction
from recbole.utils import calculate_valid_score

from recbole_llara.checkpoint.weights import Checkpoint
from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD
from recbole_llara.evaluator.answer import CandidateAnswers, EvaluatedCases, joined
from recbole_llara.evaluator.ranking import question_keys, rank_candidates, score_rows, settle_near_ties
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import json_ready
from recbole_llara.utils.processes import Processes, processes_of

T = TypeVar("T")
ALONE = Processes()
NO_BOARD = SimpleNamespace(add_scalar=lambda *_: None, add_hparams=lambda *_: None)  # in the place of a TensorBoard writer
MEASURED_AT_ONCE = 256  # rows of answers that are there already


@runtime_checkable
class AnswersCandidates(Protocol):
    """A model that answers a batch of questions itself rather than by scoring every item."""

    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Answer each row of ``interaction`` from its candidates."""


class CandidateTrainer:
    """Goes before one of RecBole's Trainers, whose ``evaluate`` then asks for one of the candidates of every row.

    Where answers name one item and rank nothing (generated text), metrics at K > 1 are left out of the result: there is no
    second place to look at. Where the model answers itself, the rows of a batch are dealt out among ``processes``.

    Attributes:
        best_epoch: the epoch, counted from 0, of the checkpoint on disk; None before there is one.
        last_cases: what the latest ``evaluate`` asked and got.
    """

    best_epoch: int | None = None
    last_cases: EvaluatedCases | None = None

    def __init__(self, config: Any, model: torch.nn.Module, processes: Processes = ALONE) -> None:
        self.processes = processes
        self._rows_at_once: int | None = None  # where memory has run out
        with _tensorboard_of(processes_of(config)):
            super().__init__(config, model)

    def write_weights(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the model's weights, with facts that JSON can hold; each trainer has its own format."""
        raise NotImplementedError

    def read_weights(self, path: str | Path) -> Checkpoint:
        """Load weights that ``write_weights`` wrote into the model, strictly.

        Raises:
            UserError: no such checkpoint, or one of another model, other keys or other data.
        """
        raise NotImplementedError

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        facts = {"epoch": epoch, "model": self.config["model"], "dataset": self.config["dataset"]}
        score = json_ready(float(self.best_valid_score))
        self.write_weights(path, {**facts, "valid_metric": self.valid_metric, "best_valid_score": score})
        self.best_epoch = epoch if epoch >= 0 else None
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def load_checkpoint(self, path: str | Path) -> None:
        """``read_weights``, told to the log."""
        checkpoint = self.read_weights(path)
        self.logger.info(f"Loading what was trained from {path} (epoch {checkpoint.facts['epoch']})")

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> "OrderedDict[str, float] | None":
        """Evaluate as RecBole does, on a validation or test loader, whose rows carry ``candidate_id_list`` [rows, C].

        Args:
            eval_data: the loader.
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
        targets, histories = interaction[item_field], interaction[item_field + self.config["LIST_SUFFIX"]]  # [B], [B, L]
        questions = question_keys(histories)  # [B]
        if isinstance(self.model, AnswersCandidates):
            answers = self._model_answers(interaction)
        else:
            answers = self._stock_answers(interaction, questions, candidates)
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

    def _stock_answers(self, interaction: Interaction, questions: torch.Tensor, candidates: torch.Tensor) -> CandidateAnswers:
        scores = settle_near_ties(
            self._candidate_scores(interaction, candidates),
            lambda row: self._candidate_scores(interaction[row : row + 1], candidates[row : row + 1])[0],
        )  # [B, C]
        return CandidateAnswers(items=rank_candidates(scores, candidates, questions)[:, 0], scores=scores)

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

    def _model_answers(self, interaction: Interaction) -> CandidateAnswers:
        """The answers of a model that answers itself, its rows dealt out among processes."""
        first, end = self.processes.bounds(len(interaction))
        is_sharded = getattr(self.model, "is_sharded", False)  # every process then passes through the model equally often
        own = self._answers_in_memory(interaction[first:end], is_sharded) if first < end else None
        if own is None and is_sharded:
            self.model.answer_candidates(interaction[:1])
        return joined([part for part in self.processes.gather(own) if part is not None])

    def _answers_in_memory(self, interaction: Interaction, is_sharded: bool) -> CandidateAnswers:
        """Where memory runs out, half as many rows are answered at once from now on."""
        parts: list[CandidateAnswers] = []
        answered = 0
        while answered < len(interaction):
            rows = interaction[answered : answered + (self._rows_at_once or len(interaction))]
            answers = in_memory(len(rows) > 1 and not is_sharded, self.model.answer_candidates, rows)
            if answers is None:
                self._rows_at_once = math.ceil(len(rows) / 2)
                getLogger().warning(f"Out of memory: {len(rows)} rows are answered {self._rows_at_once} at a time from now on")
            else:
                parts.append(answers.cpu())
                answered += len(rows)
        return joined(parts)


def measure(collector: Any, evaluator: Any, n_items: int, cases: EvaluatedCases) -> "OrderedDict[str, float]":
    """RecBole's metrics of answers that are there already, with scores of all candidates.

    Args:
        collector, evaluator: RecBole's, such as a trainer's, the first with the training rows collected.
        n_items: N, with the padding item.
        cases: the answers.
    """
    ranking = rank_candidates(cases.scores, cases.candidates, question_keys(cases.histories), named=cases.items)  # [R, C]
    for part in torch.arange(len(ranking)).split(MEASURED_AT_ONCE):
        scores = score_rows(ranking[part], n_items).to(collector.device)
        collector.eval_batch_collect(scores, None, torch.arange(len(part)), cases.targets[part])
    return evaluator.evaluate(collector.get_data_struct())


def in_memory(may_shrink: bool, compute: Callable[..., T], *arguments: object) -> T | None:
    """What is computed; None where memory ran out and less may be computed at once."""
    try:
        return compute(*arguments)
    except RuntimeError as error:
        if not may_shrink or not should_reduce_batch_size(error):
            raise
    clear_device_cache(garbage_collection=True)  # here, where the error's frames are gone
    return None


@contextmanager
def _tensorboard_of(processes: Processes) -> Iterator[None]:
    """RecBole's trainers always make a writer of log files; processes that write nothing get one that writes none."""
    made = recbole.trainer.trainer.get_tensorboard
    if not processes.is_main:
        recbole.trainer.trainer.get_tensorboard = lambda logger: NO_BOARD
    try:
        yield
    finally:
        recbole.trainer.trainer.get_tensorboard = made


def _check_named(rows: torch.Tensor, candidates: torch.Tensor, items: torch.Tensor) -> None:
    foreign = (items != 0) & ~(candidates == items.unsqueeze(1)).any(dim=1)  # [B]
    if foreign.any():
        row = int(foreign.nonzero()[0])
        raise ValueError(
            f"row {int(rows[row])} answers item {int(items[row])}, expected one of its candidates "
            f"{candidates[row].tolist()} or 0 for an invalid answer"
        )
