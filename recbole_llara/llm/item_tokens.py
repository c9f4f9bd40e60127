"""The vectors that stand in a prompt's slots: behavioural tokens, item-id tokens, [DSR] and the placeholder [PH].

They lie beside the LLM's vocabulary, never in it, so that a catalogue of any size leaves its embedding and its head
as they are. RecBole-free.
"""

import torch
from torch import nn

from recbole_llara.llm.projector import Projector
from recbole_llara.prompt.representation import SLOT_PARTS, Part


class ItemTokens(nn.Module):
    """What fills the slots of a prompt, one vector of the LLM's input space for each.

    Args:
        vocabulary: [V, D] the LLM's tokens as its embedding layer gives them out; every new vector starts around their centre.
        n_items: N, the padding item among them.
        parts: what the prompts of the run show; a vector that none of them shows is not made.
        item_embeddings: [N, d_rec] what the projector reads; needed for ``Part.ITEM_EMBEDDING``.
        trains_item_embeddings: whether they learn with the projector; else they are frozen.

    Attributes:
        placeholder: [D] [PH], the same for every item.
        projector: from d_rec to D (LLaRA eq. 5), or None.
        description: [D] [DSR] (RSLLM example 4.1), or None.
        item_ids: [N, D] the tokens [IIDn] (RSLLM example 4.1), or None.

    Raises:
        ValueError: behavioural tokens are shown, but there are no item embeddings.
    """

    def __init__(
        self,
        vocabulary: torch.Tensor,
        n_items: int,
        parts: frozenset[Part],
        item_embeddings: torch.Tensor | None,
        trains_item_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if Part.ITEM_EMBEDDING in parts and item_embeddings is None:
            raise ValueError("prompts with behavioural tokens, but no item embeddings: expected [N, d_rec]")
        vocabulary = vocabulary.detach().float()
        centre = vocabulary.mean(0).cpu()  # [D]
        self.placeholder = nn.Parameter(centre.clone())
        self.projector = None
        if Part.ITEM_EMBEDDING in parts:
            if trains_item_embeddings:
                self.item_embeddings = nn.Parameter(item_embeddings.clone())
            else:
                self.register_buffer("item_embeddings", item_embeddings, persistent=False)
            self.projector = Projector(item_embeddings.shape[1], len(centre))
            # Behavioural tokens start around the centre of the LLM's input space, where the placeholder stands.
            self.projector.linear_2.bias.data.copy_(centre)
        self.description = nn.Parameter(centre.clone()) if Part.DESCRIPTION in parts else None
        self.item_ids = None
        if Part.ITEM_ID in parts:
            spread = vocabulary.std(0).cpu()  # [D]
            # As a word that joins the vocabulary would be drawn.
            self.item_ids = nn.Parameter(centre + spread * torch.randn(n_items, len(centre)))

    def forward(self, slot_parts: torch.Tensor, slot_items: torch.Tensor) -> torch.Tensor:
        """The vectors of S slots.

        Args:
            slot_parts: [S] what each holds, as its place in ``SLOT_PARTS``.
            slot_items: [S] the item of each.

        Returns:
            [S, D]

        Raises:
            ValueError: a slot holds what was not among ``parts``.
        """
        vectors = self.placeholder.expand(len(slot_parts), -1)  # [S, D]
        for number in slot_parts.unique().tolist():
            if SLOT_PARTS[number] is Part.PLACEHOLDER:
                continue
            slots = (slot_parts == number).nonzero(as_tuple=True)[0]  # [s]
            filled = self._vectors(SLOT_PARTS[number], slot_items[slots])
            vectors = vectors.index_put((slots,), filled.to(vectors.dtype))
        return vectors

    def _vectors(self, part: Part, items: torch.Tensor) -> torch.Tensor:
        """[s, D] what stands in slots of one kind, for items [s]."""
        if part is Part.ITEM_EMBEDDING and self.projector is not None:
            return self.projector(self.item_embeddings[items])
        if part is Part.DESCRIPTION and self.description is not None:
            return self.description.expand(len(items), -1)
        if part is Part.ITEM_ID and self.item_ids is not None:
            return self.item_ids[items]
        raise ValueError(f"a slot of {part.value}, but these item tokens were made without it")


def centred(table: torch.Tensor) -> torch.Tensor:
    """A recommender's table, centred and at unit variance: one number for all of it, so that distances keep their order.

    Recommenders differ in the scale of their tables by an order of magnitude.

    Args:
        table: [N, d_rec], row 0 the padding item's, which counts for nothing.
    """
    moved = table - table[1:].mean(0)
    return moved / moved[1:].std()


def shuffled(table: torch.Tensor, seed: int) -> torch.Tensor:
    """The rows of [N, d_rec] dealt to other items, the padding item keeping its own."""
    order = torch.randperm(len(table) - 1, generator=torch.Generator().manual_seed(seed))
    return torch.cat([table[:1], table[1:][order]])
