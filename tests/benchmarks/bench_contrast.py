"""What RSLLM's contrastive losses add to a training step, on the embedded LLM and MovieLens-100K.

    python tests/benchmarks/bench_contrast.py [--rounds 8] [--key=value ...]

Steps in turn, over the same rows, so that machine noise falls on all alike: LLaRA's (hybrid prompts), RSLLM's without contrast
(they hold a [DSR] for each item), with each loss alone, with both, and stage 1's with both. The floor is what is added in tokens: a [DSR] an item, and
the item tower, which reads one item where the prompt reads some thirty and the sentences around them. L_I comes with a
second forward pass over every prompt where a step is more than one pass.
"""

import argparse
import sys
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.trainer.trainer import get_trainer

STEPS = {  # representation, gamma, beta
    "LLaRA": ("hybrid", 0.0, 0.0),
    "RSLLM, no contrast": ("hybrid_with_dsr", 0.0, 0.0),
    "RSLLM, item-item": ("hybrid_with_dsr", 0.3, 0.0),
    "RSLLM, user-item": ("hybrid_with_dsr", 0.0, 0.4),
    "RSLLM, both": ("hybrid_with_dsr", 0.3, 0.4),
    "RSLLM, both, stage 1": ("text_id", 0.3, 0.4),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=8)
    arguments, words = parser.parse_known_args(argv)
    keys = {"protocol": "leave_one_out", "item_embeddings": "random", "max_train_rows": 4096, **parse_arguments(words)}
    config = RunConfig("RSLLM", "ml-100k", config_dict=keys)
    data = prepare_data(config)
    trainer = get_trainer(config, build_model(config, data))
    model = trainer.model
    trainer._enter(len(trainer.stages) - 1, len(data.train_data))
    model.train()
    batches = iter(data.train_data)
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    tokens = {"LLaRA": 0, "RSLLM": 0}
    plain, described = REPRESENTATIONS["hybrid"], REPRESENTATIONS["hybrid_with_dsr"]
    for number in range(arguments.rounds + 1):
        rows = model.training_rows(next(batches), 0)
        tokens["LLaRA"] += int(model.encode_training(rows, plain).attention_mask.sum())
        tokens["RSLLM"] += int(model.encode_training(rows, described).attention_mask.sum())
        tokens["RSLLM"] += int(model.encoder.encode_items(rows.targets, described).attention_mask.sum())
        for name, (representation, item_item, user_item) in STEPS.items():
            model.item_item_weight, model.user_item_weight = item_item, user_item
            model.needs_previews, model.needs_states = item_item > 0, item_item + user_item > 0
            shown = REPRESENTATIONS[representation]
            trainer.stage = replace(trainer.stage, easy=shown, hard=shown)
            started = perf_counter()
            trainer._train_step(rows)
            if number:  # the first warms up
                seconds[name].append(perf_counter() - started)
    sys.stdout.write(f"{torch.get_num_threads()} threads, {len(rows.targets)} rows a step, {arguments.rounds} rounds\n")
    sys.stdout.write(f"floor: {tokens['RSLLM'] / tokens['LLaRA']:.3f} times LLaRA's tokens\n")
    for name, values in seconds.items():
        ratio = median(one / other for one, other in zip(values, seconds["LLaRA"], strict=True))
        sys.stdout.write(f"{name:20} median {median(values):.3f} s, {ratio:.3f} times LLaRA's step\n")


if __name__ == "__main__":
    main(sys.argv[1:])
