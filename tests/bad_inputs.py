"""How the tests of bad inputs ask: one call of the command line in this process, and what a refusal must look like."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from recbole_llara.cli import main

# Short enough that a mistake which passes costs seconds.
SHORT = {"epochs": 1, "max_train_rows": 32, "max_eval_rows": 8, "use_gpu": False, "show_progress": False}
SHORT_LLM = {
    **SHORT,
    "rec_epochs": 1,
    "micro_batch_size": 8,
    "train_batch_size": 16,
    "strategy": "direct",
    "llm_dtype": "float32",
}


def as_arguments(keys: Mapping[str, Any]) -> list[str]:
    """Keys as ``--key=value``."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]


def run(model: str, keys: Mapping[str, Any], arguments: Sequence[str] = ()) -> int:
    """The exit status of a short run of ``model`` over the dataset ``toy``; ``arguments`` go over ``keys``."""
    short = SHORT_LLM if model in ("LLaRA", "RSLLM", "TALLRec") else SHORT
    given = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    kept = {key: value for key, value in {**short, **keys}.items() if key not in given}
    return main([f"--model={model}", "--dataset=toy", *as_arguments(kept), *arguments])


def assert_refused(
    capsys: pytest.CaptureFixture[str], status: int, parts: Sequence[str], untouched: Path | None = None
) -> None:
    """Exit code 2, and one line that holds every one of ``parts``.

    Args:
        capsys: of the test.
        status: what ``main`` returned.
        parts: what was found, what was expected, and the key or the file.
        untouched: the folder of all runs, where neither a run nor a recommender may have been left.
    """
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("recbole-llara: error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in told, told
    # Behind the last line of the log nothing but the error.
    assert told.splitlines()[-1] == errors[0], told
    missing = [part for part in parts if part not in errors[0]]
    assert not missing, f"{missing} not in {errors[0]}"
    if untouched is not None:
        left = [path for path in untouched.glob("*/*") if path.parent.name not in ("candidates", "shared")]
        assert not left, left
