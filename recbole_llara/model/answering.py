"""Rows to answers: the prompts of an LLM recommender, decoded as configured, and what they name."""

from typing import Any

import numpy as np
import torch

from recbole_llara.evaluator.answer import CandidateAnswers, match_titles
from recbole_llara.evaluator.ranking import question_keys, rank_candidates, settle_near_ties
from recbole_llara.llm.architecture import uncompiled
from recbole_llara.llm.generation import answer_texts, decode_constrained, decode_generate
from recbole_llara.llm.likelihood import score_candidates
from recbole_llara.prompt.encoding import IGNORED_LABEL, EncodedPrompts
from recbole_llara.utils.hashing import numbers, row_keys


def answer_rows(model: Any, history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor) -> CandidateAnswers:
    """Answer each row by the model's decoding.

    Candidates of one answer, as items of one title are, cannot be told apart: ``score`` and ``constrained`` take the one
    that a hash of (history, item) puts first, which knows neither target nor place; under ``generate`` none of them is named.

    Args:
        model: in evaluation mode.
        history: [B, L] item ids, 0-padded on the right.
        candidates: [B, C] item ids.
        rows: [B] row numbers, for draws.
    """
    questions = question_keys(history)
    if model.decoding == "generate":
        return generate_answers(model, shown_prompts(model, history, candidates, rows), candidates)
    if model.decoding == "constrained":
        context = _context(model, shown_prompts(model, history, candidates, rows), candidates)
        chosen, answer_ids = decode_constrained(*context, model.read_answers).cpu(), context[-1].cpu()  # [B], [B, C, A]
        is_chosen = (answer_ids == answer_ids[torch.arange(len(rows)), chosen][:, None]).all(2)  # [B, C]
        items = rank_candidates(is_chosen.float(), candidates, questions)[:, 0]
        return CandidateAnswers(items=items, scores=None, texts=_texts(model, items.tolist()))
    scores = _scores(model, history, candidates, rows)  # [B, C]
    if model.settles_near_ties:
        with uncompiled(model.is_compiled):  # code of its own for one row would cost more than it saves
            scores = settle_near_ties(
                scores,
                lambda row: _scores(model, *(rows_of[row : row + 1] for rows_of in (history, candidates, rows)))[0],
                ties_too=True,
            )
    items = rank_candidates(scores, candidates, questions)[:, 0]
    return CandidateAnswers(items=items, scores=scores, texts=_texts(model, items.tolist()))


def _scores(model: Any, history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[B, C] nats, as ``test_prompt`` says."""
    if model.test_prompt == "all":
        return score_under_every_template(model, history, candidates, rows)
    return score_candidates(
        *_context(model, shown_prompts(model, history, candidates, rows), candidates), model.read_answers
    ).cpu()


def shown_prompts(model: Any, history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor) -> EncodedPrompts:
    """The prompts of an evaluation, on the model's device; under test_prompt ``all`` those of the first template.

    Args:
        model, history, candidates, rows: as for ``answer_rows``.
    """
    is_drawn = model.test_prompt == "sampled"
    template_index = model.template_index(rows, "evaluation", 0) if is_drawn else torch.zeros_like(rows)
    return _encode(model, history, candidates, template_index)


def score_under_every_template(model: Any, history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities among the candidates, averaged over the domain's templates.

    The first template sees the candidates as they come, each further one in an order of its own, drawn by (seed, row).

    Args:
        model, history, candidates, rows: as for ``answer_rows``.

    Returns:
        [B, C] nats.
    """
    total = torch.zeros(candidates.shape)
    for number in range(len(model.encoder.templates)):
        order = torch.arange(candidates.shape[1]).expand_as(candidates)
        if number:
            keys = row_keys(model.seed, f"candidate order/{number}", 0, rows.numpy())
            draws = numbers(keys[:, None], np.arange(candidates.shape[1])[None])  # [B, C]
            order = torch.from_numpy(draws.argsort(1))
        shown = candidates.gather(1, order)
        prompts = _encode(model, history, shown, torch.full_like(rows, number))
        scores = score_candidates(*_context(model, prompts, shown), model.read_answers).cpu()
        total.scatter_add_(1, order, scores.log_softmax(1))
    return total / len(model.encoder.templates)


def _encode(model: Any, history: torch.Tensor, candidates: torch.Tensor, template_index: torch.Tensor) -> EncodedPrompts:
    return model.encoder.encode(history, candidates, None, model.representation, template_index).to(model.device)


def _context(model: Any, prompts: EncodedPrompts, candidates: torch.Tensor) -> tuple:
    """What the decodings over candidates read: LLM, embedded prompts, mask, positions, answers [B, C, A]."""
    answer_ids = model.encoder.answer_ids(candidates, model.representation).to(model.device)
    return model.llm, model.embed(prompts), prompts.attention_mask, prompts.position_ids, answer_ids


def generate_answers(model: Any, prompts: EncodedPrompts, candidates: torch.Tensor) -> CandidateAnswers:
    """Let the LLM write, greedily, and see which of the candidates [B, C] each text names.

    Args:
        model: in evaluation mode.
        prompts: of B rows, as from ``shown_prompts``.
        candidates: the items of those prompts.
    """
    llm, inputs, attention_mask, _, answer_ids = _context(model, prompts, candidates)
    lengths = (answer_ids != IGNORED_LABEL).sum(2).amax(1)  # [B]
    end, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    with uncompiled(model.is_compiled):  # with a cache, every block would be compiled by itself
        tokens = decode_generate(llm, inputs, attention_mask, lengths, end, pad, in_step=model.is_sharded)
    texts = answer_texts(model.tokenizer, tokens)
    items = match_titles(texts, _spelt_answers(model, answer_ids), candidates)
    outcomes = [
        "exact" if item else "unmatched" if text.strip() else "empty" for text, item in zip(texts, items.tolist(), strict=True)
    ]
    return CandidateAnswers(items=items, scores=None, texts=texts, outcomes=outcomes)


def _spelt_answers(model: Any, answer_ids: torch.Tensor) -> list[list[str]]:
    """What the tokenizer makes of each candidate's answer [B, C, A], as it does of a generated one.

    Not the titles: some tokenizers lose a character, and no text that they spell would be such a title.
    """
    answers = answer_ids.masked_fill(answer_ids == model.tokenizer.eos_token_id, IGNORED_LABEL)
    spelt, count = answer_texts(model.tokenizer, answers.flatten(0, 1)), answer_ids.shape[1]
    return [spelt[start : start + count] for start in range(0, len(spelt), count)]


def _texts(model: Any, items: list[int]) -> list[str]:
    """What names each item in an answer."""
    return [model.encoder.answer_text(item, model.representation) for item in items]
