"""Where an answer comes from: what its recommender says, what its LLM says, and what both say when something is left out.

An item is explained by asking again with a part of the question left out (Li, Monroe and Jurafsky, 2016, "Understanding Neural
Networks through Representation Erasure", arXiv:1612.08220, who erase parts of the input and look what the model does): the behavioural
tokens, the history's titles, or one item of the history. The candidates stay the same ones. A large change says that the model's answer
depends on what was left out, not that a user would say so; and an LLM may react oddly to prompts that training never showed.

All prompts of a question go through the LLM in batches of ``eval_batch_size``; nothing of the run is changed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from recbole_llara.evaluator.calibration import log_probabilities
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.model.answering import Questions, score
from recbole_llara.prompt.representation import Part, Representation
from recbole_llara.recommender.retriever import padded
from recbole_llara.serving.loaded import LoadedRun, Name, check_count
from recbole_llara.utils.errors import UserError

# What JSON and the command line tell of each number.
MEANINGS = {
    "log_prob": (
        "nats: the log-softmax, over the candidates shown, of the scores that rank them. An LLM's scores are the log-likelihoods of the "
        "candidates' answers, a recommender's its own, a sum's its log-probabilities"
    ),
    "rank": "from 1, among the candidates shown",
    "unseen_rank": (
        "the recommender's, from 1, among all items that it may propose: those that the history does not hold, or all of them where users "
        "take items again; equals share the better rank"
    ),
    "without_behavioural_tokens": (
        "the LLM's, asked with [PH] in place of each behavioural token of history and candidates, and without user token, score tokens and "
        "the recommender's order; all titles stay"
    ),
    "without_history_titles": (
        "the LLM's, asked with the history's items shown by their tokens alone, without title and fields; the candidates keep theirs, "
        "and answers are titles as before"
    ),
    "removals": (
        "the change of the explained item's log-probability in nats, and its rank afterwards, when one item is left out of the history "
        "that is read; below 0 = the item spoke for the answer. The candidates stay the same"
    ),
    "parts": (
        "of a sum, for each system: gave = weight x log-probability / temperature, in nats; all that was given, less the "
        "normaliser, is the sum's log-probability. lead = what it gave less what it gave the candidates on average: the leads add up to the "
        "log-probability less the candidates' mean"
    ),
    "is_placeholder_trained": (
        "whether a prompt of the run's training showed [PH]; where none did, it stands where it began, about the mean of the LLM's input "
        "vectors"
    ),
}
# What is left out of the LLM's prompts, by the field that tells it.
_ERASED = {
    "without_behavioural_tokens": Representation.without_recommender,
    "without_history_titles": Representation.without_history_titles,
}


@dataclass(frozen=True)
class Standing:
    """Where an item stands under one system."""

    log_prob: float  # nats; softmax over the candidates shown
    rank: int  # from 1, among the candidates shown


@dataclass(frozen=True)
class Change:
    """What leaving one item of the history out does to the explained item under one system."""

    change: float  # nats; log-probability afterwards less before, softmax over the same candidates
    rank: int  # afterwards, from 1, among the same candidates


@dataclass(frozen=True)
class FusedPart:
    """What one system gives to a sum."""

    gave: float  # nats; w log p / T
    lead: float  # nats; that less its mean over the candidates shown


@dataclass(frozen=True)
class ExplainedCandidate:
    """A candidate under all that was asked; None where something does not apply."""

    item_id: str
    title: str
    answer: Standing  # by what ``recommend`` ranks: the LLM, a sum, or a stock recommender
    llm: Standing | None
    without_behavioural_tokens: Standing | None
    without_history_titles: Standing | None
    recommender: Standing
    unseen_rank: int | None  # the recommender's among all unseen items, from 1; None of an item that the history holds
    parts: dict[str, FusedPart] | None  # by system


@dataclass(frozen=True)
class Removal:
    """One item of the history left out."""

    position: int  # from 1, the oldest of those that are read
    item_id: str
    title: str
    answer: Change
    llm: Change | None
    recommender: Change


@dataclass(frozen=True)
class FusedWeights:
    """By what a sum is made: ``log p = sum of weight * log p_s / temperature - normaliser``."""

    weights: dict[str, float]
    temperature: float
    normaliser: float  # nats; the same for all candidates


@dataclass(frozen=True)
class Explanation:
    """One item of an answer explained; what each number is stands in ``MEANINGS``."""

    system: str  # what answers: "LLaRA + SASRec"
    llm: str | None  # the LLM recommender's name
    recommender: str  # the recommender's; under an LLM that reads none of it, what proposes candidates
    item_id: str  # what is explained
    history: list[dict[str, str | None]]  # the items that are read, the oldest first
    unseen: int  # how many items unseen_rank is among
    is_placeholder_trained: bool | None  # None where no token was replaced by [PH], or the run itself trained nothing
    fusion: FusedWeights | None
    candidates: list[ExplainedCandidate]  # best first
    removals: list[Removal] | None  # the largest change first; None where a single item is read

    @property
    def explained(self) -> ExplainedCandidate:
        """The explained item."""
        return next(candidate for candidate in self.candidates if candidate.item_id == self.item_id)

    @property
    def meanings(self) -> dict[str, str]:
        """Of ``MEANINGS`` those that apply."""
        optional = {**vars(self.explained), **vars(self), "unseen_rank": self.unseen}
        return {name: meaning for name, meaning in MEANINGS.items() if optional.get(name, meaning) is not None}

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold of it, with its ``meanings``."""
        return {**asdict(self), "meanings": self.meanings}


@dataclass(frozen=True)
class _Asked:
    """What one system said of the candidates [C], asked as it is and with R - 1 histories that lack an item."""

    log_probs: torch.Tensor  # [R, C] float64, nats
    ranks: torch.Tensor  # [R, C] from 1

    def standing(self, column: int, row: int = 0) -> Standing:
        return Standing(float(self.log_probs[row, column]), int(self.ranks[row, column]))

    def change(self, column: int, row: int) -> Change:
        return Change(float(self.log_probs[row, column] - self.log_probs[0, column]), int(self.ranks[row, column]))


@torch.no_grad()
def explain(
    run: LoadedRun,
    history: Sequence[Name],
    item: Name | None = None,
    candidates: Sequence[Name] | None = None,
    k: int = 3,
    retrieve_k: int | None = None,
) -> Explanation:
    """Tell where one item of an answer comes from.

    Args:
        run: any loaded run; what it does not have, as a stock recommender has no LLM, is None in the explanation.
        history: titles or ids in order of time, at least one; the last MAX_ITEM_LIST_LENGTH are read, and left out one at a time.
        item: title or id of a candidate; None = the run's own first choice.
        candidates, retrieve_k: as for ``LoadedRun.recommend``.
        k: (int, items) of the history are told, those whose removal changes the item's log-probability most.

    Raises:
        UserError: what ``LoadedRun.recommend`` refuses, or an item that is no candidate.
    """
    check_count("k", k)
    seen = run.items("history", history)
    asked = run.asked([seen], None if candidates is None else [candidates], retrieve_k)[0][0]
    asked = asked[asked > 0]  # [C]
    if not len(asked):
        raise UserError("history: it holds every item, expected some that are left to recommend")
    unseen, unseen_ranks = _unseen_ranks(run, seen, asked)
    wanted = None if item is None else _column(run, item, asked, candidates is None)
    read = seen[-run.config["MAX_ITEM_LIST_LENGTH"] :]
    histories = [read, *([*read[:place], *read[place + 1 :]] for place in range(len(read)) if len(read) > 1)]

    of_recommender = run.retriever.candidate_scores(histories, asked.expand(len(histories), -1))  # [R, C]
    of_llm, of_erased = _llm_scores(run, histories, asked) if run.is_llm else (None, {})
    recommender = _asked(histories, asked, of_recommender)
    llm = None if of_llm is None else _asked(histories, asked, of_llm)
    erased = {what: _asked(histories[:1], asked, scores) for what, scores in of_erased.items()}
    answer, parts, fusion = llm or recommender, None, None
    if run.fusion is not None:
        answer = _asked(histories, asked, run.fusion.scores([of_recommender, of_llm]))
        parts, fusion = _parts(run, of_recommender[:1], of_llm[:1], answer.log_probs[0])
    if wanted is None:
        wanted = int(answer.ranks[0].argmin())

    def candidate(column: int) -> ExplainedCandidate:
        return ExplainedCandidate(
            **run.names.told(int(asked[column])),
            answer=answer.standing(column),
            llm=llm and llm.standing(column),
            **{what: erased[what].standing(column) if what in erased else None for what in _ERASED},
            recommender=recommender.standing(column),
            unseen_rank=unseen_ranks[column],
            parts=parts and parts[column],
        )

    removals = [
        Removal(
            position=row,
            **run.names.told(read[row - 1]),
            answer=answer.change(wanted, row),
            llm=llm and llm.change(wanted, row),
            recommender=recommender.change(wanted, row),
        )
        for row in range(1, len(histories))
    ]
    return Explanation(
        system=run.name,
        llm=run.config["model"] if run.is_llm else None,
        recommender=run.proposing,
        item_id=run.names.ids[int(asked[wanted])],
        history=[run.names.told(one) for one in read],
        unseen=unseen,
        is_placeholder_trained=_is_placeholder_trained(run) if "without_behavioural_tokens" in erased else None,
        fusion=fusion,
        candidates=[candidate(column) for column in answer.ranks[0].argsort().tolist()],
        removals=sorted(removals, key=lambda removal: -abs(removal.answer.change))[:k] or None,
    )


def _unseen_ranks(run: LoadedRun, history: Sequence[int], asked: torch.Tensor) -> tuple[int, list[int | None]]:
    """How many items the recommender could propose, and its rank of each candidate [C] among them, None of others."""
    scores = run.retriever.scores([history])[0]  # [N]
    is_unseen = run.retriever.may_be_proposed(len(scores))
    if not run.takes_again:
        is_unseen[history] = False
    ranks = 1 + (scores[is_unseen] > scores[asked][:, None]).sum(1)  # [C]
    told = zip(ranks.tolist(), is_unseen[asked].tolist(), strict=True)
    return int(is_unseen.sum()), [rank if is_there else None for rank, is_there in told]


def _column(run: LoadedRun, item: Name, asked: torch.Tensor, is_proposed: bool) -> int:
    """The place of an item among the candidates [C]."""
    found = run.names.find(item)
    places = (asked == found).nonzero()[:, 0].tolist()
    if places:
        return places[0]
    which = f"the {len(asked)} that the recommender proposes" if is_proposed else f"the {len(asked)} candidates"
    mend = "; name candidates with it, or raise retrieve_k" if is_proposed else ""
    raise UserError(f"item: {run.names.titles[found]!r} is not among {which}, expected one of them{mend}")


def _llm_scores(
    run: LoadedRun, histories: Sequence[Sequence[int]], asked: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What ``score`` ranks candidates [C] by: [R, C] for the histories; [1, C] for the first one without what prompts can lack."""
    model = run.model
    erased = {what: erase(model.representation) for what, erase in _ERASED.items()}
    erased = {what: representation for what, representation in erased.items() if representation is not None}
    rows = [*histories, *histories[:1] * len(erased)]
    questions = Questions(
        padded(rows, run.config["MAX_ITEM_LIST_LENGTH"]),
        asked.repeat(len(rows), 1),
        torch.zeros(len(rows), dtype=torch.int64),  # rows of no split
        (*(model.representation,) * len(histories), *erased.values()),
    )
    parts = [slice(first, first + run.batch_size) for first in range(0, len(rows), run.batch_size)]
    with model.evaluation_arithmetic():
        scores = torch.cat([score(model, questions.part(part)).scores.cpu() for part in parts])
    return scores[: len(histories)], {what: scores[row : row + 1] for row, what in enumerate(erased, len(histories))}


def _asked(histories: Sequence[Sequence[int]], asked: torch.Tensor, scores: torch.Tensor) -> _Asked:
    """Scores [R, C] of candidates [C] as log-probabilities, and ranked as ``recommend`` ranks them."""
    questions = question_keys(padded(histories, max(map(len, histories))))
    ranking = rank_candidates(scores, asked.expand_as(scores), questions)  # [R, C] items
    ranks = torch.empty_like(ranking)
    ranks[:, asked.argsort()] = 1 + ranking.argsort(1)
    return _Asked(log_probabilities(scores), ranks)


def _parts(
    run: LoadedRun, of_recommender: torch.Tensor, of_llm: torch.Tensor, log_probs: torch.Tensor
) -> tuple[list[dict[str, FusedPart]], FusedWeights]:
    """What each system gives to each candidate's sum, whose log-probabilities are [C], by their scores [1, C]."""
    fusion = run.fusion
    gave = torch.cat(fusion.weighted([of_recommender, of_llm])) / fusion.temperature  # [S, C]
    leads = gave - gave.mean(1, keepdim=True)
    normaliser = float(gave[:, 0].sum() - log_probs[0])
    columns = [
        {system: FusedPart(*pair) for system, pair in zip(fusion.systems, zip(*of_column, strict=True), strict=True)}
        for of_column in zip(gave.T.tolist(), leads.T.tolist(), strict=True)
    ]
    return columns, FusedWeights(dict(zip(fusion.systems, fusion.weights, strict=True)), fusion.temperature, normaliser)


def _is_placeholder_trained(run: LoadedRun) -> bool | None:
    """Whether the run's training showed [PH]; None where it trained nothing itself."""
    if run.config["epochs"] == 0 or run.config["checkpoint"] is not None:
        return None
    return any(Part.PLACEHOLDER in task.parts for stage in run.model.stages for task in (stage.hard, stage.easy))
