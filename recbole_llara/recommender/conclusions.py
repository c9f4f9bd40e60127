"""What a frozen recommender concludes from histories: its sequence output, and how it scores a row's candidates."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from recbole_llara.llm.item_tokens import Conclusions
from recbole_llara.recommender.growing import replace_rows
from recbole_llara.recommender.retriever import asked_of
from recbole_llara.utils.errors import UserError


class Concluding:
    """Asks a recommender of RecBole's kind, as of a user whom it has never seen: a prompt does not say whose it is.

    Args:
        model: the recommender, frozen, in evaluation mode.
        config: its own.
        with_outputs: whether its sequence output is wanted too.
        is_new: [N] bool, the items that it never learned, of which it is to say nothing; None = it is asked of all.

    Attributes:
        is_new: the same; None from the time when it has vectors of them, see ``score_new_items``.
        output_size: d_rec of the sequence output; None where it is not wanted.

    Raises:
        UserError: the sequence output is wanted, but the recommender makes none of one vector a history.
    """

    def __init__(self, model: nn.Module, config: Any, with_outputs: bool, is_new: torch.Tensor | None = None) -> None:
        self.model, self.config, self.with_outputs = model.eval(), config, with_outputs
        self.is_new = self.never_learned = None if is_new is None else is_new.to(next(model.parameters()).device)
        self.output_size: int | None = None
        if with_outputs:
            one = torch.ones(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
            _, output = self._read(nn.functional.pad(one, (0, config["MAX_ITEM_LIST_LENGTH"] - 1)))
            if output is None or output.dim() != 2 or len(output) != 1:
                found = "none" if output is None else f"one of shape {list(output.shape)} for one history"
                raise UserError(
                    f"user_token: the sequence output of {type(model).__name__} is {found}, expected [1, d]: choose a rec_model such as "
                    "SASRec, GRU4Rec or Caser, or user_token False"
                )
            self.output_size = output.shape[1]

    def score_new_items(self, table: torch.Tensor) -> None:
        """Have the recommender score the items that it never learned by rows that were made for them.

        Of one whose scores do not come from its item table alone they stay items of which it says nothing.

        Args:
            table: [N, d_rec] with these rows; the others are not read.
        """
        if self.never_learned is not None and len(items := self.never_learned.nonzero()[1:, 0]):
            is_scored = replace_rows(self.model, self.config, items, table.to(items.device)[items])
            self.is_new = None if is_scored else self.never_learned

    def add_items(self, count: int) -> None:
        """Count further items, which its model has by now, among those that it never learned."""
        device = next(self.model.parameters()).device
        known = torch.zeros(self.model.n_items - count, dtype=torch.bool, device=device) if self.is_new is None else self.is_new
        self.is_new = torch.cat([known, torch.ones(count, dtype=torch.bool, device=device)])

    @torch.no_grad()
    def __call__(self, history: torch.Tensor, candidates: torch.Tensor) -> Conclusions:
        """Conclusions from histories [B, L], 0-padded on the right, about candidates [B, C]; on the recommender's device.

        The sequence output comes at mean 0 and unit variance of its d_rec numbers: recommenders differ in its scale. A candidate that
        it never learned has the score of the lowest that it did, so that it is no better than any; where all are new, all are equal.
        """
        with torch.autocast(history.device.type, enabled=False):
            all_scores, output = self._read(history)
            scores = all_scores.view(len(history), -1).gather(1, candidates).float()  # [B, C]
            is_new = None if self.is_new is None else self.is_new[candidates]
            if is_new is not None:
                lowest = scores.masked_fill(is_new, torch.inf).amin(1, keepdim=True)
                scores = torch.where(is_new, lowest.masked_fill(is_new.all(1, keepdim=True), 0), scores)
            outputs = layer_norm(output.float(), output.shape[1:]) if self.with_outputs else None
        return Conclusions(outputs, scores.log_softmax(1), candidates, is_new)

    def _read(self, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores of all items, and what the recommender's ``forward`` gave them from."""
        nobody = torch.zeros(len(history), dtype=torch.int64, device=history.device)
        outputs, forward = [], self.model.forward

        def kept(*arguments: Any, **named: Any) -> Any:
            outputs.append(forward(*arguments, **named))
            return outputs[-1]

        self.model.forward = kept  # RecBole's models call it by this name
        try:
            scores = self.model.full_sort_predict(asked_of(self.config, history, nobody))
        finally:
            del self.model.forward  # a copy of the model would have it, bound to this one
        found = outputs[-1] if outputs else None
        return scores, found if isinstance(found, torch.Tensor) else None
