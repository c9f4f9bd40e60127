"""How fast Steam's reviews, or a catalogue of one's own, are converted, and in how much memory.

    python tests/benchmarks/bench_convert.py [--lines 1000000]
    python tests/benchmarks/bench_convert.py --own [--lines 1000000]

With ``--own`` a CSV file of interactions goes through ``convert generic``; beside it, in a process of its own, pandas reads the same file,
ids as texts. The ratio of both peaks above an idle process is told.

Synthetic lines in the raw file's form, with review texts of some 300 characters. Beside it: ``ast.literal_eval`` of the same lines,
which is the plain way to read them, and gzip alone, which is the floor.
"""

import argparse
import ast
import gzip
import resource
import subprocess
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


def write_own(folder: Path, lines: int) -> None:
    """A CSV file of interactions, and one of 10,000 titles."""
    rng = np.random.default_rng(0)
    users, games = rng.integers(0, max(1, lines // 30), lines), rng.integers(0, 10_000, lines)
    times = 1_600_000_000 + np.arange(lines)
    with open(folder / "own.csv", "w", encoding="utf-8") as file:
        file.write("user_id,item_id,timestamp,rating\n")
        file.writelines(
            f"user {user},game-{game:05},{time},4.5\n" for user, game, time in zip(users, games, times, strict=True)
        )
    with open(folder / "titles.csv", "w", encoding="utf-8") as file:
        file.write("item_id,title\n" + "".join(f"game-{game:05},Game {game}\n" for game in range(10_000)))


def alone(code: str) -> tuple[float, float]:
    """Seconds and the peak (MiB) of code in a process of its own, which prints the seconds."""
    peak = "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)"
    timed = f"from time import perf_counter\nimport pandas as pd\nstarted = perf_counter()\n{code}\nseconds = perf_counter() - started"
    done = subprocess.run([sys.executable, "-c", f"{timed}\nprint(seconds){peak}"], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def bench_own(folder: Path, lines: int) -> None:
    """``convert generic`` beside ``pandas.read_csv``."""
    write_own(folder, lines)
    words = ["generic", "--inter", str(folder / "own.csv"), "--item", str(folder / "titles.csv"), "--out", str(folder / "out")]
    called = "from recbole_llara.data.command import convert_main"
    idle = alone(f"{called}\nimport recbole_llara.data.converters.own")[1]
    ours = alone(f"{called}\nassert convert_main({words!r}) == 0")
    plain = alone(f"table = pd.read_csv({str(folder / 'own.csv')!r}, dtype={{'user_id': str, 'item_id': str}})")
    bare = alone("")[1]
    sys.stdout.write(
        f"{lines:,} lines: {lines / ours[0]:,.0f} lines/s, {ours[0] / plain[0]:.1f} times as long as pandas.read_csv alone; "
        f"{ours[1] - idle:,.0f} MiB above an idle process, {(ours[1] - idle) / (plain[1] - bare):.2f} times pandas' table\n"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--own", action="store_true", help="a CSV file through convert generic")
    options = parser.parse_args(argv)
    lines = options.lines
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.own:
            bench_own(folder, lines)
            return
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
