"""A study's numbers in one file, ``study.json``: small enough to keep, whole enough to compute every table again.

It holds no user, no history and no path: of every seed which rows were answered correctly, in their order, and what
``result.json`` says. ``docs/results`` keeps those of the published studies, and RESULTS.md is made from them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.config.secrets import without_secrets
from recbole_llara.experiments.study_arms import FinishedArm
from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_summary import Summary
from recbole_llara.utils.hashing import json_ready

# Of ``result.json``, what is kept of every seed.
KEPT = ("seed", "candidate_seed", "decoding", "best_epoch", "valid_answers", "nll", "ece", "answers", "hit_among_valid")
KEPT += ("full_rank", "fusion", "metrics", "timings", "versions", "machine", "llm_digest")
# Settings that say where a study runs and what it prints, not what it compares.
PLACES = ("checkpoint_dir", "data_path", "llm_path", "config_files", "gpu_id", "nproc", "show_progress")


def study_record(study: Study, summaries: Sequence[Summary]) -> dict[str, Any]:
    """The content of ``study.json``.

    Returns:
        ``study``, ``title``, ``settings`` and ``systems`` as of ``compared``, ``seeds``, ``candidate_seed`` and ``datasets``: name ->
        ``protocol``, ``n`` rows, ``target_users`` (of each row's target, how many users took it in training), ``best_baseline``,
        ``comparisons`` as in ``comparisons.csv``, ``failures`` and ``systems``: name -> ``llm`` (its name),
        ``draws`` (their number and the standard deviation of HitRatio@1 over them), ``gains`` where it ranked the whole catalogue,
        over all seeds, and ``seeds``, a list of each seed's ``KEPT`` entries with ``seconds``, what the run took in all, and ``correct``, the rows as ``pack`` writes them.
    """
    return json_ready(
        {
            "study": study.name,
            "title": study.title,
            **compared(study),
            "seeds": study.seeds,
            "candidate_seed": study.candidate_seed,
            "datasets": {summary.dataset: _of_dataset(summary) for summary in summaries},
        }
    )


def compared(study: Study) -> dict[str, Any]:
    """What a study compares: its ``settings``, and ``systems``, name -> its own keys; without secrets and places of this machine."""

    def kept(keys: Mapping[str, Any]) -> dict[str, Any]:
        return without_secrets({key: _name(value) for key, value in keys.items() if key not in PLACES})

    return json_ready({"settings": kept(study.settings), "systems": {name: kept(keys) for name, keys in study.systems.items()}})


def _name(value: Any) -> Any:
    """Of a path from the root its last part."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _of_dataset(summary: Summary) -> dict[str, Any]:
    targets: list[int] = []
    if summary.runs:
        cases = next(iter(summary.runs.values()))[0].cases()
        targets = [case["target_users"] for case in sorted(cases, key=lambda case: case["row"])]
    return {
        "protocol": summary.protocol,
        "n": summary.n,
        "target_users": targets,
        "best_baseline": summary.best_baseline,
        "comparisons": [{key: value for key, value in row.items() if key != "dataset"} for row in summary.comparisons],
        "failures": summary.failures,
        "systems": {name: _of_system(summary, name, runs) for name, runs in summary.runs.items()},
    }


def _of_system(summary: Summary, name: str, runs: Sequence[FinishedArm]) -> dict[str, Any]:
    llm = runs[0].result.get("llm")
    seeds = [
        {key: run.result[key] for key in KEPT if run.result.get(key) is not None}
        | {"seconds": round(run.seconds, 1), "correct": pack(correct)}
        for run, correct in zip(runs, summary.correct[name], strict=True)
    ]
    row = summary.systems.loc[name]
    draws = {"number": int(row["draws"]), "spread": row["draw_spread"]}
    told = {"llm": None if llm is None else Path(str(llm)).name, "draws": draws, "seeds": seeds}
    return told | ({"gains": summary.gains[name]} if name in summary.gains else {})


def pack(correct: np.ndarray) -> str:
    """Rows [n] bool as hexadecimal digits of four rows each, the first row in the highest bit: 1, 0, 0, 0, 1 -> ``88``."""
    return np.packbits(correct).tobytes().hex()[: -(-len(correct) // 4)]


def unpack(packed: str, n: int) -> np.ndarray:
    """The [n] bool rows of ``pack``; ``ValueError`` where so many digits hold another number of rows."""
    if len(packed) != -(-n // 4):
        raise ValueError(f"{len(packed)} hexadecimal digits, expected {-(-n // 4)} for {n} rows")
    padded = packed + "0" * (len(packed) % 2)
    return np.unpackbits(np.frombuffer(bytes.fromhex(padded), dtype=np.uint8))[:n].astype(bool)


def record_text(record: Mapping[str, Any]) -> str:
    """A record as JSON text, sorted in nothing: systems stand in the study's order."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
