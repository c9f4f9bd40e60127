"""What each evaluated row asked and answered: collected as tensors, a batch at a time, spelt out only at the end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from recbole_llara.evaluator.answer import OUTCOMES


@dataclass(frozen=True)
class EvaluatedCases:
    """Rows of one evaluation, in the order of the data loader; all on the CPU, items by RecBole's internal ids.

    Attributes:
        rows: [n] int64, index of the row in its split.
        users: [n] int64, internal user ids.
        histories: [n, L] int64, 0 = padding.
        candidates: [n, C] int64.
        targets: [n] int64.
        answers: [n] int64, the chosen item, 0 = no valid answer.
        scores: [n, C] float32 aligned with ``candidates``, or None where the answer ranks nothing.
        texts: the n answers as the model wrote them, or None where it chose without writing.
        outcomes: how each of them came out, of ``answer.OUTCOMES``, or None likewise.
    """

    rows: torch.Tensor
    users: torch.Tensor
    histories: torch.Tensor
    candidates: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    scores: torch.Tensor | None
    texts: tuple[str, ...] | None
    outcomes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def correct(self) -> np.ndarray:
        """[n] bool, whether the answer is the target."""
        return (self.answers == self.targets).numpy()

    @property
    def valid(self) -> np.ndarray:
        """[n] bool, whether the answer names a candidate."""
        return (self.answers != 0).numpy()

    @property
    def outcome_counts(self) -> dict[str, int] | None:
        """How many answers came out in which way, in the order of ``answer.OUTCOMES``; None where nothing was written."""
        if self.outcomes is None:
            return None
        counts = Counter(self.outcomes)
        return {outcome: counts[outcome] for outcome in OUTCOMES}

    def records(
        self, user_tokens: Sequence[str], item_tokens: Sequence[str], titles: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Spell the rows out for ``cases.jsonl``.

        Args:
            user_tokens: external user ids by internal id.
            item_tokens: N external item ids by internal id.
            titles: N titles by internal id.

        Yields:
            Rows in the order of their numbers. ``answer`` is an external id or None, ``outcome`` None where nothing was written,
            ``scores`` a list in the order of ``candidates`` or None.
        """
        for index in self.rows.argsort().tolist():
            history = [item for item in self.histories[index].tolist() if item]
            candidates = self.candidates[index].tolist()
            target, answer = int(self.targets[index]), int(self.answers[index])
            title = titles[answer] if answer else None
            yield {
                "row": int(self.rows[index]),
                "user": str(user_tokens[int(self.users[index])]),
                "history": [str(item_tokens[item]) for item in history],
                "history_titles": [titles[item] for item in history],
                "candidates": [str(item_tokens[item]) for item in candidates],
                "candidate_titles": [titles[item] for item in candidates],
                "target": str(item_tokens[target]),
                "target_title": titles[target],
                "answer_text": title if self.texts is None else self.texts[index],
                "answer": str(item_tokens[answer]) if answer else None,
                "answer_title": title,
                "outcome": None if self.outcomes is None else self.outcomes[index],
                "valid": answer != 0,
                "correct": answer == target,
                "scores": None if self.scores is None else [round(score, 6) for score in self.scores[index].tolist()],
            }


@dataclass
class CaseCollector:
    """Gathers the batches of one evaluation."""

    batches: list[EvaluatedCases] = field(default_factory=list)

    def add(self, batch: EvaluatedCases) -> None:
        """Keep one batch."""
        self.batches.append(batch)

    def collect(self) -> EvaluatedCases:
        """All batches as one.

        Raises:
            ValueError: no batch was added.
        """
        if not self.batches:
            raise ValueError("no rows were evaluated")
        columns = zip(*(vars(batch).values() for batch in self.batches), strict=True)
        return EvaluatedCases(*(_joined(values) for values in columns))


def _joined(values: Sequence[torch.Tensor | tuple[str, ...] | None]) -> torch.Tensor | tuple[str, ...] | None:
    """A column of consecutive batches; None where they have none."""
    if values[0] is None:
        return None
    return torch.cat(list(values)) if isinstance(values[0], torch.Tensor) else tuple(chain.from_iterable(values))
