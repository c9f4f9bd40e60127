"""Make the tiny Llama: ``python -m recbole_llara.tiny_llama.pretrain --out DIR``.

Seeded and resumable: a batch depends on (seed, step) alone, and the state is saved every ``--save-every`` steps.
Losses fall only on answers (and on catalogue lines in a few batches); the head runs at those positions only.
"""

import argparse
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llara.llm.cpu import BMM_ATTENTION
from recbole_llara.llm.item_tokens import Projector, merge_item_embeddings
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.template import SEPARATOR
from recbole_llara.tiny_llama.tasks import VECTOR_DIM, Stage, TaskBatch, TaskMaker
from recbole_llara.tiny_llama.teaching import Guidance, decode, initialise_circuits
from recbole_llara.tiny_llama.texts import catalogue_batch, read_catalogue, train_tokenizer
from recbole_llara.utils.atomic import write_file

LOGGER = logging.getLogger(__name__)
WARMUP_STEPS = 200
CATALOGUE_EVERY = 16  # every so many steps read catalogue lines
LOG_EVERY = 50
FRESH = 10_000_000  # from this number on batches are for probing alone
STATE_FILE = "state.pt"


def foundation_stage(progress: float) -> Stage:
    """From progress, 0 to 1: exact lookups among few first, the recommenders' prompts among 20 at the end.

    Everything changes gradually: a sudden change makes a model this small unlearn how to match.
    """
    progress = min(1.0, 2 * progress)
    return Stage(
        candidate_max=6 + round(14 * progress),
        short_share=max(0.0, 0.9 - 1.5 * progress),
        lookup_share=0.7 - 0.6 * progress,
        reader_share=0.25,
        letter_share=0.3 * progress,
        vector_share=0.8,
        closeness=1.0 - 0.4 * progress,
        history_max=1 + round(9 * progress),
    )


def selection_stage(progress: float) -> Stage:
    """From progress, 0 to 1: the recommenders' prompts above all, their vectors ever noisier."""
    return Stage(
        candidate_max=20,
        short_share=0.5 - 0.4 * progress,
        lookup_share=0.1,
        reader_share=0.1,
        vector_share=0.9,
        closeness=0.8 - 0.4 * min(1.0, 2 * progress),
        history_max=10,
        hybrid_share=0.85,
        text_share=0.1,
        size_spread=0.2,
        guidance_weight=0.5,
        letter_share=0.3 + 0.2 * progress,
    )


def opener_stage(progress: float) -> Stage:
    """As the selections ended, at any progress, with titles that begin alike, so that the second word must choose too."""
    return replace(selection_stage(1.0), opener_share=0.35, leading_tokens=2)


class Phase(NamedTuple):
    """A stretch of the pretraining with a learning rate curve of its own."""

    steps: int  # of the optimiser
    learning_rate: float  # its peak
    stage: Callable[[float], Stage]  # from progress, 0 to 1, to how hard the tasks are


PHASES = {
    "foundation": Phase(5000, 1.5e-3, foundation_stage),
    "selection": Phase(10000, 1e-3, selection_stage),
    "opener": Phase(3000, 8e-4, opener_stage),
}


def course(phases: Sequence[Phase]) -> Iterator[tuple[Stage, float]]:
    """The stage and the learning rate of every step: in each phase a linear warm-up, then a cosine to 5 % of the peak."""
    for phase in phases:
        for step in range(phase.steps):
            progress = (step - WARMUP_STEPS) / max(1, phase.steps - WARMUP_STEPS)
            decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
            warm_up = phase.learning_rate * (step + 1) / WARMUP_STEPS
            yield phase.stage(step / phase.steps), warm_up if step < WARMUP_STEPS else phase.learning_rate * decay


def build_model(vocab_size: int, separator_id: int, seed: int) -> LlamaForCausalLM:
    """The tiny Llama of so many pieces, randomly initialised; ``separator_id`` is the token between items."""
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


class Pretraining:
    """Model, optimiser and tasks of a pretraining, saved to and resumed from ``out/state.pt``.

    Args:
        out: folder of the result and of the resumable state.
        seed: of weights, tasks and projectors.
        vocab_size: pieces of the tokenizer at most.
        compiled: whether torch.compile builds the decoder: a minute at the start, then 1.4 times as fast.
    """

    def __init__(self, out: Path, seed: int, vocab_size: int, compiled: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.seed, self.step = out, seed, 0
        self.catalogue = read_catalogue()
        self.tokenizer = train_tokenizer(self.catalogue, vocab_size)
        self.tokenizer.save_pretrained(out)
        self.model = build_model(len(self.tokenizer), self.tokenizer.convert_tokens_to_ids(SEPARATOR), seed)
        self.guidance = Guidance(self.model.config.hidden_size)
        self._decode = torch.compile(decode, dynamic=True) if compiled else decode
        self.parameters = [*self.model.parameters(), *self.guidance.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=0.01)
        self._saved = {"model": self.model, "guidance": self.guidance, "optimizer": self.optimizer}
        self.maker = TaskMaker(self.tokenizer, self.catalogue, seed)
        LOGGER.info("%d pieces, %.2f million parameters", len(self.tokenizer), self.model.num_parameters() / 1e6)
        if (out / STATE_FILE).exists():
            state = torch.load(out / STATE_FILE, weights_only=True)
            for name, part in self._saved.items():
                part.load_state_dict(state[name])
            self.step = state["step"]

    def run(self, phases: Sequence[Phase], save_every: int) -> None:
        """Train to the phases' end, and save a state every so many steps.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        steps = sum(phase.steps for phase in phases)
        started, rows, seen = time.time(), 0, defaultdict(list)
        for stage, rate in islice(course(phases), self.step, None):
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
            if self.step % save_every == 0 or self.step == steps:
                LOGGER.info("probe at step %d: %s", self.step, self._probe(stage))
                self._save()
                started = time.time()

    def _loss(self, stage: Stage) -> tuple[torch.Tensor, dict[str, float], int]:
        """The loss of the present step, what the log shows of it, and its rows of tasks."""
        if self.step % CATALOGUE_EVERY == CATALOGUE_EVERY - 1:
            generator = torch.Generator().manual_seed(self.seed * 104729 + self.step)
            tokens = catalogue_batch(self.tokenizer, self.catalogue, 12, 100, generator)
            logits = self.model(input_ids=tokens, use_cache=False).logits
            return cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()), {}, 0
        batch = self.maker.batch(self.step, stage)
        loss, shown = self._task_loss(batch, stage)
        return loss, shown, len(batch.prompts.input_ids)

    def _task_loss(self, batch: TaskBatch, stage: Stage) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean negative log-likelihood of the answer tokens; of letters also that among the candidates' (``answer_loss: listwise``), and
        with vectors among the candidates the guidance's.
        """
        hidden, inside = self._decode(self.model.model, embed(self.model, batch, self.seed * 7919 + self.step))
        labels, leading = _answers(batch)
        answered = labels != IGNORED_LABEL
        # Leading tokens say which item was found; of the others, which copying alone tells, as many are kept.
        next_tokens = leading
        for _ in range(stage.leading_tokens - 1):
            next_tokens = answered & pad(next_tokens, (1, 0))[:, :-1]
            leading = leading | next_tokens
        draws = torch.rand(labels.shape, generator=torch.Generator().manual_seed(self.seed * 15_485_863 + self.step))
        answered &= leading | (draws < int(leading.sum()) / max(1, int((answered & ~leading).sum())))
        logits = self.model.lm_head(hidden[:, :-1][answered]).float()
        loss = cross_entropy(logits, labels[answered])
        right = (logits.detach().argmax(-1) == labels[answered]).float()
        shown = {"loss": loss.item(), "token accuracy": right.mean().item()}
        if batch.letters is not None:
            among = cross_entropy(logits.gather(1, batch.letters), batch.position)
            loss, shown = loss + among, {**shown, "loss among letters": among.item()}
        if stage.guidance_weight and batch.candidate_slots is not None:
            guiding_loss, told = self.guidance(self.model.model, batch, inside, stage.leading_tokens)
            loss, shown = loss + stage.guidance_weight * guiding_loss, {**shown, **told}
        return loss, shown

    def _probe(self, stage: Stage) -> dict[str, float]:
        self.model.eval()
        told = probe(self.model, self.maker, stage, range(FRESH, FRESH + 24))
        self.model.train()
        return {name: round(value, 4) for name, value in told.items()}

    def _save(self) -> None:
        """The state, and the weights as bfloat16 safetensors beside the tokenizer."""
        state = {"step": self.step, **{name: part.state_dict() for name, part in self._saved.items()}}
        write_file(self.out / STATE_FILE, lambda path: torch.save(state, path))
        deepcopy(self.model).to(torch.bfloat16).save_pretrained(self.out)


def embed(model: LlamaForCausalLM, batch: TaskBatch, seed: int) -> torch.Tensor:
    """Input embeddings [B, T, D] of a batch, its vectors read by a projector whose random weights are drawn for it alone."""
    prompts, table = batch.prompts, model.get_input_embeddings().weight
    inputs = model.get_input_embeddings()(prompts.input_ids)
    if not len(prompts.slot_rows):
        return inputs
    if batch.slot_vectors.isnan().any():
        slots = table.mean(0, keepdim=True).expand(len(prompts.slot_rows), -1)
    else:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            projector = Projector(VECTOR_DIM, table.shape[1])
            projected = projector(batch.slot_vectors) - projector.linear_2.bias
        slots = projected + table.mean(0)  # as a recommender's projector starts
    return merge_item_embeddings(inputs, prompts.slot_rows, prompts.slot_columns, slots)


@torch.no_grad()
def probe(model: LlamaForCausalLM, maker: TaskMaker, stage: Stage, numbers: Iterable[int]) -> dict[str, float]:
    """Accuracy of the answers' first token over batches of a stage, by task; of letters also the targets' negative
    log-likelihood among the candidates, which tells whether probabilities can be believed.

    Args:
        numbers: of the batches; none that was trained on.
    """
    told = defaultdict(list)
    stage = replace(stage, lookup_share=0.3, reader_share=0.3, vector_share=0.6)
    for number in numbers:
        batch = maker.batch(number, stage)
        hidden, _ = decode(model.model, embed(model, batch, maker.seed * 7919 + number))
        labels, first = _answers(batch)
        logits = model.lm_head(hidden[:, :-1][first]).float()
        told[batch.kind] += (logits.argmax(-1) == labels[first]).float().tolist()
        if batch.letters is not None:
            among = cross_entropy(logits.gather(1, batch.letters), batch.position, reduction="none")
            told[f"{batch.kind}, nll among candidates"] += among.tolist()
    return {name: sum(values) / len(values) for name, values in sorted(told.items())}


def _answers(batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token is followed by, [B, T - 1], and whether that is an answer's first token."""
    labels = batch.prompts.labels
    return labels[:, 1:], (labels[:, 1:] != IGNORED_LABEL) & (labels[:, :-1] == IGNORED_LABEL)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer, weights and state")
    for name, phase in PHASES.items():
        parser.add_argument(f"--{name}-steps", type=int, default=phase.steps, help="optimiser steps of this phase")
        parser.add_argument(f"--{name}-learning-rate", type=float, default=phase.learning_rate, help="its peak")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--save-every", type=int, default=250, help="steps between states")
    parser.add_argument("--vocab-size", type=int, default=6000, help="pieces at most")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    given = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    LOGGER.info("%s", {name: str(value) for name, value in given.items()})
    phases = [Phase(given[f"{name}_steps"], given[f"{name}_learning_rate"], phase.stage) for name, phase in PHASES.items()]
    Pretraining(given["out"], given["seed"], given["vocab_size"], not given["no_compile"]).run(phases, given["save_every"])


if __name__ == "__main__":
    main()
