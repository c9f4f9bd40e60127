"""The LLM of a run as a folder that vLLM serves: merged, and with the run's behavioural tokens in its vocabulary.

transformers loads the folder too: it is a causal LM of the architecture that it was, whose last tokens are items.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from recbole_llara.checkpoint.weights import META
from recbole_llara.llm.architecture import causal_lm, input_embeddings
from recbole_llara.llm.likelihood import score_candidates
from recbole_llara.llm.slot_rows import slot_table, token_rows
from recbole_llara.llm.widened import silent_token, widen, without_copies
from recbole_llara.model.answering import Questions, answer_context, evaluation_prompts
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.engine_client import Served
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.serving.loaded import LoadedRun
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import file_sha256

ASKED = 4  # questions by which a server is told from one of another model
TOLERANCE = {
    torch.float32: 1e-2,
    torch.float16: 0.3,
    torch.bfloat16: 0.5,
}  # nats, of an answer: what rounded weights may move it by


@torch.no_grad()
def write_served(loaded: LoadedRun, llm: PreTrainedModel, checkpoint: Path, folder: Path, dtype: str) -> Served:
    """Write a run's LLM with its tokens for an engine, and what a client is to know of it.

    Args:
        loaded: the run.
        llm: its tuned LLM, plain and in float32; it is changed.
        checkpoint: the exported one.
        folder: to be made.
        dtype: of the weights that are written.

    Raises:
        UserError: a prompt shows what is no constant, or the LLM's vocabulary cannot be widened.
    """
    model = loaded.model
    table, slots = slot_table(model.item_tokens, model.n_items, model.representation)
    questions = _questions(loaded)
    prompts = evaluation_prompts(model, questions)
    answer_ids = model.encoder.answer_ids(questions.candidates, model.representation, prompts.listed)  # [B, C, A]
    with model.evaluation_arithmetic():
        expected = score_candidates(
            *answer_context(model, prompts, questions.candidates, model.representation), model.read_answers
        ).cpu()
        silent = _silent(model, questions)
    vocabulary = input_embeddings(llm).num_embeddings
    if len(table):
        widen(llm, table, silent)
        _check_untied(llm)
    llm.to(getattr(torch, dtype))
    conclusions = None if prompts.asked is None else model.conclude(*prompts.asked)
    told = Served(
        name=f"{loaded.config['model']}-{loaded.config['dataset']}-{file_sha256(checkpoint / META)[:8]}".lower(),
        checkpoint=file_sha256(checkpoint / META),
        n_items=model.n_items,
        vocabulary=vocabulary,
        rows=len(table),
        slots=slots,
        silent=silent,
        prompts=tuple(map(tuple, token_rows(prompts, slots, vocabulary, conclusions))),
        answers=tuple(
            tuple(tuple(token for token in answer if token != IGNORED_LABEL) for answer in row) for row in answer_ids.tolist()
        ),
        log_probs=tuple(map(tuple, expected.tolist())),
    )
    _check_answers(llm.eval(), told, TOLERANCE[getattr(torch, dtype)])
    llm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    told.write(folder)
    return told


def _questions(loaded: LoadedRun) -> Questions:
    """A few histories and candidates, drawn among the run's items."""
    n_items, config = loaded.model.n_items, loaded.config
    count = min(config["candidate_num"], n_items - 1)
    draws = torch.Generator().manual_seed(0)
    drawn = torch.stack([1 + torch.randperm(n_items - 1, generator=draws) for _ in range(ASKED)])  # [B, N - 1]
    history = drawn[:, : config["MAX_ITEM_LIST_LENGTH"]]
    return Questions(history, drawn.flip(1)[:, :count], torch.zeros(ASKED, dtype=torch.int64))


def _silent(model: LLMRecommender, questions: Questions) -> int:
    """The token that is least likely where an answer is, in answers to questions."""
    representation, first = model.representation, torch.zeros(len(questions.history), dtype=torch.int64)
    listed = model.listed(questions.history, questions.candidates, representation)
    prompts = model.encoder.encode(questions.history, listed, questions.candidates[:, 0], representation, first).to(
        model.device
    )
    return silent_token(causal_lm(model.llm), prompts.labels, model.embed(prompts))


def _check_untied(llm: PreTrainedModel) -> None:
    """Refuse an architecture that makes table and head one, whatever its configuration says."""
    with torch.device("meta"):
        built = type(llm)._from_config(type(llm.config).from_dict(llm.config.to_dict()))
    if built.get_input_embeddings().weight is built.get_output_embeddings().weight:
        raise UserError(
            f"for: {type(llm).__name__} predicts tokens by its input table alone, so that items in it would be predicted too, expected an LLM that "
            "can have a head of its own (tie_word_embeddings False); choose another llm_path, or backend local"
        )


def _check_answers(llm: PreTrainedModel, told: Served, tolerance: float) -> None:
    """See, by one plain pass an answer, that the LLM answers as the run does; a UserError where it does not."""
    for prompt, answers, expected in zip(told.prompts, told.answers, told.log_probs, strict=True):
        for answer, log_prob in list(zip(answers, expected, strict=True))[:2]:
            tokens = torch.tensor([[*prompt, *answer]], device=llm.device)
            logits = llm(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(1)  # [A, V + R]
            found = sum(
                without_copies(float(of[token]), float(of[told.silent]), told.rows)
                for of, token in zip(logits, answer, strict=True)
            )
            if not abs(found - log_prob) <= tolerance * max(1, len(answer)):
                raise UserError(
                    f"for: {type(llm).__name__} answers differently with items in its vocabulary (likelihoods move by "
                    f"{abs(found - log_prob):.2g} nats), expected the same answers; choose another llm_path, or backend local"
                )
