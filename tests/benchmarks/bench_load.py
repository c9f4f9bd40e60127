"""What loading a finished run costs beside reading its bytes: ``make bench-load``.

    python tests/benchmarks/bench_load.py [--items 1000,100000,1000000] [--models SASRec,LLaRA] [--run FOLDER --key=value ...]

Runs of made-up catalogues are made without training, the data are removed, and each is loaded in a process of its own, once before
it is measured. The floor is reading the same bytes: the safetensors of the run's folder and of the LLM. Memory is what is resident
after loading less what was before, beside the size of those files.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

POINT = """
import json, sys
from pathlib import Path
from time import perf_counter
import psutil, torch
from safetensors.torch import load_file
import recbole_llara.model.rsllm, recbole_llara.recommender.morec, recbole.trainer, peft, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from recbole_llara.serving.loaded import load
from recbole_llara.llm.source import resolve_llm_path

run, keys = Path(sys.argv[1]), json.loads(sys.argv[2])
resident = psutil.Process().memory_info
folders = [run]
if (run / "checkpoint").is_dir():
    told = json.loads((run / "result.json").read_text())["llm"]
    folders.append(Path(resolve_llm_path(keys.get("llm_path", told)).where))
files = [path for folder in folders for path in sorted(folder.rglob("*.safetensors"))]
before = resident().rss
started = perf_counter()
loaded = load(run, use_gpu=False, **keys)
seconds = perf_counter() - started
memory = resident().rss - before
started = perf_counter()
size = sum(sum(tensor.clone().nbytes for tensor in load_file(path).values()) for path in files)
reading = perf_counter() - started
started = perf_counter()
loaded.recommend([loaded.names.ids[1]], k=5)
print(json.dumps({"reading": reading, "load": seconds, "first_answer": perf_counter() - started, "bytes": size, "memory": memory}))
"""


def untrained_run(model: str, items: int, folder: Path) -> Path:
    """The folder of a run of so many items that was trained for no epoch; its data are gone."""
    from bench_growth import write_dataset

    from recbole_llara.quick_start import run_recbole_llara

    write_dataset(folder, items, max(20_000, items))
    keys = {
        "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "protocol": "leave_one_out", "title_field": "title",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False, "show_progress": False, "epochs": 0,
        "max_train_rows": 100, "max_eval_rows": 8, "state": "ERROR",
    }  # fmt: skip
    keys |= {"rec_epochs": 0} if model == "LLaRA" else {}
    run = Path(run_recbole_llara(model, "grown", config_dict=keys)["run_dir"])
    for left in ("grown", "saved/candidates", "saved/recommenders"):
        shutil.rmtree(folder / left, ignore_errors=True)
    return run


def point(run: Path, keys: dict[str, str]) -> dict[str, float]:
    """What loading took, the second time."""
    words = [sys.executable, "-c", POINT, str(run), json.dumps(keys)]
    done = [subprocess.run(words, capture_output=True, text=True, check=True) for _ in range(2)]
    return json.loads(done[1].stdout.splitlines()[-1])


def told(name: str, found: dict[str, float]) -> str:
    megabytes = 1e6
    return (
        f"{name:<28}{found['reading']:>9.2f} s{found['load']:>9.2f} s{found['load'] - found['reading']:>9.2f} s"
        f"{found['first_answer']:>9.2f} s{found['bytes'] / megabytes:>10.0f} MB{found['memory'] / megabytes:>10.0f} MB\n"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", default="1000,100000,1000000")
    parser.add_argument("--models", default="SASRec,LLaRA")
    parser.add_argument("--run", type=Path, help="a finished run to load instead")
    arguments, keys = parser.parse_known_args(argv)
    sys.stdout.write(f"{'':<28}{'reading':>11}{'load':>11}{'more':>11}{'1st answer':>11}{'files':>13}{'memory':>13}\n")
    if arguments.run is not None:
        given = dict(word.removeprefix("--").split("=", 1) for word in keys)
        sys.stdout.write(told(arguments.run.name[:27], point(arguments.run, given)))
        return
    for model in arguments.models.split(","):
        for items in map(int, arguments.items.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                found = point(untrained_run(model, items, Path(folder)), {})
            sys.stdout.write(told(f"{model}, {items:,} items", found))
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
