"""The content of ``result.json``: what was run, on which rows and candidates, what came out, how sure, how long."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from recbole_llara.config.secrets import MASK, is_secret, masked_text, without_secrets
from recbole_llara.config.yaml_files import parse_value
from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.calibration import calibration
from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.utils import __version__
from recbole_llara.utils.hashing import code_digest, json_ready

PACKAGES = ("torch", "transformers", "peft", "recbole", "numpy")  # on which a number depends


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """The command's words, the script without its folder and secrets masked; ``sys.argv`` by default."""
    words = list(sys.argv if argv is None else argv)
    command = [Path(word).name for word in words[:1]]
    mask_next = False
    for word in words[1:]:
        key, equals, text = word.partition("=")
        is_masked = is_secret(key.lstrip("-"))
        if mask_next and not word.startswith("--"):
            command.append(MASK)
        else:
            command.append(f"{key}={MASK if is_masked else _without_secrets(text)}" if equals else masked_text(word))
        mask_next = is_masked and not equals
    return command


def _without_secrets(text: str) -> str:
    """What stands behind ``--key=``; a mapping or list without the secrets in it."""
    value = parse_value(text)
    if isinstance(value, str):
        return masked_text(text)
    clean = without_secrets(value)
    return text if clean == value else json.dumps(json_ready(clean))


def build_result(
    config: Mapping[str, Any],
    cases: EvaluatedCases,
    *,
    candidate_sha256: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    timings: Mapping[str, float],
    fields: Mapping[str, Any],
    best_epoch: int | None = None,
) -> dict[str, Any]:
    """Gather ``result.json``.

    Args:
        config: resolved keys.
        cases: the test rows.
        candidate_sha256: split -> digest of its candidate sets.
        metrics: split -> RecBole's metrics.
        timings: stage (data, recommender, training, evaluation, ...) -> seconds, or rates with their unit in the key.
        fields: of the model, as from ``result_fields``: ``llm``, ``rec_model`` and ``decoding`` where it has them, and others.
        best_epoch: the epoch, counted from 0, whose weights were evaluated.

    Returns:
        A dict that JSON can hold; HitRatio@1's 95 % Wilson interval on the test rows is ``interval_95``, ``nll`` and ``ece`` are
        those of ``calibration``, None where answers have no scores.
    """
    n, hits, answered = len(cases.rows), int(cases.correct.sum()), int(cases.valid.sum())
    candidate_seed = config["candidate_seed"]
    told = {"nll": None, "ece": None} if cases.scores is None else calibration(cases.scores, cases.places, cases.correct)
    return {
        "model": config["model"],
        "rec_model": None,
        "llm": None,
        "dataset": config["dataset"],
        "protocol": config["protocol"],
        "decoding": None,
        "seed": config["seed"],
        "candidate_seed": config["seed"] if candidate_seed is None else candidate_seed,
        "n": n,
        "correct": hits,
        "valid_answers": answered,
        "answers": cases.outcome_counts,
        "hit_among_valid": hits / answered if answered else None,
        "interval_95": asdict(wilson_interval(hits, n)),
        **told,
        "candidate_sha256": dict(candidate_sha256),
        "metrics": {split: dict(values) for split, values in metrics.items()},
        "best_epoch": best_epoch,
        "timings": dict(timings),
        "versions": {"python": platform.python_version(), "recbole_llara": __version__, "code": code_digest()}
        | {package: version(package) for package in PACKAGES},
        "machine": _machine(torch.device(config["device"])),
        "command": command_line(),
        **fields,
    }


def _machine(device: torch.device) -> dict[str, Any]:
    """On what a run computed: the processor's instruction set as torch uses it, its threads, and the GPU's name or None."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(), "gpu": gpu}
