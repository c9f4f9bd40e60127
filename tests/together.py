"""Runs that begin at the same moment, each a process of its own: ``python together.py RUNS.json``.

The file holds a list of ``[model, config_dict]``. The processes are forked from this one, which has imported everything
and computed nothing, so that eight of them cost one start; they wait for each other at a barrier. One JSON line a run is
printed: its paths, or its error.
"""

import json
import multiprocessing
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from recbole_llara.config.run_config import RunConfig  # noqa: F401 - imported once, for all
from recbole_llara.model.base import LLMRecommender  # noqa: F401
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer.trainer import LLMTrainer  # noqa: F401


def run(model: str, keys: dict[str, Any], barrier: Any, answers: Any) -> None:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    barrier.wait()
    try:
        told = run_recbole_llara(model, "toy", config_dict=keys)
        answers.put({"model": model, "run_dir": told["run_dir"], "result_file": told["result_file"]})
    except Exception:  # noqa: BLE001 - told to the test
        answers.put({"model": model, "error": traceback.format_exc()})


def main() -> None:
    """Start all runs, and print what each tells."""
    runs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(len(runs)), context.Queue()
    processes = [context.Process(target=run, args=(model, keys, barrier, answers)) for model, keys in runs]
    for process in processes:
        process.start()
    for _ in processes:
        sys.stdout.write("TOLD " + json.dumps(answers.get(timeout=600)) + "\n")
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
