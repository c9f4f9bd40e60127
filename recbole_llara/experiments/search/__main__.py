"""``recbole-llara search --model=M --dataset=D --params_file=F [--algo=bayes] [--max_evals=12] [--key=value ...]``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from recbole_llara.experiments.search.beside import environments_of, run_beside
from recbole_llara.experiments.search.definition import Search, define
from recbole_llara.experiments.search.parameters import known_files
from recbole_llara.experiments.search.report import write_report
from recbole_llara.experiments.search.run import SearchRun
from recbole_llara.experiments.search.trial import best_of
from recbole_llara.utils.errors import UserError, exit_status
from recbole_llara.utils.processes import go_alone, launched

FAILED = 1
PROGRAM = "search"
_ALGORITHMS = "exhaustive (choices only; the default), random, bayes"
_EPILOG = """\
Any further key of properties/ or of RecBole: --key=value, for all trials. The same command goes on with a search that was
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
    parser.add_argument("--config_files", metavar='"A.yaml B.yaml"', help="YAML files, parted by spaces; later ones win")
    parser.add_argument("--params_file", help="a parameter file in RecBole's form, or the name of one of properties/search")
    parser.add_argument("--algo", default="exhaustive", help=_ALGORITHMS)
    parser.add_argument("--max_evals", type=int, help="trials in all, those of earlier calls among them (10; exhaustive: all)")
    parser.add_argument("--processes", type=int, default=1, help="that share the trials (1)")
    parser.add_argument("--output", help="the search's folder (one below checkpoint_dir/search)")
    return parser


def run_search(argv: Sequence[str]) -> int:
    """Run a search and print its report; of processes launched together, the first prints it.

    Args:
        argv: the arguments without the program's name.

    Returns:
        0, or 1 where no trial came to a score.

    Raises:
        UserError: an argument, a key or a value cannot be used.
    """
    arguments, keys = build_parser().parse_known_args(argv)
    index, gpu = go_alone() if launched() > 1 else (0, None)
    environments = environments_of(arguments.processes)
    search = read_command(arguments, keys)
    if gpu is not None and "gpu_id" not in search.fixed:
        search = replace(search, fixed={**search.fixed, "gpu_id": gpu})
    if environments:
        return run_beside(argv, environments)
    run = SearchRun(search)
    run.run()
    if index != 0:
        return 0
    trials = run.finished()
    sys.stdout.write(write_report(search, trials))
    return FAILED if best_of(search, trials) is None else 0


def read_command(arguments: argparse.Namespace, keys: Sequence[str]) -> Search:
    """The search that a command line asks for.

    Args:
        arguments: the named ones.
        keys: ``--key=value`` for all trials.

    Raises:
        UserError: an argument, a key or a value cannot be used.
    """
    if arguments.params_file is None:
        raise UserError(f"params_file: found none, expected a file or one of {', '.join(known_files())}")
    if arguments.processes < 1:
        raise UserError(f"processes: found {arguments.processes}, expected a whole number from 1")
    return define(
        arguments.model,
        arguments.dataset,
        arguments.params_file,
        algo=arguments.algo,
        max_evals=arguments.max_evals,
        config_files=(arguments.config_files or "").split(),
        argv=keys,
        output=arguments.output,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search; returns the exit status: 2 for a user's mistake, 130 when interrupted, 1 where no trial came to a score."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    ended: list[int] = []
    kept = "interrupted; finished trials are kept, the same command goes on with the rest"
    return exit_status(PROGRAM, lambda: ended.append(run_search(arguments)), kept) or ended[0]
