"""LLaRA(SASRec) on the embedded LLM against its own SASRec over seeds, and what its behavioural tokens carry.

    python tests/benchmarks/accuracy.py [--seeds 2020 2021 2022] [--parts seeds decoding ablation] [--key=value ...]

- seeds: every seed trains its own SASRec and its own LLaRA; all answer the same rows and candidates (``candidate_seed``).
- decoding: the first seed's LLaRA, also evaluated by free and by constrained generation.
- ablation: with the quickstart's training rows, hybrid, titles alone, and item embeddings dealt to other items.

Finished runs are taken from ``checkpoint_dir``.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import t, ttest_rel

from recbole_llara.errors import exit_status
from recbole_llara.evaluator.report import comparison_table, paired_test_lines
from recbole_llara.properties_path import PROPERTIES
from recbole_llara.quickstart import read_cases, run_or_reuse, run_systems
from recbole_llara.yaml_files import parse_arguments, read_yaml

QUICKSTART = read_yaml(PROPERTIES / "quickstart.yaml")
SETTINGS = {
    "protocol": QUICKSTART["protocol"],
    "rec_stopping_step": QUICKSTART["rec_stopping_step"],
    "candidate_seed": 2020,
}
ABLATION = {"hybrid": {}, "textual": {"representation": "textual"}, "shuffled": {"shuffle_item_embeddings": True}}


def correct_answers(entry: Mapping[str, Any]) -> np.ndarray:
    """[rows] 1.0 where a run answered correctly, in the order of its rows."""
    cases = sorted(read_cases(entry["paths"]["cases_file"]), key=lambda case: case["row"])
    return np.array([case["correct"] for case in cases], dtype=float)


def over_seeds(ours: np.ndarray, stock: np.ndarray) -> str:
    """The mean difference of [seeds, rows] answers, tested over seeds and over rows.

    Args:
        ours, stock: the two systems' answers to the same rows.
    """
    difference = ours.mean(1) - stock.mean(1)  # [seeds]
    seeds = len(difference)
    lines = [
        f"LLaRA {ours.mean():.4f}, its recommender {stock.mean():.4f}, mean difference {difference.mean():+.4f} over {seeds} seeds: "
        + ", ".join(f"{value:+.4f}" for value in difference)
    ]
    if seeds > 1:
        half = t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / np.sqrt(seeds)
        over = ttest_rel(ours.mean(1), stock.mean(1))
        lines.append(f"Paired t-test over seeds: p = {over.pvalue:.3g}, 95 % interval of the difference ± {half:.4f}.")
    rows = ttest_rel(ours.mean(0), stock.mean(0))
    interval = rows.confidence_interval()
    lines.append(
        f"Paired t-test over the n = {ours.shape[1]} rows, each row's mean over the seeds: p = {rows.pvalue:.3g}, "
        f"95 % interval {interval.low:+.4f} to {interval.high:+.4f}."
    )
    return "\n".join(lines)


def seeds_part(settings: Mapping[str, Any], seeds: list[int]) -> list[str]:
    """Each seed's LLaRA against its own SASRec, and all seeds together."""
    recommender = settings.get("rec_model", "SASRec")
    lines: list[str] = []
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for seed in seeds:
        entries = run_systems({**settings, "seed": seed})
        answers.append((correct_answers(entries["LLaRA"]), correct_answers(entries[recommender])))
        cases = [read_cases(entries[name]["paths"]["cases_file"]) for name in ("LLaRA", recommender)]
        lines += [f"Seed {seed}", comparison_table([entry["result"] for entry in entries.values()])]
        lines += [*paired_test_lines(*cases, "LLaRA", recommender), ""]
    ours, stock = (np.stack(side) for side in zip(*answers, strict=True))
    return [*lines, "Over seeds", over_seeds(ours, stock), ""]


def decoding_part(settings: Mapping[str, Any], seeds: list[int]) -> list[str]:
    """The first seed's LLaRA, evaluated by every decoding."""
    scored = run_or_reuse("LLaRA", {**settings, "seed": seeds[0]})
    evaluation = {**settings, "seed": seeds[0], "checkpoint": scored["paths"]["checkpoint"]}
    others = [run_or_reuse("LLaRA", {**evaluation, "decoding": name}) for name in ("generate", "constrained")]
    return [f"Decoding, seed {seeds[0]}", comparison_table([entry["result"] for entry in (scored, *others)]), ""]


def ablation_part(settings: Mapping[str, Any]) -> list[str]:
    """Hybrid, textual and shuffled as the quickstart trains LLaRA; the first is the quickstart's own."""
    budget = {**QUICKSTART, **settings}
    entries = {name: run_or_reuse("LLaRA", {**budget, **keys}) for name, keys in ABLATION.items()}
    cases = {name: read_cases(entry["paths"]["cases_file"]) for name, entry in entries.items()}
    lines = [f"Ablation, {budget['max_train_rows']:,} training rows"]
    for name, entry in entries.items():
        lines += [name, comparison_table([entry["result"]])]
    for one, other in (("hybrid", "textual"), ("hybrid", "shuffled"), ("textual", "shuffled")):
        lines += [f"{one} against {other}", *paired_test_lines(cases[one], cases[other], one, other)]
    return [*lines, ""]


def main(argv: list[str]) -> None:
    parts = ("seeds", "decoding", "ablation")
    # No abbreviations: --seed is a key.
    parser = argparse.ArgumentParser(description="LLaRA against its recommender; any further --key=value", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument("--parts", choices=parts, nargs="+", default=parts)
    arguments, words = parser.parse_known_args(argv)
    keys = {"checkpoint_dir": "saved", **parse_arguments(words)}
    settings = {**SETTINGS, **keys}
    for part in arguments.parts:
        if part == "ablation":
            lines = ablation_part(keys)
        else:
            lines = (seeds_part if part == "seeds" else decoding_part)(settings, arguments.seeds)
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(exit_status("accuracy", lambda: main(sys.argv[1:])))
