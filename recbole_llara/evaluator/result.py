"""The content of ``result.json``: what was run, on which rows and candidates, what came out, how sure, how long."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.config.secrets import MASK, is_secret, masked_text, without_secrets
from recbole_llara.config.yaml_files import parse_value
from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.utils.hashing import json_ready
from recbole_llara.utils.version import __version__

PACKAGES = ("torch", "transformers", "peft", "recbole", "numpy")


def command_line(argv: Sequence[str] | None = None) -> list[str]:
    """The command's words, the script without its folder and secrets masked; ``sys.argv`` by default."""
    words = list(sys.argv if argv is None else argv)
    command = [Path(words[0]).name] if words else []
    mask_next = False
    for word in words[1:]:
        key, equals, text = word.partition("=")
        secret = is_secret(key.lstrip("-"))
        if mask_next and not word.startswith("--"):
            command.append(MASK)
        else:
            command.append(f"{key}={MASK if secret else _without_secrets(text)}" if equals else masked_text(word))
        mask_next = secret and not equals
    return command


def _without_secrets(text: str) -> str:
    """What stands behind ``--key=``; a mapping or list without the secrets in it."""
    value = parse_value(text)
    if isinstance(value, str):
        return masked_text(text)
    clean = without_secrets(value)
    return text if clean == value else json.dumps(json_ready(clean))


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries a number depends on."""
    versions = {"python": platform.python_version(), "recbole_llara": __version__}
    return versions | {package: version(package) for package in PACKAGES}


def build_result(
    config: Mapping[str, Any],
    *,
    correct: np.ndarray,
    valid: np.ndarray,
    candidate_sha256: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    timings: Mapping[str, float],
    fields: Mapping[str, Any],
    best_epoch: int | None = None,
    outcomes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Gather ``result.json``.

    Args:
        config: resolved keys.
        correct: [rows] bool, test rows answered correctly.
        valid: [rows] bool, test rows whose answer named a candidate.
        candidate_sha256: split -> digest of its candidate sets.
        metrics: split -> RecBole's metrics.
        timings: stage (data, recommender, training, evaluation, ...) -> seconds, or rates with their unit in the key.
        fields: of the model, as from ``result_fields``: ``llm``, ``rec_model`` and ``decoding`` where it has them, and others.
        best_epoch: the epoch, counted from 0, whose weights were evaluated.
        outcomes: of ``answer.OUTCOMES`` -> test rows whose written answer came out so; None where nothing was written.

    Returns:
        A dict that JSON can hold; HitRatio@1's 95 % Wilson interval on the test rows is ``interval_95``.
    """
    n, hits, answered = len(correct), int(np.sum(correct)), int(np.sum(valid))
    candidate_seed = config["candidate_seed"]
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
        "answers": None if outcomes is None else dict(outcomes),
        "hit_among_valid": hits / answered if answered else None,
        "interval_95": asdict(wilson_interval(hits, n)),
        "candidate_sha256": dict(candidate_sha256),
        "metrics": {split: dict(values) for split, values in metrics.items()},
        "best_epoch": best_epoch,
        "timings": dict(timings),
        "versions": library_versions(),
        "command": command_line(),
        **fields,
    }
