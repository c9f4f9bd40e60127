"""What an LLM recommender reads of a frozen one: its item embeddings, and whom to ask what it concluded of a history.

Training may read learned items as if they were new (``as_new_share``), so that the LLM meets vectors and scores that are made out of texts
before it is asked about new items. Item i is then numbered N + i: it has a row of its own in the table that the projector reads, and in a copy
of the recommender, which reads histories by the rows that it learned.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from torch import nn

from recbole_llara.config.settings import EARLIER, NO_PRIOR, OWN, PLACEHOLDER, LossSettings, RecommenderSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.llm.item_tokens import centred, shuffled, standard_of
from recbole_llara.model.checks import is_tuned
from recbole_llara.prompt.curriculum import reads_recommender
from recbole_llara.prompt.representation import Part
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.drift import drift
from recbole_llara.recommender.frozen import Recommender, recommender_model
from recbole_llara.recommender.growing import set_items
from recbole_llara.recommender.new_items import NewItemVectors, TextFeatures, as_if_new, fitted_on, with_vectors
from recbole_llara.utils.errors import UserError

TextReader = Callable[[Sequence[str]], torch.Tensor]  # from n texts to what the LLM knows of them, [n, D]


@dataclass(frozen=True)
class Reading:
    """A frozen recommender as prompts and losses read it.

    Attributes:
        recommender, network, config: what is known of it, the recommender itself, and its own configuration.
        settings: how it is read.
        table: [N, d_rec] its item embeddings before they are ``centred``; None = no prompt shows them.
        conclude: what asks it for conclusions; None = nobody does.
        is_new: [N] bool, the items that it never learned and whose rows are not shown; None = the row of every item is.
        as_new: [N, d_rec] what every item would have, were it new; None = no row reads it.
        conclude_as_new: asks a copy that knows items as if they were new, too, numbered on from N; None = nobody does.
    """

    recommender: Recommender
    network: nn.Module
    config: Any
    settings: RecommenderSettings
    table: torch.Tensor | None
    conclude: Concluding | None
    is_new: torch.Tensor | None
    as_new: torch.Tensor | None = None
    conclude_as_new: Concluding | None = None

    @property
    def learned(self) -> torch.Tensor | None:
        """[N] bool, the items that count for the centre of the table; None = all of them."""
        return None if self.is_new is None else ~self.is_new

    @property
    def lacking(self) -> torch.Tensor | None:
        """[N] bool, the items whose behavioural token is the placeholder; None = of none."""
        is_placeholder = self.table is not None and self.settings.new_item_token == PLACEHOLDER
        return self.is_new if is_placeholder else None

    @property
    def made(self) -> torch.Tensor | None:
        """[M] the items whose vectors are made out of their texts; None where new items have none of their own."""
        has_own = self.table is None or self.is_new is None or self.lacking is not None
        return None if has_own else self.is_new.nonzero()[1:, 0]

    def new_items(self) -> tuple[str | None, int]:
        """What stands for items that the recommender never learned, None being their own rows; and how many there are."""
        if self.is_new is None:
            return None, 0
        kind, count = self.settings.new_item_token, self.settings.new_item_neighbours
        return f"{count} {kind}" if kind == "neighbours" else kind, int(self.is_new[1:].sum())


@dataclass(frozen=True)
class Readings:
    """How a model reads its recommenders, in answers and in training.

    Attributes:
        own: by the one that answers; None = no prompt shows what it knows.
        of_training: by the one with which training rows are read, where it is another.
        as_new_share: the share of training rows whose candidates are read as if they were new; 0 where nothing is trained.
    """

    own: Reading | None
    of_training: Reading | None
    as_new_share: float

    @property
    def in_training(self) -> Reading | None:
        """By which training rows are read."""
        return self.of_training or self.own

    def training_table(self) -> torch.Tensor | None:
        """What the projector reads in training: [N, d_rec], or [2N, d_rec] with items as if they were new; None = as in answers."""
        read = self.in_training
        if self.as_new_share:
            mean, deviation = standard_of(read.table, read.learned)
            return (torch.cat([read.table, read.as_new]) - mean) / deviation
        return None if self.of_training is None or read.table is None else centred(read.table, read.learned)

    def drift(self) -> dict[str, float] | None:
        """How far the item embeddings lie from those read in training; None where there are not two tables."""
        if self.of_training is None or self.of_training.table is None:
            return None
        return drift(*(centred(read.table, read.learned) for read in (self.of_training, self.own)))

    def conclude_by_mode(self) -> dict[bool, Concluding | None]:
        """Training mode or not -> what asks the recommender for conclusions."""
        read = self.in_training
        in_training = None if read is None else read.conclude_as_new or read.conclude
        return {True: in_training, False: None if self.own is None else self.own.conclude}


def read_recommenders(config: Any, data: PreparedData, shown: frozenset[Part], asks: bool, read_texts: TextReader) -> Readings:
    """Train or load the recommenders that a run's prompts and losses read.

    Args:
        config: of the run.
        data: of the run.
        shown: the parts that prompts show, see ``shown_parts``.
        asks: whether a prompt or a loss needs a recommender's conclusions.
        read_texts: how the LLM reads texts.
    """
    settings, is_learning = RecommenderSettings.from_config(config), is_tuned(config)
    is_shown = reads_recommender(config) and not draws_embeddings(config, shown)
    are_two = settings.recommender_rows == EARLIER and settings.recommender_at_test != EARLIER
    has_as_new = is_learning and is_shown and settings.as_new_share > 0
    parts = (Part.ITEM_EMBEDDING in shown, asks, Part.USER in shown)
    own = of_training = None
    if is_shown:
        own = read_recommender(config, data, *parts, read_texts, with_as_new=has_as_new and not are_two)
        kind, count = own.new_items()
        if kind is not None:
            getLogger().info(
                f"new_item_token {kind}: the {own.recommender.model} learned nothing of {count} of {data.dataset.item_num - 1} items"
            )
    if is_learning and (are_two if is_shown else has_prior(config)):
        of_training = read_recommender(config, data, *parts, read_texts, of_training=True, with_as_new=has_as_new)
    read = of_training or own
    return Readings(own, of_training, 0.0 if read is None or read.as_new is None else settings.as_new_share)


def draws_embeddings(config: Any, shown: frozenset[Part]) -> bool:
    """Whether prompts show item embeddings that are drawn at random and learned."""
    return Part.ITEM_EMBEDDING in shown and RecommenderSettings.from_config(config).item_embeddings == "random"


def has_prior(config: Any) -> bool:
    """Whether the loss adds what a recommender says of the candidates to the answers'."""
    return is_tuned(config) and LossSettings.from_config(config).listwise_prior != NO_PRIOR


def read_recommender(
    config: Any,
    data: PreparedData,
    has_table: bool,
    asks: bool,
    with_outputs: bool,
    read_texts: TextReader,
    of_training: bool = False,
    with_as_new: bool = False,
) -> Reading:
    """Train or load the recommender of a run, or the one with which its training rows are read, and give new items their vectors.

    Those of a run that is loaded come with its weights: in their place stand the recommender's own rows until then.

    Args:
        config: of the run.
        data: of the run.
        has_table: whether prompts show item embeddings.
        asks: whether a prompt or a loss needs its conclusions.
        with_outputs: whether its sequence output is among them.
        read_texts: how the LLM reads texts.
        of_training: see ``recommender_model``.
        with_as_new: whether training reads items by it as if they were new.
    """
    recommender, network, own = recommender_model(config, data, of_training)
    settings, table, as_new, is_made = RecommenderSettings.from_config(config), None, None, False
    is_new = None if settings.new_item_token == OWN else recommender.is_new
    if has_table:
        table = recommender.item_embeddings
        if config["shuffle_item_embeddings"]:
            table = shuffled(table, config["seed"], None if is_new is None else ~is_new)
        if settings.new_item_token != PLACEHOLDER and is_new is not None and (is_new[1:].any() or with_as_new):
            is_made = data.kept is None
            if is_made:
                texts = data.catalogue.texts()
                vectors = _fitted(table, is_new, texts, settings, read_texts)
                table = with_vectors(table, is_new, vectors, texts)
                as_new = as_if_new(table, is_new, vectors, texts) if with_as_new else None
            else:
                table = table.clone()
    conclude = Concluding(network, own, with_outputs, is_new) if asks else None
    if conclude is not None and is_made and not config["shuffle_item_embeddings"]:
        conclude.score_new_items(table)
    doubled = None if conclude is None or as_new is None else _doubled(conclude, as_new)
    return Reading(recommender, network, own, settings, table, conclude, is_new, as_new, doubled)


def _fitted(
    table: torch.Tensor, is_new: torch.Tensor, texts: Sequence[str], settings: RecommenderSettings, read_texts: TextReader
) -> NewItemVectors:
    """What makes vectors out of texts, fitted on the items of a table [N, d_rec] that its recommender learned."""
    learned = fitted_on(is_new)
    features = TextFeatures(read_texts, [texts[item] for item in learned.tolist()])
    return NewItemVectors(settings.new_item_token, features, table[learned], settings.new_item_neighbours)


def _doubled(conclude: Concluding, as_new: torch.Tensor) -> Concluding:
    """Asks a copy of a recommender whose items N + i have the rows ``as_new`` [N, d_rec]; a UserError where scores do not follow rows."""
    network, items = copy.copy(conclude.model), torch.arange(len(as_new), 2 * len(as_new))
    network._modules = dict(network._modules)  # all but its item table is shared
    try:
        set_items(network, conclude.config, items, as_new)
    except UserError as error:
        raise UserError(
            f"as_new_share: the scores of {type(network).__name__} do not come from its item table alone, so that it scores no item as if it "
            "were new; expected 0, or a rec_model such as SASRec, GRU4Rec or Caser"
        ) from error
    doubled = Concluding(network, conclude.config, conclude.with_outputs)
    if conclude.is_new is not None:
        doubled.is_new = torch.cat([conclude.is_new, torch.zeros_like(conclude.is_new)])
    return doubled
