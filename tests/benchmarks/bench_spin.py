"""What it costs and saves that waiting threads sleep early: training by GOMP_SPINCOUNT, on cores as they are and beside a busy program.

python tests/benchmarks/bench_spin.py [--spins 1000 10000 300000] [--rounds 3]

Each cell is the training time of one epoch of SASRec or of LLaRA on the embedded LLM, ml-100k, by as many threads as there are cores;
the median of the rounds, which take the settings in turn. 300,000 is what GNU's OpenMP does by itself.
"""

import argparse
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from statistics import median

import torch

TRAINED = re.compile(r"epoch 0 training \[time: ([\d.]+)s")
SHARED = ("--dataset=ml-100k", "--protocol=leave_one_out", "--epochs=1", "--max_eval_rows=16", "--show_progress=False")
RUNS = {
    "SASRec": ("--model=SASRec",),
    "LLaRA": ("--model=LLaRA", "--rec_epochs=1", "--rec_max_train_rows=5000", "--train_batch_size=32"),
}
WIDTH = 14


@contextmanager
def busy_program():
    """A program that holds one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            yield
        finally:
            program.kill()


def training_seconds(model: str, spins: int, rows: int) -> float:
    """Of a run in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    environment |= {"GOMP_SPINCOUNT": str(spins)}
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llara", *SHARED, *RUNS[model], f"--max_train_rows={rows}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(TRAINED.findall(done.stdout + done.stderr)[-1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", type=int, nargs="+", default=[1000, 10000, 300000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs=2, default=[25000, 512], metavar=tuple(RUNS), help="of an epoch")
    arguments = parser.parse_args(argv)
    rows = dict(zip(RUNS, arguments.rows, strict=True))
    training_seconds("LLaRA", arguments.spins[0], rows["LLaRA"])  # trains the SASRec that the others read
    found = {(spins, model, is_busy): [] for spins in arguments.spins for model in RUNS for is_busy in (False, True)}
    for _ in range(arguments.rounds):
        for (spins, model, is_busy), taken in found.items():
            with busy_program() if is_busy else nullcontext():
                taken.append(training_seconds(model, spins, rows[model]))
    sys.stdout.write(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads; seconds\n")
    names = [f"{model}{', busy' * is_busy}" for model in RUNS for is_busy in (False, True)]
    sys.stdout.write("looks".rjust(WIDTH) + "".join(name.rjust(WIDTH) for name in names) + "\n")
    for spins in arguments.spins:
        cells = [f"{median(taken):{WIDTH}.1f}" for (one, _, _), taken in found.items() if one == spins]
        sys.stdout.write(f"{spins:{WIDTH}}{''.join(cells)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
