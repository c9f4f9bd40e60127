"""Hyper-parameter search in RecBole's manner: ``recbole-llara search --model=M --dataset=D --params_file=F``.

parameters (a file) -> definition (what is searched) -> sampling (the next trial) -> run (trials, kept by optuna) -> report
(the best configuration as YAML, tables, a figure).
"""

import logging
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search in this process; returns the exit status."""
    from recbole_llara.experiments.search.__main__ import main as run

    logging.captureWarnings(True)
    return run(argv)
