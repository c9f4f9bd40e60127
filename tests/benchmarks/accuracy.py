"""LLaRA(SASRec) on the embedded LLM against its own SASRec over seeds, and by every decoding.

    python tests/benchmarks/accuracy.py [--seeds 2020 2021 2022] [--parts seeds decoding] [--key=value ...]

- seeds: every seed trains its own SASRec and its own LLaRA; all answer the same rows and candidates (``candidate_seed``), LLaRA also
  with its scores averaged over all templates (``test_prompt: all``).
- decoding: the first seed's LLaRA, also evaluated by free and by constrained generation.

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
from recbole_llara.study import Entry, Study, load_study, report, run_study, run_system
from recbole_llara.yaml_files import parse_arguments

QUICKSTART = load_study("quickstart")
OURS, ALL_TEMPLATES = "LLaRA(SASRec)", "LLaRA(SASRec), all templates"
BUDGET = ("max_train_rows", "epochs")  # of the quickstart; here LLaRA trains as its own YAML says
SETTINGS = {key: value for key, value in QUICKSTART.settings.items() if key not in BUDGET} | {"candidate_seed": 2020}


def correct_answers(entry: Entry) -> np.ndarray:
    """[rows] 1.0 where a run answered correctly, in the order of its rows."""
    cases = sorted(entry.cases(), key=lambda case: case["row"])
    return np.array([case["correct"] for case in cases], dtype=float)


def over_seeds(ours: np.ndarray, stock: np.ndarray) -> str:
    """The mean difference of [seeds, rows] answers, tested over seeds and over rows.

    Args:
        ours, stock: the two systems' answers to the same rows.
    """
    difference = ours.mean(1) - stock.mean(1)  # [seeds]
    seeds = len(difference)
    lines = [
        f"{ours.mean():.4f}, its recommender {stock.mean():.4f}, mean difference {difference.mean():+.4f} over {seeds} seeds: "
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
    """Each seed's LLaRA against its own SASRec, with one prompt a row and averaged over all; then all seeds together."""
    lines: list[str] = []
    answers: dict[str, list[np.ndarray]] = {"SASRec": [], OURS: [], ALL_TEMPLATES: []}
    for seed in seeds:
        study = Study({**settings, "seed": seed}, QUICKSTART.systems, ((OURS, "SASRec"), (ALL_TEMPLATES, "SASRec")))
        entries = run_study(study)
        again = {"model": "LLaRA", "checkpoint": entries[OURS].paths["checkpoint"], "test_prompt": "all"}
        entries[ALL_TEMPLATES] = run_system(Study(study.settings, {ALL_TEMPLATES: again}, ()), ALL_TEMPLATES)
        for name, of_seeds in answers.items():
            of_seeds.append(correct_answers(entries[name]))
        lines += [f"Seed {seed}", report(study, entries)]
    stacked = {name: np.stack(of_seeds) for name, of_seeds in answers.items()}  # [seeds, rows]
    for name in (OURS, ALL_TEMPLATES):
        lines += [f"Over seeds: {name}", over_seeds(stacked[name], stacked["SASRec"]), ""]
    return lines


def decoding_part(settings: Mapping[str, Any], seeds: list[int]) -> list[str]:
    """The first seed's LLaRA, evaluated by every decoding."""
    seeded = {**settings, "seed": seeds[0]}
    scored = run_system(Study(seeded, QUICKSTART.systems, ()), OURS)
    again = {"model": "LLaRA", "checkpoint": scored.paths["checkpoint"]}
    others = Study(seeded, {name: {**again, "decoding": name} for name in ("generate", "constrained")}, ())
    return [f"Decoding, seed {seeds[0]}", report(others, {"score": scored, **run_study(others)}), ""]


def main(argv: list[str]) -> None:
    parts = {"seeds": seeds_part, "decoding": decoding_part}
    # No abbreviations: --seed is a key.
    parser = argparse.ArgumentParser(description="LLaRA against its recommender; any further --key=value", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument("--parts", choices=parts, nargs="+", default=list(parts))
    arguments, words = parser.parse_known_args(argv)
    settings = {**SETTINGS, **parse_arguments(words)}
    for part in arguments.parts:
        sys.stdout.write("\n".join(parts[part](settings, arguments.seeds)) + "\n")


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(exit_status("accuracy", lambda: main(sys.argv[1:])))
