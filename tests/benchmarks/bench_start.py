"""How long importing the package and the help of each command take; the aim is a second.

python tests/benchmarks/bench_start.py [--repeats 5]
"""

import argparse
import subprocess
import sys
from statistics import median
from time import perf_counter

from recbole_llara.cli import COMMANDS


def seconds(words: list[str], repeats: int) -> float:
    """The median wall time of a Python process."""
    taken = []
    for _ in range(repeats):
        started = perf_counter()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        taken.append(perf_counter() - started)
    return median(taken)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args(argv).repeats
    measured = {"python alone": ["-c", "pass"], "import recbole_llara": ["-c", "import recbole_llara"]}
    measured |= {f"{name} --help": ["-m", "recbole_llara", name, "--help"] for name in COMMANDS}
    for name, words in measured.items():
        sys.stdout.write(f"{name:<22}{seconds(words, repeats):6.2f} s\n")


if __name__ == "__main__":
    main(sys.argv[1:])
