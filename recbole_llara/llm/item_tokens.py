"""The vectors that stand in a prompt's slots: behavioural tokens, item-id tokens, [DSR], the placeholder [PH], and what the
recommender concluded from a history.

They lie beside the LLM's vocabulary, never in it, so that a catalogue of any size leaves its embedding and its head
as they are.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.representation import SLOT_PARTS, Part
from recbole_llara.prompt.tokens import tokenise_inside
from recbole_llara.utils.transfer import send


class Projector(nn.Module):
    """``Proj(e_s) = W2 GELU(W1 e_s + b1) + b2``, with W1 of d_rec x d_llm and W2 of d_llm x d_llm (LLaRA eq. 5)."""

    def __init__(self, rec_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(rec_dim, llm_dim)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, item_embeddings: torch.Tensor) -> torch.Tensor:
        """[..., d_rec] of any floating type to [..., d_llm]."""
        # Recommenders are kept in fp32 while a projector may be held in another type.
        hidden = self.linear_1(item_embeddings.to(self.linear_1.weight.dtype))  # [..., d_llm]
        return self.linear_2(self.act(hidden))  # [..., d_llm]


def merge_item_embeddings(
    inputs_embeds: torch.Tensor,
    slot_rows: torch.Tensor,
    slot_columns: torch.Tensor,
    item_embeds: torch.Tensor,
) -> torch.Tensor:
    """Overwrite the item slots of embedded prompts by the items' projected embeddings (LLaRA, eq. 6).

    The gradient of a slot flows to its item embedding, that of every other place to ``inputs_embeds``,
    which is left as it was.

    Example with B = 3 rows, T = 4 tokens and S = 3 slots (the second row has none)::

        inputs_embeds   t00 t01 t02 t03      slot_rows     0  0  2
                        t10 t11 t12 t13      slot_columns  1  3  2
                        t20 t21 t22 t23      item_embeds   a  b  c

        merged          t00  a  t02  b
                        t10 t11 t12 t13
                        t20 t21  c  t23

    Args:
        inputs_embeds: [B, T, D] embeddings of the prompts' tokens.
        slot_rows, slot_columns: [S] int64, where each slot is; no place may occur twice.
        item_embeds: [S, D] what each slot holds, cast to the type of ``inputs_embeds``.

    Raises:
        ValueError: the number of slots is not the number of item embeddings, or their widths differ.
    """
    if slot_rows.shape != slot_columns.shape or slot_rows.dim() != 1:
        raise ValueError(f"slot rows {tuple(slot_rows.shape)}, slot columns {tuple(slot_columns.shape)}: expected [S] twice")
    if item_embeds.shape[0] != slot_rows.shape[0]:
        raise ValueError(f"{slot_rows.shape[0]} item slots but {item_embeds.shape[0]} item embeddings: expected one each")
    if item_embeds.shape[-1] != inputs_embeds.shape[-1]:
        raise ValueError(
            f"item embeddings are {item_embeds.shape[-1]} wide, prompt tokens {inputs_embeds.shape[-1]}: "
            "expected the projector's output as wide as the LLM's input"
        )
    return inputs_embeds.index_put((slot_rows, slot_columns), item_embeds.to(inputs_embeds.dtype))


MADE = "made_embeddings"  # the tensor of rows that were made for new items, in a checkpoint


@dataclass(frozen=True)
class Conclusions:
    """What a recommender concludes from the histories of B rows, and of which candidates."""

    outputs: torch.Tensor | None  # [B, d_rec] its sequence output, at unit variance; None where nobody reads it
    log_probs: torch.Tensor  # [B, C] the log-softmax of its scores over the candidates, in nats
    candidates: torch.Tensor  # [B, C] their items
    is_new: torch.Tensor | None = None  # [B, C] bool, of which it says nothing; None = of none

    def has_nothing(self, rows: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """[S] bool, whether nothing is said of candidates [S] of rows [S]; where ``is_new`` is known."""
        return (self.is_new[rows] & (self.candidates[rows] == items[:, None])).any(1)

    def features(self, rows: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of candidates [S] of rows [S]: the rank [S], 0 = best, and [S, 3] log-probability, probability and 1 / (1 + rank)."""
        columns = (self.candidates[rows] == items[:, None]).int().argmax(1)
        own = self.log_probs[rows, columns]  # [S]
        ranks = (self.log_probs[rows] > own[:, None]).sum(1)  # equals share the better rank
        return ranks, torch.stack([own, own.exp(), 1 / (1 + ranks)], 1)


class ItemTokens(nn.Module):
    """What fills the slots of a prompt, one vector of the LLM's input space for each.

    These are ``placeholder`` [D], the same for every item; ``projector`` from d_rec to D (LLaRA eq. 5); ``description`` [D]
    and ``item_ids`` [N, D], [DSR] and [IIDn] (RSLLM example 4.1); ``user_projector`` from d_rec to D; and ``score_projector`` from the
    3 features of ``Conclusions`` to D, or ``ranks`` [C, D]. What no prompt of the run shows is None.

    Args:
        vocabulary: [V, D] the LLM's tokens as its embedding layer gives them out; every new vector starts around their centre.
        n_items: N, the padding item among them.
        parts: what the prompts of the run show.
        item_embeddings: [N, d_rec] what the projector reads; needed for ``Part.ITEM_EMBEDDING``.
        trains_item_embeddings: whether they learn with the projector; else they are frozen.
        output_size: d_rec of the recommender's sequence output; needed for ``Part.USER``.
        rank_vectors: [C, D] what the vectors of the ranks start as, to tell ``Part.SCORE`` by a vector for each rank; None = by the
            projected features.
        training_embeddings: [N, d_rec] what the projector reads in training mode; None = the same.
        without_token: [N] bool, whose behavioural token is the placeholder; None = of no item.
        without_training_token: [N] bool, likewise in training mode, beside ``training_embeddings``.
        standard: mean [d_rec] and deviation [1] by which the projector reads frozen ``item_embeddings``, see ``standard_of``: so the
            table stays the recommender's own memory. They are kept with the weights. None = as they are.
        made: [M] int64, the items whose rows of ``item_embeddings`` were made for this run, out of their texts: these rows are kept with
            the weights too, so that a run that is loaded need not make them again. None = no item's.
    """

    def __init__(
        self,
        vocabulary: torch.Tensor,
        n_items: int,
        parts: frozenset[Part],
        item_embeddings: torch.Tensor | None,
        trains_item_embeddings: bool = False,
        output_size: int | None = None,
        rank_vectors: torch.Tensor | None = None,
        training_embeddings: torch.Tensor | None = None,
        without_token: torch.Tensor | None = None,
        without_training_token: torch.Tensor | None = None,
        standard: tuple[torch.Tensor, torch.Tensor] | None = None,
        made: torch.Tensor | None = None,
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
        for name, value in zip(("item_mean", "item_deviation"), standard or (None, None), strict=True):
            self.register_buffer(name, value)
        self.register_buffer("made", made, persistent=False)
        self.register_buffer(MADE, None if made is None else item_embeddings[made])
        if made is not None:
            self.register_load_state_dict_post_hook(lambda *_: self._place_made())
        self.register_buffer("training_embeddings", training_embeddings, persistent=False)
        self.register_buffer("without_token", without_token, persistent=False)
        self.register_buffer("without_training_token", without_training_token, persistent=False)
        self.description = nn.Parameter(centre.clone()) if Part.DESCRIPTION in parts else None
        spread = vocabulary.std(0).cpu()  # [D]
        # As words that join the vocabulary would be drawn.
        self.item_ids = nn.Parameter(centre + spread * torch.randn(n_items, len(centre))) if Part.ITEM_ID in parts else None
        self.user_projector = self.score_projector = self.ranks = None
        if Part.USER in parts:
            if output_size is None:
                raise ValueError(
                    "prompts with a user token, but no output_size: expected that of the recommender's sequence output"
                )
            self.user_projector = Projector(output_size, len(centre))
            self.user_projector.linear_2.bias.data.copy_(centre)
        if Part.SCORE in parts and rank_vectors is None:
            self.score_projector = Projector(3, len(centre))
            self.score_projector.linear_2.bias.data.copy_(centre)
        elif Part.SCORE in parts:
            self.ranks = nn.Parameter(rank_vectors.clone())

    def _place_made(self) -> None:
        self.item_embeddings[self.made] = self.made_embeddings

    def item_vectors(self, items: torch.Tensor) -> torch.Tensor:
        """[..., d_rec] what the projector reads of items [...]."""
        rows = self.item_embeddings[items]
        return rows if self.item_mean is None else (rows - self.item_mean) / self.item_deviation

    @torch.no_grad()
    def set_items(self, items: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Behavioural tokens of items that come after training, numbered on from the last, and other ones of some that came before.

        An item-id token, which is learned for each item, is the mean of the others for a new one.

        Args:
            items: [M] int64, ascending.
            rows: [M, d_rec] in the space of ``item_embeddings``; None = the placeholder stands for them.
        """
        if self.projector is not None:
            table = self.item_embeddings
            grown = with_rows(table.detach(), items, table.new_zeros(len(items), table.shape[1]) if rows is None else rows)
            self.item_embeddings = nn.Parameter(grown) if isinstance(table, nn.Parameter) else grown
            if rows is None or self.without_token is not None:
                known = torch.zeros(len(table), dtype=torch.bool) if self.without_token is None else self.without_token
                lacks = torch.full((len(items),), rows is None)
                self.without_token = with_rows(known.to(table.device), items, lacks)
        if self.item_ids is not None:
            new = items[items >= len(self.item_ids)]
            mean = self.item_ids[1:].mean(0, keepdim=True)
            self.item_ids = nn.Parameter(torch.cat([self.item_ids.detach(), mean.expand(len(new), -1)]))

    def forward(
        self,
        slot_parts: torch.Tensor,
        slot_items: torch.Tensor,
        slot_rows: torch.Tensor | None = None,
        conclusions: Conclusions | None = None,
    ) -> torch.Tensor:
        """The vectors [S, D] of slots that hold ``slot_parts`` [S] on the CPU, places in ``SLOT_PARTS``, of items [S].

        The placeholder stands where there is no behavioural token for an item, and where the recommender has nothing to say of it.

        Args:
            slot_rows: [S] whose slots they are; read for ``Part.USER`` and ``Part.SCORE``, as are ``conclusions``.

        Raises:
            ValueError: a slot holds what was not among ``parts``.
        """
        vectors = self.placeholder.expand(len(slot_parts), -1)  # [S, D]
        for number in slot_parts.unique().tolist():
            part = SLOT_PARTS[number]
            if part is Part.PLACEHOLDER:
                continue
            slots = send((slot_parts == number).nonzero(as_tuple=True)[0], slot_items.device)  # [s]
            items, has_own = slot_items[slots], self.training and self.training_embeddings is not None
            lacking = self.without_training_token if has_own else self.without_token
            if part is Part.ITEM_EMBEDDING and lacking is not None:
                slots = slots[~lacking[items]]
            elif part is Part.SCORE and conclusions is not None and conclusions.is_new is not None:
                slots = slots[~conclusions.has_nothing(slot_rows[slots], items)]
            items = slot_items[slots]
            if part is Part.ITEM_EMBEDDING and self.projector is not None:
                filled = self.projector(self.training_embeddings[items] if has_own else self.item_vectors(items))
            elif part is Part.DESCRIPTION and self.description is not None:
                filled = self.description.expand(len(items), -1)
            elif part is Part.ITEM_ID and self.item_ids is not None:
                filled = self.item_ids[items]
            elif part is Part.USER and self.user_projector is not None:
                filled = self.user_projector(conclusions.outputs[slot_rows[slots]])
            elif part is Part.SCORE and self.ranks is not None:
                ranks = conclusions.features(slot_rows[slots], items)[0]
                filled = self.ranks[ranks.clamp(max=len(self.ranks) - 1)]  # a list longer than in training shares the last
            elif part is Part.SCORE and self.score_projector is not None:
                filled = self.score_projector(conclusions.features(slot_rows[slots], items)[1])
            else:
                raise ValueError(f"a slot of {part.value}, but these item tokens were made without it")
            vectors = vectors.index_put((slots,), filled.to(vectors.dtype))
        return vectors


def with_rows(table: torch.Tensor, items: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A table [N, ...] with other rows [M, ...] for items [M], which may be numbered on from N."""
    last = int(items.max()) if len(items) else -1
    grown = torch.cat([table, table.new_zeros(max(0, last + 1 - len(table)), *table.shape[1:])])
    return grown.index_copy(0, items.to(table.device), rows.to(table))


def number_vectors(tokenizer: PreTrainedTokenizerBase, vocabulary: torch.Tensor, count: int) -> torch.Tensor:
    """[count, D] float32, on the CPU: the LLM's own vectors of "1", "2" and so on in a prompt, each the mean of its tokens'.

    Args:
        vocabulary: [V, D].
    """
    tokens = tokenise_inside(tokenizer, [f" {number}" for number in range(1, count + 1)])
    return torch.stack([vocabulary[own].float().mean(0) for own in tokens]).cpu()


def centred(table: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """A recommender's table [N, d_rec], centred and at unit variance.

    Recommenders differ in the scale of their tables by an order of magnitude; one number for all keeps the order of distances.

    Args:
        counted: [N] bool, the rows whose mean and variance these are; None = all but the padding item's row 0.
    """
    mean, deviation = standard_of(table, counted)
    return (table - mean) / deviation


def standard_of(table: torch.Tensor, counted: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean [d_rec] and the deviation [1] of ``centred``."""
    counted = slice(1, None) if counted is None else counted
    mean = table[counted].mean(0)
    return mean, (table - mean)[counted].std()[None]


def shuffled(table: torch.Tensor, seed: int, dealt: torch.Tensor | None = None) -> torch.Tensor:
    """The rows of [N, d_rec] dealt to other items, the rest keeping their own.

    Args:
        dealt: [N] bool, which; None = all but the padding item's row 0.
    """
    rows = torch.arange(1, len(table)) if dealt is None else dealt.nonzero()[:, 0]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return table.index_copy(0, rows, table[rows][order])
