"""``make quickstart``: popularity, SASRec and LLaRA(SASRec) on MovieLens-100K, on the same rows and candidates, in one table.

A second call with the same settings takes finished systems from ``saved/quickstart`` and trains nothing again.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llara import __version__
from recbole_llara.errors import exit_status
from recbole_llara.evaluator.report import comparison_table, paired_test_lines, system_name
from recbole_llara.properties_path import PROPERTIES
from recbole_llara.tiny_llama import TINY_LLAMA_DIR
from recbole_llara.yaml_files import parse_arguments, read_yaml

DATASET = "ml-100k"


def _fingerprint(model: str, settings: Mapping[str, Any]) -> str:
    """Digest of all that a finished system's result depends on."""
    weights = TINY_LLAMA_DIR / "model.safetensors"
    llm = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    yaml = {
        path.relative_to(PROPERTIES).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PROPERTIES.rglob("*.yaml"))
    }
    facts = {"model": model, "settings": dict(settings), "version": __version__, "llm": llm, "properties": yaml}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def run_or_reuse(
    model: str, settings: Mapping[str, Any], rec_checkpoint: str | None = None, fresh: bool = False
) -> dict[str, Any]:
    """One system's ``result`` (``result.json``) and ``paths`` of what it wrote: from an earlier call, or by running it now.

    Args:
        model: LLaRA or a stock model.
        settings: LLaRA's keys, ``checkpoint_dir`` among them; a stock model takes those it knows.
        rec_checkpoint: a stock model trained before as LLaRA's recommender, to be evaluated only.
        fresh: run it even if an earlier call did.
    """
    from recbole_llara.quick_start import run_recbole_llara

    kept = Path(str(settings["checkpoint_dir"])) / "quickstart" / f"{model}-{_fingerprint(model, settings)}.json"
    if kept.is_file() and not fresh:
        entry = json.loads(kept.read_text(encoding="utf-8"))
        if Path(entry["paths"]["cases_file"]).is_file():
            sys.stdout.write(f"{model}: taken from {entry['paths']['run_dir']}\n")
            return entry
    values = dict(settings) if model == "LLaRA" else _stock_settings(model, settings, rec_checkpoint)
    written = run_recbole_llara(model=model, dataset=DATASET, config_dict=values)
    paths = {key: written[key] for key in ("run_dir", "result_file", "cases_file", "checkpoint")}
    entry = {"result": json.loads(Path(paths["result_file"]).read_text(encoding="utf-8")), "paths": paths}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(entry, indent=2), encoding="utf-8")
    return entry


def _stock_settings(model: str, settings: Mapping[str, Any], checkpoint: str | None) -> dict[str, Any]:
    """What of the settings a stock model takes: what it shares with LLaRA, and as its recommender the ``rec_`` keys."""
    from recbole_llara.keys import REC_PREFIX, recommender_keys, shared_keys

    values = {key: value for key, value in settings.items() if key in shared_keys() | {"max_eval_rows"}}
    if checkpoint is not None:
        prefixed = {key.removeprefix(REC_PREFIX): value for key, value in settings.items() if key.startswith(REC_PREFIX)}
        values |= {key: value for key, value in prefixed.items() if key in recommender_keys(model) - {"max_eval_rows"}}
        values["checkpoint"] = checkpoint
    return values


def read_cases(path: str) -> list[dict[str, Any]]:
    """The records of a ``cases.jsonl``."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def run_systems(settings: Mapping[str, Any], fresh: bool = False) -> dict[str, dict[str, Any]]:
    """Popularity, the recommender and LLaRA over it, as ``run_or_reuse`` returns them, by the models' names.

    Args:
        settings, fresh: as for ``run_or_reuse``.
    """
    recommender = settings.get("rec_model", "SASRec")
    llara = run_or_reuse("LLaRA", settings, fresh=fresh)
    # The very recommender whose embeddings LLaRA read, trained on all rows to its early stop.
    checkpoint = str(Path(llara["result"]["recommender"]["path"]) / "model.safetensors")
    return {
        "Popularity": run_or_reuse("Popularity", settings, fresh=fresh),
        recommender: run_or_reuse(recommender, settings, checkpoint, fresh),
        "LLaRA": llara,
    }


def quickstart(arguments: Sequence[str] = ()) -> str:
    """Run the three systems and return the report.

    Args:
        arguments: ``--key=value`` over ``properties/quickstart.yaml``, and ``--fresh`` to run all of them again.

    Raises:
        UserError: an argument cannot be used.
    """
    fresh = "--fresh" in arguments
    settings = {**read_yaml(PROPERTIES / "quickstart.yaml"), **parse_arguments([a for a in arguments if a != "--fresh"])}
    settings.setdefault("checkpoint_dir", "saved")
    recommender = settings.get("rec_model", "SASRec")
    entries = run_systems(settings, fresh)
    shown = list(entries.values())
    names = {model: system_name(entry["result"]) for model, entry in entries.items()}
    lines = ["", comparison_table([entry["result"] for entry in shown]), ""]
    ours, stock = (read_cases(entries[model]["paths"]["cases_file"]) for model in ("LLaRA", recommender))
    lines += [f"{names['LLaRA']} against {names[recommender]} on the same rows and candidates:"]
    lines += paired_test_lines(ours, stock, names["LLaRA"], names[recommender])
    lines += ["", "Each row of the test, with what was shown and answered:"]
    lines += [f"  {names[model]}: {entries[model]['paths']['cases_file']}" for model in entries]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "interrupted; finished systems and the recommender are kept, run it again to go on"
    return exit_status("quickstart", lambda: sys.stdout.write(quickstart(arguments)), kept)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
