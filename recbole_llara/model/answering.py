"""Questions to answers: the ways in which an LLM recommender answers, as functions that ``evaluator.answer.DECODINGS`` names.

The model is in evaluation mode. Candidates of one answer, as items of one title are, cannot be told apart: ``score`` and
``constrained`` take the one that a hash of (history, item) puts first, which knows neither target nor place; under ``generate``
none of them is named.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_llara.evaluator.answer import CandidateAnswers, match_titles
from recbole_llara.evaluator.ranking import question_keys, rank_candidates, settle_near_ties
from recbole_llara.llm.answer_tree import walk
from recbole_llara.llm.architecture import EmbeddedPrompts, uncompiled
from recbole_llara.llm.generation import answer_texts
from recbole_llara.llm.likelihood import score_candidates
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.representation import Part, Representation
from recbole_llara.utils.hashing import numbers, row_keys


@dataclass(frozen=True)
class Questions:
    """The questions of a batch, which a decoding answers; tensors on the CPU."""

    history: torch.Tensor  # [B, L] item ids, 0-padded on the right
    candidates: torch.Tensor  # [B, C] item ids
    rows: torch.Tensor  # [B] row numbers, for draws
    representations: tuple[Representation, ...] | None = None  # B, how the prompts are written; None = as the model's

    def part(self, rows: slice) -> "Questions":
        """Some of them."""
        return Questions(*(values if values is None else values[rows] for values in vars(self).values()))

    def alone(self, number: int) -> "Questions":
        """One of them, as a batch of one."""
        return self.part(slice(number, number + 1))


def score(model: Any, questions: Questions) -> CandidateAnswers:
    """Rank the candidates by the likelihood of their answers."""
    scores = candidate_scores(model, questions)  # [B, C]
    if model.settles_near_ties:
        with uncompiled(model.is_compiled):  # code of its own for one row would cost more than it saves
            # Read anew as well as alone: what is kept of a prompt was rounded by the rows that stood beside it.
            scores = settle_near_ties(scores, lambda row: candidate_scores(model, questions.alone(row), True)[0], ties_too=True)
    return ranked_answers(model, questions, scores)


def constrained(model: Any, questions: Questions) -> CandidateAnswers:
    """Greedy decoding in which only tokens may follow that continue a candidate's answer: always valid.

    Every likelihood that it could need is among those that score the candidates: no token-by-token loop over the LLM.
    """
    answer_ids, log_probs = answer_likelihoods(model, evaluation_prompts(model, questions), questions.candidates)
    chosen = walk(answer_ids, log_probs.cpu())  # [B]
    is_chosen = (answer_ids == answer_ids[torch.arange(len(chosen)), chosen][:, None]).all(2)  # [B, C]
    return replace(ranked_answers(model, questions, is_chosen.float()), scores=None)


def generate(model: Any, questions: Questions) -> CandidateAnswers:
    """Let the LLM write, greedily, and see which of the candidates each text names."""
    prompts, candidates = evaluation_prompts(model, questions), questions.candidates
    _, embedded, answer_ids = answer_context(model, prompts, candidates, model.representation)
    lengths = (answer_ids != IGNORED_LABEL).sum(2).amax(1)  # [B]
    tokenizer, end = model.tokenizer, model.tokenizer.eos_token_id
    tokens = model.write_tokens(embedded, lengths)
    texts = answer_texts(tokenizer, tokens)
    # Compared with what the tokenizer makes of the candidates' answers: some lose a character, and no text that they spell would
    # be such a title.
    spelt = answer_texts(tokenizer, answer_ids.masked_fill(answer_ids == end, IGNORED_LABEL).flatten(0, 1))
    count = candidates.shape[1]
    items = match_titles(texts, [spelt[first : first + count] for first in range(0, len(spelt), count)], candidates)
    outcomes = [
        "exact" if item else "unmatched" if text.strip() else "empty" for text, item in zip(texts, items.tolist(), strict=True)
    ]
    return CandidateAnswers(items=items, scores=None, texts=texts, outcomes=outcomes)


def evaluation_prompts(model: Any, questions: Questions) -> EncodedPrompts:
    """The prompts of an evaluation, on the model's device; under eval_template ``all`` those of the first template."""
    is_drawn = model.eval_template == "sampled"
    template_index = model.template_index(questions.rows, "evaluation", 0) if is_drawn else torch.zeros_like(questions.rows)
    return _encode(model, questions, questions.candidates, template_index)


def answer_likelihoods(model: Any, prompts: EncodedPrompts, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of the candidates' answers [B, C, A], -100 on padding, and their log-probabilities [B, C, A], 0 there."""
    context = answer_context(model, prompts, candidates, model.representation)
    return context[-1], model.read_answers(*context)


def candidate_scores(model: Any, questions: Questions, is_anew: bool = False) -> torch.Tensor:
    """Log-likelihoods [B, C] of the candidates' answers in nats, on the CPU; under eval_template ``all`` their mean over templates.

    The first template sees the candidates as they come, each further one in an order of its own, drawn by (seed, row); under
    ``candidate_order: recommender`` all see one order.

    Args:
        is_anew: whether every token is read, where ``model.prefixes`` would know some.
    """
    if model.eval_template != "all":
        return _scores(model, evaluation_prompts(model, questions), questions.candidates, is_anew)
    candidates, rows = questions.candidates, questions.rows
    total = torch.zeros(candidates.shape)
    for number in range(len(model.encoder.templates)):
        order = torch.arange(candidates.shape[1]).expand_as(candidates)
        if number:
            keys = row_keys(model.seed, f"candidate order/{number}", 0, rows.numpy())
            draws = numbers(keys[:, None], np.arange(candidates.shape[1])[None])  # [B, C]
            order = torch.from_numpy(draws.argsort(1))
        reordered = candidates.gather(1, order)
        prompts = _encode(model, questions, reordered, torch.full_like(rows, number))
        total.scatter_add_(1, order, _scores(model, prompts, reordered, is_anew).log_softmax(1))
    return total / len(model.encoder.templates)


def ranked_answers(model: Any, questions: Questions, scores: torch.Tensor) -> CandidateAnswers:
    """The answers of a decoding that scores all candidates [B, C], higher being better; the best of each row is named."""
    items = rank_candidates(scores, questions.candidates, question_keys(questions.history))[:, 0]
    representation, texts = model.representation, None
    if representation.answer is not Part.LETTER:  # which says nothing without its row
        texts = [model.encoder.answer_text(item, representation) for item in items.tolist()]
    return CandidateAnswers(items=items, scores=scores, texts=texts)


def answer_context(
    model: Any, prompts: EncodedPrompts, candidates: torch.Tensor, representation: Representation
) -> tuple[nn.Module, EmbeddedPrompts, torch.Tensor]:
    """What is read: the LLM, embedded prompts and, on the CPU, the candidates' answers [B, C, A]."""
    return model.llm, model.embed(prompts), model.encoder.answer_ids(candidates, representation, prompts.listed)


def _scores(model: Any, prompts: EncodedPrompts, candidates: torch.Tensor, is_anew: bool) -> torch.Tensor:
    context = answer_context(model, prompts, candidates, model.representation)
    keeps = model.prefixes is not None and not is_anew
    return score_candidates(*context, model.prefixes.reader(model, prompts) if keeps else model.read_answers).cpu()


def _encode(model: Any, questions: Questions, candidates: torch.Tensor, template_index: torch.Tensor) -> EncodedPrompts:
    history, own = questions.history, questions.representations
    listed = model.listed(history, candidates, model.representation)
    if own is not None:
        is_listed = torch.tensor([representation.in_recommender_order for representation in own])
        listed = torch.where(is_listed[:, None], listed, candidates)
    return model.encoder.encode(history, listed, None, own or model.representation, template_index).to(model.device)
