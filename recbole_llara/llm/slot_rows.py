"""What fills the slots of a run's prompts, as rows of a table: the tokens that ``llm.widened`` adds to an LLM, and prompts made of them.

A vector that depends on the question itself, as the user token does, is no row. RecBole-free.
"""

from dataclasses import dataclass

import torch

from recbole_llara.llm.item_tokens import Conclusions, ItemTokens
from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.representation import ITEM_SLOT_PARTS, SLOT_PARTS, Part, Representation
from recbole_llara.utils.errors import UserError


@dataclass(frozen=True)
class SlotRows:
    """Where each part begins among R rows: one row, or one of each item, or of each rank."""

    first: dict[str, int]  # by the part's value
    n_ranks: int = 0

    def of(self, prompts: EncodedPrompts, conclusions: Conclusions | None) -> torch.Tensor:
        """[S] the row of each slot of some prompts, on the CPU: what ``ItemTokens`` gives out for it stands there.

        Args:
            conclusions: of the prompts' histories and candidates; needed where candidates have ranks.
        """
        rows = torch.full((len(prompts.slot_parts),), self.first.get(Part.PLACEHOLDER.value, 0))
        slot_rows, slot_items = prompts.slot_rows.cpu(), prompts.slot_items.cpu()
        for number in prompts.slot_parts.unique().tolist():
            part, slots = SLOT_PARTS[number], (prompts.slot_parts == number).nonzero(as_tuple=True)[0]
            places = torch.zeros(len(slots), dtype=torch.int64)
            if part is Part.SCORE:
                if conclusions.is_new is not None:
                    slots = slots[~conclusions.has_nothing(slot_rows[slots], slot_items[slots])]
                ranks = conclusions.features(slot_rows[slots], slot_items[slots])[0]
                places = ranks.clamp(max=self.n_ranks - 1)  # a list longer than in training shares the last
            elif part in ITEM_SLOT_PARTS:
                places = slot_items[slots]
            rows[slots] = self.first[part.value] + places
        return rows


@torch.no_grad()
def slot_table(item_tokens: ItemTokens, n_items: int, representation: Representation) -> tuple[torch.Tensor, SlotRows]:
    """The vectors [R, D] of all that prompts of a representation show in slots, and where each part begins.

    [PH] is among them wherever there is a slot: it stands for what is left out of a prompt.

    Args:
        item_tokens: in evaluation mode.
        n_items: N, the padding item among them.

    Raises:
        UserError: a vector is made anew for each question.
    """
    shown = [part for part in SLOT_PARTS if part in representation.shown]
    if Part.USER in shown or (Part.SCORE in shown and item_tokens.ranks is None):
        key = "user_token: found True" if Part.USER in shown else "recommender_score_token: found log_prob"
        raise UserError(
            f"{key}, whose vector is made anew for each question, so that it is no token of a vocabulary; expected a run with user_token "
            "False and recommender_score_token none or rank; this one answers with backend local"
        )
    tables, first, count, n_ranks = [], {}, 0, 0
    for part in dict.fromkeys([Part.PLACEHOLDER, *shown] if shown else []):
        first[part.value] = count
        if part is Part.SCORE:
            tables.append(item_tokens.ranks)
            n_ranks = len(item_tokens.ranks)
        else:
            items = torch.arange(n_items if part in ITEM_SLOT_PARTS else 1, device=item_tokens.placeholder.device)
            tables.append(item_tokens(torch.full((len(items),), SLOT_PARTS.index(part)), items))
        count += len(tables[-1])
    width = len(item_tokens.placeholder)
    table = torch.cat([table.detach().float().cpu() for table in tables]) if tables else torch.zeros(0, width)
    return table, SlotRows(first, n_ranks)


def token_rows(
    prompts: EncodedPrompts, slots: SlotRows, vocabulary: int, conclusions: Conclusions | None = None
) -> list[list[int]]:
    """Prompts of B rows as token ids without padding, row r of the slots being the token ``vocabulary`` + r."""
    ids = prompts.input_ids.cpu().clone()
    if len(prompts.slot_parts):
        ids[prompts.slot_rows.cpu(), prompts.slot_columns.cpu()] = vocabulary + slots.of(prompts, conclusions)
    return [row[is_token].tolist() for row, is_token in zip(ids, prompts.attention_mask.cpu().bool(), strict=True)]
