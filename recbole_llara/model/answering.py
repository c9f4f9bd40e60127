"""Rows to answers: the prompts of an LLM recommender, decoded as configured, and what they name."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_llara.data.hashing import numbers, row_keys
from recbole_llara.evaluator.answer import CandidateAnswers, match_titles
from recbole_llara.evaluator.decoding import answer_texts, decode_constrained, decode_generate
from recbole_llara.evaluator.scoring import score_candidates
from recbole_llara.prompt.encoding import IGNORED_LABEL, EncodedPrompts

if TYPE_CHECKING:
    from recbole_llara.model.base import LLMRecommender


def answer_rows(
    model: "LLMRecommender", history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor
) -> CandidateAnswers:
    """Answer each row by the model's decoding.

    Args:
        model: in evaluation mode.
        history: [B, L] item ids, 0-padded on the right.
        candidates: [B, C] item ids.
        rows: [B] row numbers, for draws.
    """
    if model.test_prompt == "all":
        scores = score_under_every_template(model, history, candidates, rows)
    else:
        is_first = model.test_prompt == "first"
        template_index = torch.zeros_like(rows) if is_first else model.template_index(rows, "evaluation", 0)
        prompts = _encode(model, history, candidates, template_index)
        if model.decoding == "generate":
            return _generate(model, prompts, candidates)
        if model.decoding == "constrained":
            chosen = decode_constrained(*_context(model, prompts, candidates)).cpu()
            items = candidates.gather(1, chosen[:, None])[:, 0]
            return CandidateAnswers(items=items, scores=None, texts=_texts(model, items.tolist()))
        scores = score_candidates(*_context(model, prompts, candidates)).cpu()  # [B, C]
    items = candidates.gather(1, scores.argmax(1)[:, None])[:, 0]
    return CandidateAnswers(items=items, scores=scores, texts=_texts(model, items.tolist()))


def score_under_every_template(
    model: "LLMRecommender", history: torch.Tensor, candidates: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
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
        scores = score_candidates(*_context(model, prompts, shown)).cpu()
        total.scatter_add_(1, order, scores.log_softmax(1))
    return total / len(model.encoder.templates)


def _encode(
    model: "LLMRecommender", history: torch.Tensor, candidates: torch.Tensor, template_index: torch.Tensor
) -> EncodedPrompts:
    return model.encoder.encode(history, candidates, None, model.representation, template_index).to(model.device)


def _context(model: "LLMRecommender", prompts: EncodedPrompts, candidates: torch.Tensor) -> tuple:
    """What the decodings over candidates read: LLM, embedded prompts, mask, positions, answers [B, C, A]."""
    answer_ids = model.encoder.answer_ids(candidates, model.representation).to(model.device)
    return model.llm, model.embed(prompts), prompts.attention_mask, prompts.position_ids, answer_ids


def _generate(model: "LLMRecommender", prompts: EncodedPrompts, candidates: torch.Tensor) -> CandidateAnswers:
    llm, inputs, attention_mask, _, answer_ids = _context(model, prompts, candidates)
    lengths = (answer_ids != IGNORED_LABEL).sum(2).amax(1)  # [B]
    end, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    tokens = decode_generate(llm, inputs, attention_mask, lengths, end, pad, in_step=model.is_sharded)
    texts = answer_texts(model.tokenizer, tokens)
    titles = [_texts(model, row) for row in candidates.tolist()]
    return CandidateAnswers(items=match_titles(texts, titles, candidates), scores=None, texts=texts)


def _texts(model: "LLMRecommender", items: list[int]) -> list[str]:
    """What names each item in an answer."""
    return [model.encoder.answer_text(item, model.representation) for item in items]
