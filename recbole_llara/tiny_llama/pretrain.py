"""Make the tiny Llama: ``python -m recbole_llara.tiny_llama.pretrain --out DIR``.

Seeded and resumable: a batch depends on (seed, step) alone, and the state is saved every ``--save-every`` steps.
Losses fall only on answers (and on catalogue lines in a few batches); the head runs at those positions only.
"""

import argparse
import logging
import math
import os
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llara.llm.cpu import BMM_ATTENTION
from recbole_llara.llm.item_tokens import Projector, merge_item_embeddings
from recbole_llara.prompt.encoding import IGNORED_LABEL, SEPARATOR
from recbole_llara.tiny_llama.recipe import Phase, Recipe, Stage, foundation_stage, opener_stage, selection_stage
from recbole_llara.tiny_llama.tasks import VECTOR_DIM, TaskBatch, TaskMaker, catalogue_batch
from recbole_llara.tiny_llama.teaching import Decoder, Guidance, initialise_circuits
from recbole_llara.tiny_llama.texts import read_catalogue, train_tokenizer

LOGGER = logging.getLogger(__name__)
CATALOGUE_EVERY = 16  # every so many steps read catalogue lines
LOG_EVERY = 50
STATE_FILE = "state.pt"


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
    model: LlamaForCausalLM,
    decoder: nn.Module,
    guidance: Guidance,
    batch: TaskBatch,
    step: int,
    seed: int,
    stage: Stage,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean negative log-likelihood of the answer tokens, and with vectors among the candidates the guidance's.

    Args:
        model: whose embeddings and head are used.
        decoder: its ``Decoder``, compiled or not.
        guidance: asked where the stage gives it weight.
        batch, step, seed: as for ``embed``.
        stage: of the step.

    Returns:
        the loss, and what the log shows: the answers' loss, the share of answer tokens that are most likely, and
        what the guidance tells.
    """
    prompts = batch.prompts
    hidden, inside = decoder(embed(model, batch, step, seed))
    labels = prompts.labels[:, 1:]
    answered = labels != IGNORED_LABEL
    # Leading tokens say which item was found; of the others, which copying alone tells, as many are kept.
    leading = next_tokens = answered & (prompts.labels[:, :-1] == IGNORED_LABEL)
    for _ in range(stage.leading_tokens - 1):
        next_tokens = answered & pad(next_tokens, (1, 0))[:, :-1]
        leading = leading | next_tokens
    draws = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed * 15_485_863 + step))
    answered &= leading | (draws < int(leading.sum()) / max(1, int((answered & ~leading).sum())))
    logits = model.lm_head(hidden[:, :-1][answered]).float()
    loss = cross_entropy(logits, labels[answered])
    shown = {"loss": loss.item(), "token accuracy": (logits.detach().argmax(-1) == labels[answered]).float().mean().item()}
    if stage.guidance_weight and batch.position is not None:
        guiding_loss, told = guidance(model, batch, inside, stage.leading_tokens)
        loss, shown = loss + stage.guidance_weight * guiding_loss, {**shown, **told}
    return loss, shown


def catalogue_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of catalogue text."""
    logits = model(input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def probe(model: LlamaForCausalLM, maker: TaskMaker, stage: Stage, seed: int) -> dict[str, float]:
    """Accuracy of the answers' first token over fresh batches of a stage, by task."""
    hits: dict[str, list[float]] = {}
    model.eval()
    decoder = Decoder(model)
    for number in range(24):
        batch = maker.batch(10_000_000 + number, replace(stage, lookup_share=0.3, reader_share=0.3, vector_share=0.6))
        prompts = batch.prompts
        hidden, _ = decoder(embed(model, batch, 10_000_000 + number, seed))
        labels = prompts.labels[:, 1:]
        first = (labels != IGNORED_LABEL) & (prompts.labels[:, :-1] == IGNORED_LABEL)
        predicted = model.lm_head(hidden[:, :-1][first]).argmax(-1)
        hits.setdefault(batch.kind, []).append((predicted == labels[first]).float().mean().item())
    model.train()
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(hits.items())}


class Pretraining:
    """Model, optimiser and tasks of a pretraining, saved to and resumed from ``out/state.pt``.

    Args:
        out: folder of the result and of the resumable state.
        recipe: its phases.
        seed: of weights, tasks and projectors.
        vocab_size: pieces of the tokenizer at most.
        compiled: whether torch.compile builds the decoder: a minute at the start, then 1.4 times as fast.
    """

    def __init__(self, out: Path, recipe: Recipe, seed: int, vocab_size: int, compiled: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.recipe, self.seed = out, recipe, seed
        self.catalogue = read_catalogue()
        self.tokenizer = train_tokenizer(self.catalogue, vocab_size)
        self.tokenizer.save_pretrained(out)
        self.model = build_model(len(self.tokenizer), self.tokenizer.convert_tokens_to_ids(SEPARATOR), seed)
        self.guidance = Guidance(self.model.config.hidden_size)
        decoder = Decoder(self.model)
        self.decoder = torch.compile(decoder, dynamic=True) if compiled else decoder
        self.parameters = [*self.model.parameters(), *self.guidance.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=0.01)
        self.maker = TaskMaker(self.tokenizer, self.catalogue, seed)
        self.step = 0
        LOGGER.info("%d pieces, %.2f million parameters", len(self.tokenizer), self.model.num_parameters() / 1e6)
        if (out / STATE_FILE).exists():
            state = torch.load(out / STATE_FILE, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.guidance.load_state_dict(state["guidance"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def run(self, save_every: int) -> None:
        """Train to the recipe's end.

        Args:
            save_every: steps between saved states.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        started, rows, seen = time.time(), 0, defaultdict(list)
        while self.step < self.recipe.steps:
            stage, rate = self.recipe.at(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                loss, shown, batch_rows = self._loss(stage)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss of step {self.step} is {loss.item()}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            rows += batch_rows
            for name, value in shown.items():
                seen[name].append(value)
            if self.step % LOG_EVERY == 0:
                means = " ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in seen.items())
                seconds = time.time() - started
                LOGGER.info("step %d %s rows/s %.1f s/step %.3f", self.step, means, rows / seconds, seconds / LOG_EVERY)
                started, rows, seen = time.time(), 0, defaultdict(list)
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                LOGGER.info("probe at step %d: %s", self.step, probe(self.model, self.maker, stage, self.seed))
                self._save()
                started = time.time()

    def _loss(self, stage: Stage) -> tuple[torch.Tensor, dict[str, float], int]:
        """The loss of the present step, what the log shows of it, and its rows of tasks."""
        if self.step % CATALOGUE_EVERY == CATALOGUE_EVERY - 1:
            generator = torch.Generator().manual_seed(self.seed * 104729 + self.step)
            return catalogue_loss(self.model, catalogue_batch(self.tokenizer, self.catalogue, 12, 100, generator)), {}, 0
        batch = self.maker.batch(self.step, stage)
        loss, shown = task_loss(self.model, self.decoder, self.guidance, batch, self.step, self.seed, stage)
        return loss, shown, len(batch.prompts.input_ids)

    def _save(self) -> None:
        path = self.out / STATE_FILE
        state = {
            "model": self.model.state_dict(),
            "guidance": self.guidance.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        export(self.model, self.out)


def export(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights as bfloat16 safetensors beside the tokenizer."""
    tied = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "dtype": "bfloat16"})).to(torch.bfloat16)
    copy.load_state_dict(tied)
    copy.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer, weights and state")
    parser.add_argument("--foundation-steps", type=int, default=5000, help="optimiser steps of the first phase")
    parser.add_argument("--foundation-learning-rate", type=float, default=1.5e-3, help="its peak")
    parser.add_argument("--selection-steps", type=int, default=10000, help="optimiser steps of the second phase")
    parser.add_argument("--selection-learning-rate", type=float, default=1e-3, help="its peak")
    parser.add_argument("--opener-steps", type=int, default=3000, help="optimiser steps of the third phase")
    parser.add_argument("--opener-learning-rate", type=float, default=8e-4, help="its peak")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--save-every", type=int, default=250, help="steps between states")
    parser.add_argument("--vocab-size", type=int, default=6000, help="pieces at most")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    LOGGER.info("%s", {name: str(value) for name, value in vars(arguments).items()})
    phases = (
        Phase(arguments.foundation_steps, arguments.foundation_learning_rate, foundation_stage),
        Phase(arguments.selection_steps, arguments.selection_learning_rate, selection_stage),
        Phase(arguments.opener_steps, arguments.opener_learning_rate, opener_stage),
    )
    training = Pretraining(
        arguments.out, Recipe(phases), arguments.seed, arguments.vocab_size, compiled=not arguments.no_compile
    )
    training.run(arguments.save_every)


if __name__ == "__main__":
    main()
