"""How fast an LLM recommender trains and answers here, against the floor and against a plain recipe: ``make bench``.

    python tests/benchmarks/bench_speed.py [--rounds 5] [--out benchmark.json] [--columns lora,full] [--key=value ...]

LLaRA's hybrid prompts over MovieLens-100K and the embedded LLM. Ours and the plain recipe (plain_recipe.py) take turns in one
process on the same rows, so that a busy machine is busy for both; what counts is the median of their ratios. Where ours is
compiled, the recipe takes its training steps both ways, compiled as ours and not; its generation is never compiled. The floor is
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
from typing import Any

import torch
from measure import matrix_rate, seconds
from plain_recipe import PlainRecipe, PlainRow
from recbole.data.interaction import Interaction
from torch.profiler import ProfilerActivity, profile

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.llm.answer_tree import build_trie
from recbole_llara.llm.architecture import causal_lm, decoder_blocks, uncompiled
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model
from recbole_llara.model.losses import TrainingRows
from recbole_llara.trainer.trainer import get_trainer
from recbole_llara.utils.process_setup import prepare_process

# The columns: keys of LLaRA over the embedded LLM.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"llm_tuning": "lora"},
    "full": {"llm_tuning": "full"},
    "lora_compiled": {"llm_tuning": "lora", "torch_compile": True},
    "full_compiled": {"llm_tuning": "full", "torch_compile": True},
}
EVAL_DTYPES = {"": torch.float32, "bf16_": torch.bfloat16}
# What multiplies matrices, as the profiler names it; all else of a step passes through memory or is Python.
PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"})
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
    config = RunConfig("LLaRA", "ml-100k", config_dict={**common, "max_train_rows": 8192, "max_eval_rows": 256, **keys})
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


def plain_step(setup: Setup, rows: TrainingRows, is_compiled: bool = False) -> float:
    """An optimiser step as the recipe makes it, with compiled decoder blocks or without."""
    trainer, model = setup.trainer, setup.model
    listed = plain_rows(model, rows.history, rows.candidates, rows.targets, rows.template_index)
    tokens, size, total = setup.plain.step_tokens(listed), trainer.settings.micro_batch_size, 0.0
    for start in range(0, len(listed), size):
        with model.training_arithmetic():
            loss = setup.plain.loss(listed[start : start + size], tokens, is_compiled)
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
        parts = list(setup.trainer.steps._cut(rows))
        ours = sum(sum(model.step_losses(part, step).values()).item() for part in parts)
        listed = plain_rows(model, rows.history, rows.candidates, rows.targets, rows.template_index)
        tokens = setup.plain.step_tokens(listed)
        theirs = sum(setup.plain.loss(listed[start : start + size], tokens).item() for start in range(0, len(listed), size))
    assert abs(ours - theirs) <= TOLERANCE * abs(theirs), f"losses {ours} and {theirs}: not the same step"
    return abs(ours - theirs) / abs(theirs)


def training_operations(setup: Setup, rows: TrainingRows) -> float:
    """Floating-point operations that a step cannot do without, padding apart."""
    model = setup.model
    config = causal_lm(model.llm).config
    prompts = model.encode_training(rows, model.representation)
    lengths = prompts.attention_mask.sum(1).double()  # [B]
    answers = float((prompts.labels >= 0).sum())
    named = [
        (name, parameter) for name, parameter in decoder_blocks(causal_lm(model.llm)).named_parameters() if parameter.dim() == 2
    ]
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
    with uncompiled(model.is_compiled):
        difference = check_losses(setup, model.training_rows(next(batches), 0))
    ours, theirs, theirs_compiled, operations = [], [], [], []
    for number in range(rounds + 1):
        interaction = next(batches)
        rows = model.training_rows(interaction, 0)
        model.train()
        own = seconds(partial(our_step, setup, interaction))
        causal_lm(model.llm).set_attn_implementation("sdpa")  # what Hugging Face would take
        other = seconds(partial(plain_step, setup, rows))
        if number:  # the first warms up
            ours.append(own), theirs.append(other), operations.append(training_operations(setup, rows))
        if model.is_compiled:
            compiled = seconds(partial(plain_step, setup, rows, True))
            if number:
                theirs_compiled.append(compiled)
    rate = matrix_rate(model.compute_dtype)
    size = trainer.settings.train_batch_size
    model.train()
    share = share_of_products(partial(our_step, setup, interaction))
    floor = [count / rate for count in operations]
    against_compiled = {}
    if theirs_compiled:
        against_compiled["plain_compiled_rows_per_second"] = size / median(theirs_compiled)
        against_compiled["ratio_to_compiled"] = median(other / own for own, other in zip(ours, theirs_compiled, strict=True))
    return {
        "rows_per_second": size / median(ours),
        "plain_rows_per_second": size / median(theirs),
        "ratio": median(other / own for own, other in zip(ours, theirs, strict=True)),
        "of_floor": median(least / own for own, least in zip(ours, floor, strict=True)),
        "plain_of_floor": median(least / other for other, least in zip(theirs, floor, strict=True)),
        "share_of_products": share,
        "products_of_rate": median(operations) / (share * median(ours)) / rate,
        "operations_per_row": median(operations) / size,
        "matrix_operations_per_second": rate,
        "loss_difference": difference,
        **against_compiled,
    }


def share_of_products(step: Callable[[], None]) -> float:
    """Of a step's time, what is spent in matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(spent[name] for name in PRODUCTS & spent.keys()) / sum(spent.values())


def evaluate(setup: Setup, rounds: int, dtype: torch.dtype) -> dict[str, float]:
    """All rows answered by scores, by generation and by the recipe, in turn, all in the arithmetic of ``dtype``.

    Ours come as the loader gives them, by the length of their texts; the recipe's in random order.
    """
    model = setup.model.eval()
    model.eval_dtype = dtype
    batches: list[Interaction] = [batch[0] for batch in setup.data.test_data]
    listed = [row for batch in batches for row in _plain_rows_of(model, batch)]
    order = torch.randperm(len(listed), generator=torch.Generator().manual_seed(0)).tolist()
    size = len(batches[0])
    mixed = [[listed[place] for place in order[start : start + size]] for start in range(0, len(order), size)]

    def ours(decoding: str, some: list[Interaction]) -> None:
        model.decoding = decoding
        for batch in some:
            model.answer_candidates(batch)

    def plain(stops: bool, some: list[list[PlainRow]]) -> None:
        for rows in some:
            with model.evaluation_arithmetic(), uncompiled(model.is_compiled):
                setup.plain.answers(rows, stops)

    ways: dict[str, tuple[Callable[[Any], None], list[Any]]] = {
        **{name: (partial(ours, name), batches) for name in ("score", "constrained", "generate")},
        "plain": (partial(plain, True), mixed),
        "plain_64": (partial(plain, False), mixed),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (way, some) in ways.items():
            spent = seconds(partial(way, some if number else some[:1]))  # the first warms up
            if number:
                taken[name].append(spent)
    found = {f"{name}_rows_per_second": len(listed) / median(values) for name, values in taken.items()}
    for name in ("score", "constrained", "generate"):
        for against, suffix in (("plain", ""), ("plain_64", "_64")):
            pairs = zip(taken[name], taken[against], strict=True)
            found[f"{name}_ratio{suffix}"] = median(other / own for own, other in pairs)
    operations = sum(answer_operations(setup, batch) for batch in batches)
    found["score_of_floor"] = operations / matrix_rate(dtype) / median(taken["score"])
    return found


def _plain_rows_of(model: LLMRecommender, batch: Interaction) -> list[PlainRow]:
    first = torch.zeros(len(batch), dtype=torch.int64)
    return plain_rows(model, batch[model.ITEM_SEQ], batch[CANDIDATE_FIELD], batch[model.POS_ITEM_ID], first)


def answer_operations(setup: Setup, batch: Interaction) -> float:
    """Operations that scores cannot do without, padding apart: a pass over each prompt and over each row's answers."""
    model = setup.model
    config = causal_lm(model.llm).config
    candidates = batch[CANDIDATE_FIELD]
    first = torch.zeros(len(batch), dtype=torch.int64)
    prompts = model.encoder.encode(batch[model.ITEM_SEQ], candidates, None, model.representation, first)
    trie = build_trie(model.encoder.answer_ids(candidates, model.representation))
    lengths = prompts.attention_mask.sum(1).double()  # [B]
    nodes = trie.visible.any(2).sum(1).double()  # [B]
    weights = sum(p.numel() for name, p in decoder_blocks(causal_lm(model.llm)).named_parameters() if p.dim() == 2)
    linear = 2 * weights * float((lengths + nodes).sum())
    pairs = float((lengths**2 / 2 + nodes * lengths).sum()) + float(trie.visible.sum())
    head = float((nodes + 1).sum()) * config.hidden_size * config.vocab_size * 2
    return linear + pairs * config.hidden_size * config.num_hidden_layers * 4 + head


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    parser.add_argument("--columns", default=",".join(VARIANTS), help="of the table, separated by commas")
    arguments, words = parser.parse_known_args(argv)
    variants = {name: VARIANTS[name] for name in arguments.columns.split(",")}
    torch.manual_seed(0)
    prepare_process()  # as every command does; the recipe gains by it too
    keys = parse_arguments(words)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "rounds": arguments.rounds}
    for name, changes in variants.items():
        setup = set_up({**changes, **keys})
        found[name] = train(setup, arguments.rounds)
        sys.stdout.write(f"{name}: {json.dumps(found[name])}\n")
        sys.stdout.flush()
        for prefix, dtype in EVAL_DTYPES.items():
            answered = evaluate(setup, max(1, arguments.rounds // 2), dtype)
            found[name] |= {f"eval_{prefix}{key}": value for key, value in answered.items()}
            arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")  # as far as it has come
    head = "".join(f"{name:>16}" for name in variants)
    sys.stdout.write(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds\n{'':32}{head}\n")
    for row in dict.fromkeys(row for name in variants for row in found[name]):
        cells = "".join(f"{found[name][row]:16.4g}" if row in found[name] else f"{'':16}" for name in variants)
        sys.stdout.write(f"{row:32}{cells}\n")
    sys.stdout.write(f"written: {arguments.out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
