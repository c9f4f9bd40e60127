"""What loading a finished run costs beside reading its bytes: ``make bench-load``.

    python tests/benchmarks/bench_load.py [--items 1000,100000,1000000] [--models SASRec,LLaRA] [--run FOLDER --key=value ...]

Runs of made-up catalogues are made without training, the data are removed, and each is loaded in a process of its own, once before
it is measured. The floor of time is reading the same bytes: of weights (LLM, adapter, item tokens, the recommender's) and tables (ids,
titles, their tokens and indexes), each counted once. The floor of memory is those bytes.

Memory is what is resident, pages of mapped files among it, less what was before: after the first load, when all libraries
were imported but not used yet; after the first answer; and after loading the same run again beside the first one and asking it,
which is what a run takes without what libraries take once.
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
from safetensors import safe_open
import recbole_llara.model.rsllm, recbole_llara.recommender.morec, recbole.trainer, peft, transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from recbole_llara.serving.loaded import load
from recbole_llara.llm.source import resolve_llm_path

run, keys = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.zeros(8, 8) @ torch.zeros(8, 8)

def resident():
    return psutil.Process().memory_info().rss

files = [path for path in sorted(run.rglob("*.safetensors"))]
if (run / "checkpoint").is_dir() and not (run / "checkpoint" / "llm").is_dir():
    told = json.loads((run / "result.json").read_text())["llm"]
    files += sorted(Path(resolve_llm_path(keys.get("llm_path", told)).where).glob("*.safetensors"))

def read():
    size = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            # The recommender's file has tables of its own, which are those of the checkpoint again.
            names = [name for name in file.keys() if path.parent.name != "recommender" or not name.startswith("snapshot/")]
            size += sum(file.get_tensor(name).clone().nbytes for name in names)
    return size

def asked(loaded):
    return loaded.recommend(["id:" + loaded.names.ids[1]], k=5)

found, before = {}, resident()
started = perf_counter()
loaded = load(run, use_gpu=False, **keys)
found["load"], found["memory"] = perf_counter() - started, resident() - before
started = perf_counter()
asked(loaded)
found["first_answer"], found["asked"] = perf_counter() - started, resident() - before
before = resident()
started = perf_counter()
again = load(run, use_gpu=False, **keys)
found["again"] = perf_counter() - started
asked(again)
found["another"] = resident() - before
started = perf_counter()
found["bytes"] = read()
found["reading"] = perf_counter() - started
print(json.dumps(found))
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
    keys |= {"rec_epochs": 0, "rec_max_eval_rows": 8, "rec_max_train_rows": 100} if model == "LLaRA" else {}
    run = Path(run_recbole_llara(model, "grown", config_dict=keys)["run_dir"])
    for left in ("grown", "saved/candidates", "saved/recommenders"):
        shutil.rmtree(folder / left, ignore_errors=True)
    return run


def point(run: Path, keys: dict[str, str]) -> dict[str, float]:
    """What loading took, the second time."""
    words = [sys.executable, "-c", POINT, str(run), json.dumps(keys)]
    done = [subprocess.run(words, capture_output=True, text=True, check=True) for _ in range(2)]
    return json.loads(done[1].stdout.splitlines()[-1])


COLUMNS = ("reading", "load", "more", "again", "1st answer", "bytes", "loaded", "asked", "another", "/ bytes")


def told(name: str, found: dict[str, float]) -> str:
    times = (found["reading"], found["load"], found["load"] - found["reading"], found["again"], found["first_answer"])
    sizes = (found[name_of] / 1e6 for name_of in ("bytes", "memory", "asked", "another"))
    row = [*(f"{value:.2f} s" for value in times), *(f"{value:.0f} MB" for value in sizes)]
    return f"{name:<28}" + "".join(f"{cell:>11}" for cell in [*row, f"{found['another'] / found['bytes']:.2f}"]) + "\n"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", default="1000,100000,1000000")
    parser.add_argument("--models", default="SASRec,LLaRA")
    parser.add_argument("--run", type=Path, help="a finished run to load instead")
    arguments, keys = parser.parse_known_args(argv)
    sys.stdout.write(" " * 28 + "".join(f"{name:>11}" for name in COLUMNS) + "\n")
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
