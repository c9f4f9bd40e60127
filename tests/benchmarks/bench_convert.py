"""How fast Steam's reviews are converted, and in how much memory.

    python tests/benchmarks/bench_convert.py [--lines 1000000]

Synthetic lines in the raw file's form, with review texts of some 300 characters. Beside it: ``ast.literal_eval`` of the same lines,
which is the plain way to read them, and gzip alone, which is the floor.
"""

import argparse
import ast
import gzip
import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from recbole_llara.data.command import convert_main


def write_raw(folder: Path, lines: int) -> None:
    """Synthetic raw files."""
    rng = np.random.default_rng(0)
    users, games = rng.integers(0, max(1, lines // 30), lines), rng.integers(0, 10_000, lines)
    text = 'I don\'t know what to say, but "it" is fine. ' * 7
    with gzip.open(folder / "steam_reviews.json.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        for user, game in zip(users.tolist(), games.tolist(), strict=True):
            review = {"username": f"user {user}", "hours": 1.5, "products": 17, "product_id": str(game), "page_order": 0}
            file.write(f"{review | {'date': '2017-01-02', 'text': text, 'early_access': False, 'page': 1}}\n")
    with gzip.open(folder / "steam_games.json.gz", "wt", encoding="utf-8") as file:
        for game in range(10_000):
            file.write(
                f"{ {'app_name': f'Game {game}', 'id': str(game), 'genres': ['Action'], 'release_date': '2015-03-01'} }\n"
            )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args(argv).lines
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_raw(folder, lines)
        started = perf_counter()
        with gzip.open(folder / "steam_reviews.json.gz", "rt", encoding="utf-8") as file:
            floor_lines = [line for number, line in enumerate(file) if number % 50 == 0]
        floor = perf_counter() - started
        started = perf_counter()
        for line in floor_lines:
            ast.literal_eval(line)
        plain = (perf_counter() - started) * lines / len(floor_lines)
        started = perf_counter()
        convert_main(["steam", "--raw", name, "--out", str(folder / "out")])
        ours = perf_counter() - started
    sys.stdout.write(
        f"{lines:,} lines: {lines / ours:,.0f} lines/s in all; gzip alone {lines / floor:,.0f}; ast.literal_eval {lines / plain:,.0f}; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB at the peak\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
