"""How fast an LLM recommender trains and answers here, against the floor and against a plain recipe: ``make bench``.

    python tests/benchmarks/bench_speed.py [--rounds 5] [--out benchmark.json] [--key=value ...]

LLaRA's hybrid prompts over MovieLens-100K and the embedded LLM. Ours and the plain recipe (plain_recipe.py) take turns in one
process on the same rows, so that a busy machine is busy for both; what counts is the median of their ratios. The floor is
counted: with N weights in the decoder's linears, frozen ones cost 2N operations a token forward and 2N backward, trained ones
2N more; attention, the head and the adapters come on top. It is divided by the rate of a large matrix product, measured in the
same run.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from plain_recipe import PlainRecipe, PlainRow
from recbole.data.interaction import Interaction

from recbole_llara.config import LLaRAConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.model import build_model
from recbole_llara.model.base import LLMRecommender, TrainingRows
from recbole_llara.model.llm import causal_lm
from recbole_llara.trainer import get_trainer
from recbole_llara.yaml_files import parse_arguments

MATRIX = 2048  # side of the matrices whose product gives the machine's rate
TOLERANCE = 1e-5  # by which the two losses of a step may differ, in float32


@dataclass(frozen=True)
class Setup:
    """What is measured.

    Args:
        trainer: ours, its model in place.
        plain: the recipe over the very same model.
        data: what ``prepare_data`` returned.
    """

    trainer: Any
    plain: PlainRecipe
    data: Any

    @property
    def model(self) -> LLMRecommender:
        return self.trainer.model


def set_up(keys: dict[str, Any]) -> Setup:
    """A trainer with random item embeddings, frozen as a recommender's are, and the plain recipe over its model."""
    common = {"protocol": "leave_one_out", "item_embeddings": "random", "strategy": "direct", "lora_dropout": 0.0}
    config = LLaRAConfig("LLaRA", "ml-100k", config_dict={**common, "max_train_rows": 8192, "max_eval_rows": 512, **keys})
    data = prepare_data(config)
    model = build_model(config, data)
    model.item_tokens.item_embeddings.requires_grad_(False)
    trainer = get_trainer(config, model)
    trainer._enter(0, len(data.train_data))
    tokens = model.item_tokens
    return Setup(
        trainer, PlainRecipe(model.llm, model.tokenizer, tokens.projector, tokens.item_embeddings, model.encoder.titles), data
    )


def plain_rows(
    model: LLMRecommender, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor, templates: torch.Tensor
) -> list[PlainRow]:
    """The same rows for the recipe."""
    listed = zip(history.tolist(), candidates.tolist(), targets.tolist(), templates.tolist(), strict=True)
    return [
        PlainRow([item for item in items if item], shown, target, model.encoder.templates[template].segments)
        for items, shown, target, template in listed
    ]


def our_step(setup: Setup, interaction: Interaction) -> None:
    """An optimiser step as the trainer makes it, from RecBole's rows on."""
    setup.trainer._train_step(setup.model.training_rows(interaction, 0))


def plain_step(setup: Setup, rows: TrainingRows) -> float:
    """An optimiser step as the recipe makes it."""
    trainer, model = setup.trainer, setup.model
    listed = plain_rows(model, rows.history, rows.candidates, rows.targets, rows.template_index)
    tokens, size, total = setup.plain.step_tokens(listed), trainer.settings.micro_batch_size, 0.0
    for start in range(0, len(listed), size):
        with trainer._autocast():
            loss = setup.plain.loss(listed[start : start + size], tokens)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], trainer.settings.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return total


def check_losses(setup: Setup, rows: TrainingRows) -> float:
    """The largest relative difference of the two recipes' losses of a step, in float32.

    Raises:
        AssertionError: they differ by more than ``TOLERANCE``.
    """
    model, size = setup.model, setup.trainer.settings.micro_batch_size
    with torch.no_grad():
        step = model.begin_step(rows, model.representation)
        parts = list(setup.trainer._micro_batches(rows))
        ours = sum(sum(model.step_losses(part, step).values()).item() for part in parts)
        listed = plain_rows(model, rows.history, rows.candidates, rows.targets, rows.template_index)
        tokens = setup.plain.step_tokens(listed)
        theirs = sum(setup.plain.loss(listed[start : start + size], tokens).item() for start in range(0, len(listed), size))
    assert abs(ours - theirs) <= TOLERANCE * abs(theirs), f"losses {ours} and {theirs}: not the same step"
    return abs(ours - theirs) / abs(theirs)


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    started = perf_counter()
    action()
    return perf_counter() - started


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second in a large matrix product: the best of some."""
    a, b = torch.randn(MATRIX, MATRIX).to(dtype), torch.randn(MATRIX, MATRIX).to(dtype)
    a @ b
    return 2 * MATRIX**3 / min(seconds(lambda: a @ b) for _ in range(6))


def training_operations(setup: Setup, rows: TrainingRows) -> float:
    """Floating-point operations that a step cannot do without, padding apart."""
    model = setup.model
    llm, config = causal_lm(model.llm), causal_lm(model.llm).config
    prompts = model.encode_training(rows, model.representation)
    lengths = prompts.attention_mask.sum(1).double()  # [B]
    answers = float((prompts.labels >= 0).sum())
    blocks = next(module for module in llm.base_model.modules() if isinstance(module, torch.nn.ModuleList))
    named = [(name, parameter) for name, parameter in blocks.named_parameters() if parameter.dim() == 2]
    frozen = sum(p.numel() for _, p in named if not p.requires_grad)
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    tokens = float(lengths.sum())
    linear = tokens * (4 * frozen + 6 * trained)
    # Scores and mixtures of the causal half, 2 products of T^2 / 2 x D forward and 4 backward.
    attention = float((lengths**2).sum()) * config.hidden_size * config.num_hidden_layers * 6
    head = answers * config.hidden_size * config.vocab_size * (6 if model.llm_tuning == "full" else 4)
    return linear + attention + head


def train(setup: Setup, rounds: int) -> dict[str, float]:
    """Steps of both recipes in turn."""
    model, trainer = setup.model, setup.trainer
    batches = iter(setup.data.train_data)
    # In the attention that evaluation has too: the two recipes then differ by their arithmetic's order alone.
    model.eval()
    difference = check_losses(setup, model.training_rows(next(batches), 0))
    ours, theirs, operations = [], [], []
    for number in range(rounds + 1):
        interaction = next(batches)
        rows = model.training_rows(interaction, 0)
        model.train()
        own = seconds(partial(our_step, setup, interaction))
        causal_lm(model.llm).set_attn_implementation("sdpa")  # what Hugging Face would take
        other = seconds(partial(plain_step, setup, rows))
        if number:  # the first warms up
            ours.append(own), theirs.append(other), operations.append(training_operations(setup, rows))
    rate = matrix_rate(model.compute_dtype)
    size = trainer.settings.train_batch_size
    floor = [count / rate for count in operations]
    return {
        "rows_per_second": size / median(ours),
        "plain_rows_per_second": size / median(theirs),
        "ratio": median(other / own for own, other in zip(ours, theirs, strict=True)),
        "of_floor": median(least / own for own, least in zip(ours, floor, strict=True)),
        "plain_of_floor": median(least / other for other, least in zip(theirs, floor, strict=True)),
        "operations_per_row": median(operations) / size,
        "matrix_operations_per_second": rate,
        "loss_difference": difference,
    }


def evaluate(setup: Setup, rounds: int) -> dict[str, float]:
    """Rows answered by scores, by generation and by the recipe, in turn."""
    model = setup.model.eval()
    batches = list(setup.data.test_data)  # by the length of their texts
    taken: dict[str, list[float]] = {"score": [], "generate": [], "constrained": [], "plain": []}
    rows = 0
    for number in range(rounds + 1):
        interaction: Interaction = batches[number * (len(batches) - 1) // rounds][0]
        listed = plain_rows(
            model,
            interaction[model.ITEM_SEQ],
            interaction[CANDIDATE_FIELD],
            interaction[model.POS_ITEM_ID],
            torch.zeros(len(interaction), dtype=torch.int64),
        )
        for name in taken:
            model.decoding = name
            is_plain = name == "plain"
            action = partial(setup.plain.answers, listed) if is_plain else partial(model.answer_candidates, interaction)
            spent = seconds(action)
            if number:
                taken[name].append(spent)
        rows = len(interaction)
    found = {f"{name}_rows_per_second": rows / median(values) for name, values in taken.items()}
    for name in ("score", "generate", "constrained"):
        found[f"{name}_ratio"] = median(other / own for own, other in zip(taken[name], taken["plain"], strict=True))
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    arguments, words = parser.parse_known_args(argv)
    torch.manual_seed(0)
    keys = parse_arguments(words)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": arguments.rounds}
    for tuning in ("lora", "full"):
        setup = set_up({"llm_tuning": tuning, **keys})
        found[tuning] = {
            **train(setup, arguments.rounds),
            **{f"eval_{k}": v for k, v in evaluate(setup, arguments.rounds).items()},
        }
    lora = found["lora"]
    found |= {"train_ratio": lora["ratio"], "train_of_floor": lora["of_floor"]}
    found |= {"eval_score_ratio": lora["eval_score_ratio"], "eval_generate_ratio": lora["eval_generate_ratio"]}
    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    names = [name for name in lora if not name.startswith("matrix")]
    sys.stdout.write(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds\n{'':32}{'lora':>14}{'full':>14}\n")
    for name in names:
        sys.stdout.write(f"{name:32}{found['lora'][name]:14.4g}{found['full'][name]:14.4g}\n")
    sys.stdout.write(f"matrix products: {lora['matrix_operations_per_second'] / 1e9:.0f} GFLOP/s\nwritten: {arguments.out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
