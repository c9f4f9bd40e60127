"""The command of a hyper-parameter search in RecBole's manner.

A parameter file (``search_space``) and keys (``search_definition``) say what is searched. ``search_trials`` runs the trials,
which optuna proposes and keeps; ``search_report`` writes the best configuration as YAML, tables and a figure.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from recbole_llara.utils.errors import exit_status

_EPILOG = """\
Any further key of properties/ or of RecBole: --key=value, for all trials. The same command resumes a search that was
stopped or killed, and several processes may run it at once.
  --model=SASRec --dataset=ml-100k --protocol=leave_one_out --params_file=SASRec
  --model=LLaRA  --dataset=ml-100k --params_file=LLaRA --algo=bayes --max_evals=12 --processes=2
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the named arguments; all others are keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara search",
        description="Search hyper-parameters by what they score on the validation rows.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", help="one of our models, or a RecBole sequential one")
    parser.add_argument("--dataset", "-d", help="ml-100k, or the name of a folder of data_path")
    parser.add_argument("--config_files", metavar='"A.yaml B.yaml"', help="YAML files, separated by spaces; later ones win")
    parser.add_argument("--params_file", help="a parameter file in RecBole's form, or the name of one of properties/search")
    parser.add_argument("--algo", default="exhaustive", help="exhaustive (choices only; the default), random, bayes")
    parser.add_argument("--max_evals", type=int, help="trials in all, with those of earlier calls (10; exhaustive: all)")
    parser.add_argument("--processes", type=int, default=1, help="that share the trials (1)")
    parser.add_argument("--output", help="the search's folder (one below checkpoint_dir/search)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search; returns the exit status: 1 where every trial failed, 2 for a user's mistake, 128 + the signal when stopped."""
    logging.captureWarnings(True)
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, keys = build_parser().parse_known_args(argv)
    statuses: list[int] = []
    return exit_status("search", lambda: statuses.append(_run(argv, arguments, keys))) or statuses[0]


def _run(argv: Sequence[str], arguments: argparse.Namespace, keys: Sequence[str]) -> int:
    from recbole_llara.experiments.runner import run_command  # torch, which takes seconds to import
    from recbole_llara.experiments.search_definition import best_of, read_command
    from recbole_llara.experiments.search_report import write_search_report
    from recbole_llara.experiments.search_trials import SearchTrials

    def make_trials(gpu: int | None, is_first: bool) -> SearchTrials:
        search = read_command(arguments, keys)
        if gpu is not None and "gpu_id" not in search.fixed:
            search = replace(search, fixed={**search.fixed, "gpu_id": gpu})
        return SearchTrials(search)

    def report(trials: SearchTrials) -> int:
        finished = trials.finished()
        sys.stdout.write(write_search_report(trials.search, finished))
        return int(best_of(trials.search, finished) is None)

    own = [*argv, "--processes=1"]  # the last of two counts
    return run_command("search", own, arguments.processes, make_trials, report)
