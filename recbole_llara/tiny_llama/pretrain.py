"""Make the tiny Llama: ``python -m recbole_llara.tiny_llama.pretrain --out DIR``.

Seeded and resumable: a batch depends on (seed, step) alone, and the state is saved every ``--save-every`` steps.
Losses fall only on answers (and on catalogue lines in a few batches); the head runs at those positions only.
"""

import argparse
import json
import logging
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llara.model.attention import BMM_ATTENTION
from recbole_llara.model.hybrid import merge_item_embeddings
from recbole_llara.model.projector import Projector
from recbole_llara.prompt.encoding import IGNORED_LABEL, SEPARATOR
from recbole_llara.tiny_llama.catalogue import CatalogueText, read_catalogue
from recbole_llara.tiny_llama.circuits import initialise_circuits
from recbole_llara.tiny_llama.tasks import VECTOR_DIM, Stage, TaskBatch, TaskMaker, catalogue_batch
from recbole_llara.tiny_llama.tokenizer import train_tokenizer

LOGGER = logging.getLogger(__name__)
CATALOGUE_EVERY = 16  # every so many steps read catalogue lines


def build_model(vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
    """The tiny Llama, randomly initialised.

    Args:
        vocab_size: pieces of its tokenizer.
        separator_id: the token between items.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    initialise_circuits(model, separator_id)
    model.set_attn_implementation(BMM_ATTENTION)
    return model


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then cosine to 5 % of the peak."""
    if step < 200:
        return peak * (step + 1) / 200
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 200) / max(1, steps - 200))))


def stage_at(step: int, steps: int) -> Stage:
    """How hard a step's tasks are: exact lookups among few first, the recommenders' prompts among 20 at the end.

    Everything changes gradually: a sudden change makes a model this small unlearn how to match.
    """
    progress = min(1.0, 2 * step / steps)
    return Stage(
        candidate_max=6 + round(14 * progress),
        short_share=max(0.0, 0.9 - 1.5 * progress),
        lookup_share=0.7 - 0.6 * progress,
        reader_share=0.25,
        vector_share=0.8,
        closeness=1.0 - 0.4 * progress,
        history_max=1 + round(9 * progress),
    )


def embed(model: LlamaForCausalLM, batch: TaskBatch, step: int, seed: int) -> torch.Tensor:
    """Input embeddings [B, T, D] of a batch, its vectors read by a projector drawn for this step alone."""
    embeddings = model.get_input_embeddings().weight
    inputs = model.get_input_embeddings()(batch.prompts.input_ids)
    if not len(batch.prompts.slot_rows):
        return inputs
    if batch.slot_vectors.isnan().any():
        slots = embeddings.mean(0, keepdim=True).expand(len(batch.prompts.slot_rows), -1)
    else:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed * 7919 + step)
            projector = Projector(VECTOR_DIM, embeddings.shape[1])
            projected = projector(batch.slot_vectors) - projector.linear_2.bias
        slots = projected + embeddings.mean(0)  # as a recommender's projector starts
    return merge_item_embeddings(inputs, batch.prompts.slot_rows, batch.prompts.slot_columns, slots)


def task_loss(
    model: LlamaForCausalLM, decoder: nn.Module, batch: TaskBatch, step: int, seed: int
) -> tuple[torch.Tensor, float]:
    """Mean negative log-likelihood of the answer tokens, and the share of them that are most likely.

    Args:
        model: whose embeddings and head are used.
        decoder: its decoder, compiled or not.
        batch, step, seed: as for ``embed``.
    """
    prompts = batch.prompts
    # Padding stands on the right, where the causal mask alone keeps it out of sight.
    hidden = decoder(inputs_embeds=embed(model, batch, step, seed), use_cache=False).last_hidden_state
    labels = prompts.labels[:, 1:]
    answered = labels != IGNORED_LABEL
    # First tokens say which item was found; of the others, which copying alone tells, as many are kept.
    first = answered & (prompts.labels[:, :-1] == IGNORED_LABEL)
    draws = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed * 15_485_863 + step))
    answered &= first | (draws < int(first.sum()) / max(1, int((answered & ~first).sum())))
    logits = model.lm_head(hidden[:, :-1][answered]).float()
    accuracy = (logits.detach().argmax(-1) == labels[answered]).float().mean().item()
    return cross_entropy(logits, labels[answered]), accuracy


def catalogue_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of catalogue text."""
    logits = model(input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def probe(model: LlamaForCausalLM, maker: TaskMaker, stage: Stage, seed: int) -> dict[str, float]:
    """Accuracy of the answers' first token over fresh batches of a stage, by task."""
    hits: dict[str, list[float]] = {}
    model.eval()
    for number in range(24):
        batch = maker.batch(10_000_000 + number, replace(stage, lookup_share=0.3, reader_share=0.3, vector_share=0.6))
        prompts = batch.prompts
        inputs = embed(model, batch, 10_000_000 + number, seed)
        hidden = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        labels = prompts.labels[:, 1:]
        first = (labels != IGNORED_LABEL) & (prompts.labels[:, :-1] == IGNORED_LABEL)
        predicted = model.lm_head(hidden[:, :-1][first]).argmax(-1)
        hits.setdefault(batch.kind, []).append((predicted == labels[first]).float().mean().item())
    model.train()
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(hits.items())}


def _save_state(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def pretrain(
    out: Path, steps: int, seed: int, peak_learning_rate: float, save_every: int, vocab_size: int, compiled: bool
) -> None:
    """Train and write tokenizer and weights to ``out``, going on from ``out/state.pt`` where that exists.

    Args:
        out: folder of the result and of the resumable state.
        steps: optimiser steps in all.
        seed: of weights, tasks and projectors.
        peak_learning_rate: AdamW's.
        save_every: steps between saved states.
        vocab_size: pieces of the tokenizer at most.
        compiled: whether torch.compile builds the decoder: a minute at the start, then 1.4 times as fast.
    """
    out.mkdir(parents=True, exist_ok=True)
    catalogue = read_catalogue()
    tokenizer = train_tokenizer(catalogue, vocab_size)
    tokenizer.save_pretrained(out)
    model = build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(SEPARATOR), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    LOGGER.info("%d pieces, %.2f million parameters", len(tokenizer), sum(p.numel() for p in model.parameters()) / 1e6)
    first, state_path = 0, out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    maker = TaskMaker(tokenizer, catalogue, seed)
    _train(
        model,
        optimizer,
        maker,
        tokenizer,
        catalogue,
        out,
        range(first, steps),
        steps,
        seed,
        peak_learning_rate,
        save_every,
        compiled,
    )


def _train(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    maker: TaskMaker,
    tokenizer,
    catalogue: list[CatalogueText],
    out: Path,
    todo: range,
    steps: int,
    seed: int,
    peak: float,
    save_every: int,
    compiled: bool,
) -> None:
    decoder = torch.compile(model.model, dynamic=True) if compiled else model.model
    started, rows, loss_sum, accuracy_sum = time.time(), 0, 0.0, 0.0
    for step in todo:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        with torch.autocast("cpu", torch.bfloat16):
            if step % CATALOGUE_EVERY == CATALOGUE_EVERY - 1:
                generator = torch.Generator().manual_seed(seed * 104729 + step)
                loss = catalogue_loss(model, catalogue_batch(tokenizer, catalogue, 12, 100, generator))
            else:
                batch = maker.batch(step, stage_at(step, steps))
                loss, accuracy = task_loss(model, decoder, batch, step, seed)
                rows += len(batch.prompts.input_ids)
                loss_sum, accuracy_sum = loss_sum + loss.item(), accuracy_sum + accuracy
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            done = 50 - 50 // CATALOGUE_EVERY
            LOGGER.info(
                "step %d loss %.4f token accuracy %.4f rows/s %.1f s/step %.3f",
                step + 1, loss_sum / done, accuracy_sum / done, rows / (time.time() - started), (time.time() - started) / 50,
            )  # fmt: skip
            started, rows, loss_sum, accuracy_sum = time.time(), 0, 0.0, 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            LOGGER.info("probe at step %d: %s", step + 1, probe(model, maker, stage_at(step, steps), seed))
            _save_state(out / "state.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
            export(model, out)
            started = time.time()


def export(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights as bfloat16 safetensors beside the tokenizer."""
    tied = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "dtype": "bfloat16"})).to(torch.bfloat16)
    copy.load_state_dict(tied)
    copy.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer, weights and state")
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak")
    parser.add_argument("--save-every", type=int, default=250, help="steps between states")
    parser.add_argument("--vocab-size", type=int, default=6000, help="pieces at most")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = {"steps": arguments.steps, "seed": arguments.seed, "peak_learning_rate": arguments.learning_rate}
    LOGGER.info("%s", json.dumps(options))
    pretrain(
        arguments.out,
        save_every=arguments.save_every,
        vocab_size=arguments.vocab_size,
        compiled=not arguments.no_compile,
        **options,
    )


if __name__ == "__main__":
    main()
