"""How long it takes to find what is proposed out of a large catalogue, and in how much memory: ``make bench-retrieval``.

    python tests/benchmarks/bench_retrieval.py [--items 1000000] [--width 64]

Each way is measured in a process of its own: the scores of all items at once (as for recommenders whose scores are no products), those of
a block of items at a time, and an index of faiss where it is installed. The floor is one reading of the table. Recall is the share of
the exact best 20 that a way finds. Vectors are made up: around 2,000 centres, as trained ones gather, and without any order,
which is the hardest case for an index. Memory is the peak while 64 questions are answered, less what was resident before.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import torch

QUESTIONS, COUNT, TOGETHER = 64, 20, 16
CONFIG = {
    "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "length", "USER_ID_FIELD": "user",
    "MAX_ITEM_LIST_LENGTH": 10,
}  # fmt: skip


def vectors(kind: str, items: int, width: int) -> torch.Tensor:
    """[N, d] made up."""
    generator = torch.Generator().manual_seed(0)
    if kind == "without order":
        return torch.randn(items, width, generator=generator)
    centres = torch.randn(2000, width, generator=generator)
    return centres[torch.randint(0, 2000, (items,), generator=generator)] + 0.7 * torch.randn(items, width, generator=generator)


def point(way: str, kind: str, items: int, width: int) -> None:
    """Print what a way took, and what it found."""
    from recbole_llara.recommender.frozen import NearestVectors
    from recbole_llara.recommender.retriever import Retriever

    torch.set_num_threads(1)
    model = NearestVectors(vectors(kind, items, width), "item_list")
    histories = np.random.default_rng(0).integers(1, items, (QUESTIONS, 3)).tolist()
    before = psutil.Process().memory_info().rss
    started = perf_counter()
    retriever = Retriever(model, CONFIG | {"device": torch.device("cpu")}, items, by_index=way == "index")
    if way == "all at once":
        retriever.is_product = False
    retriever.propose(histories[:1], COUNT)
    made, held = perf_counter() - started, psutil.Process().memory_info().rss - before
    started = perf_counter()
    float(model.units.sum())
    floor = perf_counter() - started
    started = perf_counter()
    for history in histories:
        retriever.propose([history], COUNT)
    alone = (perf_counter() - started) / QUESTIONS
    started = perf_counter()
    found = [retriever.propose(histories[first : first + TOGETHER], COUNT) for first in range(0, QUESTIONS, TOGETHER)]
    together = (perf_counter() - started) / QUESTIONS
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    retriever.propose(histories, COUNT)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak = int(line.split()[1]) * 1024 - before
    told = {"made": made, "alone": alone, "together": together, "floor": floor, "peak": peak, "held": held}
    sys.stdout.write(json.dumps({**told, "items": torch.cat(found).tolist()}) + "\n")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.point:
        point(*arguments.point, arguments.items, arguments.width)
        return
    ways = ["all at once", "in blocks", *(["index"] if find_spec("faiss") else [])]
    columns = ("ready", "floor", "alone", "of 16", "held", "peak", "recall@20")
    sys.stdout.write(" " * 30 + "".join(f"{name:>12}" for name in columns) + "\n")
    for kind in ("around centres", "without order"):
        exact: list[set[int]] = []
        for way in ways:
            words = [sys.executable, __file__, f"--items={arguments.items}", f"--width={arguments.width}", "--point", way, kind]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            own = [set(row) for row in found["items"]]
            exact = exact or own
            recall = sum(len(one & other) for one, other in zip(exact, own, strict=True)) / sum(map(len, exact))
            cells = [f"{found['made']:.2f} s", *(f"{1000 * found[name]:.1f} ms" for name in ("floor", "alone", "together"))]
            cells += [*(f"{found[name] / 1e6:.0f} MB" for name in ("held", "peak")), f"{recall:.3f}"]
            sys.stdout.write(f"{f'{kind}, {way}':<30}" + "".join(f"{cell:>12}" for cell in cells) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
