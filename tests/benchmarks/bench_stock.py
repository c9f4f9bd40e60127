"""What a training step of the stock recommenders costs a CPU, here and in RecBole's plain loop: ``make bench-stock``.

    python tests/benchmarks/bench_stock.py [--models SASRec,GRU4Rec,Caser] [--rounds 7] [--steps 20] [--key=value ...]

Both train the same model on the same batches of ml-100k, by turns, and CPU seconds are counted: other work on the machine falls on
both. The floor is the operations of the matrix products over the rate of a large product. An epoch of the full data is shown too.
"""

import argparse
import sys
import tempfile
from itertools import islice
from statistics import median
from time import process_time
from typing import Any

import torch
from measure import MATRIX
from recbole.trainer import Trainer
from torch.utils.flop_counter import FlopCounterMode

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import prepare_data
from recbole_llara.recommender.quick_training import draws_alike, quick_training
from recbole_llara.recommender.stock import make_recommender, stock_trainer
from recbole_llara.utils.process_setup import prepare_process
from recbole_llara.utils.random_state import own_random_state

SEED = 2020


class Side:
    """A model in training, by one of the two loops."""

    def __init__(self, config: Any, is_plain: bool) -> None:
        data = prepare_data(config)  # of its own: the loader's generator orders the rows
        with own_random_state(SEED, True):
            self.trainer = stock_trainer(config, make_recommender(config["model"], config, data.dataset))
            self.random_state = torch.get_rng_state()
        self.loader, self.batches = data.train_data, iter(data.train_data)
        self.is_plain, self.milliseconds, self.losses = is_plain, [], []

    def train(self, steps: int) -> None:
        """So many steps; CPU milliseconds of one, and the sum of their losses."""
        torch.set_rng_state(self.random_state)
        batches, started = islice(self.batches, steps), process_time()
        train = Trainer._train_epoch if self.is_plain else type(self.trainer)._train_epoch
        self.losses.append(train(self.trainer, batches, 0))
        self.milliseconds.append(1000 * (process_time() - started) / steps)
        self.random_state = torch.get_rng_state()


def cpu_rate() -> float:
    """Operations a CPU second in a large matrix product: the best of some."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    spent = []
    for _ in range(6):
        started = process_time()
        a @ b
        spent.append(process_time() - started)
    return 2 * MATRIX**3 / min(spent)


def operations(side: Side, batch: Any) -> int:
    """Those of the matrix products of a step."""
    side.trainer.model.train()
    counter = FlopCounterMode(display=False)
    with quick_training(side.trainer.model), counter:
        side.trainer.model.calculate_loss(batch).backward()
    return counter.get_total_flops()


def point(model: str, rounds: int, steps: int, keys: dict[str, Any], folder: str, rate: float) -> str:
    given = {
        "dataset": "ml-100k",
        "protocol": "leave_one_out",
        "checkpoint_dir": folder,
        "use_gpu": False,
        "state": "ERROR",
        **keys,
    }
    config = RunConfig(model, config_dict=given)
    plain, quick = (Side(config, is_plain) for is_plain in (True, False))
    for _ in range(rounds):
        plain.train(steps)
        quick.train(steps)
    floor = 1000 * operations(quick, next(iter(quick.loader))) / rate
    ratio = median(ours / theirs for ours, theirs in zip(quick.milliseconds[1:], plain.milliseconds[1:], strict=True))
    of_plain, of_quick = median(plain.milliseconds[1:]), median(quick.milliseconds[1:])
    apart = max(abs(one / other - 1) for one, other in zip(quick.losses, plain.losses, strict=True))
    epoch = of_quick * len(quick.loader) / 1000
    return f"{model:<10}{of_plain:>9.1f} ms{of_quick:>9.1f} ms{ratio:>9.3f}{floor:>9.1f} ms{epoch:>9.1f} s{apart:>15.1e}\n"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="SASRec,GRU4Rec,Caser")
    parser.add_argument("--rounds", type=int, default=7, help="the first is not counted")
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    arguments, words = parser.parse_known_args(argv)
    prepare_process()  # denormals are zero, as under the command line
    rate = cpu_rate()
    sys.stdout.write(
        f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s; anomaly detection "
        f"{'on' if torch.is_anomaly_enabled() else 'off'}; dropout's masks {'drawn here' if draws_alike() else 'by torch'}\n"
        f"{'CPU time':<10}{'RecBole':>12}{'here':>12}{'ratio':>9}{'floor':>12}{'epoch':>11}{'losses apart':>15}\n"
    )
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(point(model, arguments.rounds, arguments.steps, parse_arguments(words), folder, rate))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
