"""Time and extra memory of drawing candidates at the size of a large dataset.

    python tests/benchmarks/bench_candidates.py

The floor is the least any draw must do: as many uniform numbers as there are negatives, from numpy's own generator,
with no exclusion, no check for repeats and no place for the target.
"""

import argparse
import logging
import time
import tracemalloc

import numpy as np

from recbole_llara.data.candidates import CandidateSampler
from recbole_llara.data.rows import Rows, SeenItems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--candidate_num", type=int, default=20)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = np.random.default_rng(0)
    users = rng.integers(1, arguments.users + 1, arguments.interactions)
    # Popularity falls as 1 / rank.
    items = np.floor((arguments.items + 1.0) ** rng.random(arguments.interactions)).astype(np.int64)

    start = time.perf_counter()
    seen = SeenItems(np.unique(users * (arguments.items + 1) + items), arguments.items + 1)
    logging.info(f"index of {len(seen.keys):,} distinct interactions: {time.perf_counter() - start:.2f} s")

    rows = rng.choice(arguments.interactions, arguments.rows, replace=False)
    users, items, numbers = users[rows], items[rows], np.arange(arguments.rows)
    start = time.perf_counter()
    rng.integers(1, arguments.items + 1, (arguments.rows, arguments.candidate_num - 1))
    logging.info(f"floor: {time.perf_counter() - start:.2f} s")

    for exclude in ("user", "window"):
        sampler = CandidateSampler(seen, arguments.candidate_num, seed=0, exclude=exclude)
        history = rng.integers(0, arguments.items + 1, (arguments.rows, 10))
        asked = Rows(users, items, history, np.zeros_like(users))
        start, cpu = time.perf_counter(), time.process_time()
        drawn = sampler.draw(numbers, asked, "train")
        logging.info(
            f"{exclude}: {drawn.shape[0]:,} rows of {drawn.shape[1]} candidates over {arguments.items:,} items: "
            f"{time.perf_counter() - start:.2f} s ({time.process_time() - cpu:.2f} s of processor)"
        )
        tracemalloc.start()  # slows the allocations down, so memory is measured in a second draw
        sampler.draw(numbers, asked, "train")
        logging.info(
            f"{exclude}: {tracemalloc.get_traced_memory()[1] / 2**20:.0f} MiB more at the peak, "
            f"{drawn.nbytes / 2**20:.0f} of them the result"
        )
        tracemalloc.stop()


if __name__ == "__main__":
    main()
