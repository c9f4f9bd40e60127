"""The commands ``study`` and ``search``: many runs, by one process or several, and a report of them.

A study compares systems on the same rows: ``study_definition`` says which, ``study_arms`` names the runs that they need, ``study_runs``
runs them, ``study_summary`` computes the statistics, ``study_report`` shows them. A search looks for a model's best keys, in RecBole's manner:
``search_definition`` says among which, ``search_trials`` runs and shows the trials, which optuna proposes and keeps.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recbole_llara.config.yaml_files import property_files
from recbole_llara.experiments.study_definition import read_command as read_study
from recbole_llara.utils.errors import UserError, exit_status

_SEARCH_EPILOG = """\
Any other key of properties/ or of RecBole: --key=value, for all trials. The same command resumes a search that was
stopped or killed, and several processes may run it at once.
  --model=SASRec --dataset=ml-100k --protocol=leave_one_out --params_file=SASRec
  --model=LLaRA  --dataset=ml-100k --params_file=LLaRA --algo=bayes --max_evals=12 --processes=2
"""


def study_parser() -> argparse.ArgumentParser:
    """The parser of a study's named arguments; all others are its name and keys."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara study",
        usage="%(prog)s NAME [--dataset=...] [--seeds=...] [--candidate_seeds=...] [--key=value ...] [--fresh] [--processes=N]",
        description="Run several systems on the same rows and candidates, compare them, and write tables, figures and a page.",
        epilog=f"NAME: {', '.join(property_files('study'))}, or a YAML file. --key=value: any key of properties/, for all systems. "
        "The same command resumes a study that was stopped or killed.",
        allow_abbrev=False,
    )
    parser.add_argument("--fresh", action="store_true", help="run finished systems again; use it after changing code")
    parser.add_argument("--processes", type=int, default=1, help="the number of processes that share the systems (1)")
    return parser


def study_main(argv: Sequence[str]) -> int:
    """Run a study; returns the exit status: 1 where a system failed, 2 for a user's mistake, 128 + the signal when stopped."""
    arguments, words = study_parser().parse_known_args(argv)

    def make(defaults: Mapping[str, Any], is_first: bool) -> Any:
        from recbole_llara.experiments.study_runs import StudyRuns

        runs = StudyRuns(read_study(words, defaults), arguments.fresh and is_first)
        runs.check_llms()
        return runs

    def report(runs: Any) -> tuple[str, bool]:
        from recbole_llara.experiments.study_arms import FailedArm
        from recbole_llara.experiments.study_report import write_study_report

        return write_study_report(runs.study, runs.outcomes), any(isinstance(one, FailedArm) for one in runs.finished())

    return _main("study", words, arguments.processes, make, report)


def search_parser() -> argparse.ArgumentParser:
    """The parser of a search's named arguments; all others are keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara search",
        description="Search hyper-parameters by their score on the validation rows.",
        epilog=_SEARCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", help="one of our models, or a RecBole sequential one")
    parser.add_argument("--dataset", "-d", help="ml-100k, or the name of a folder of data_path")
    parser.add_argument("--config_files", metavar='"A.yaml B.yaml"', help="YAML files, separated by spaces; later ones win")
    parser.add_argument("--params_file", help="a parameter file in RecBole's form, or the name of one of properties/search")
    parser.add_argument("--algo", default="exhaustive", help="exhaustive (choices only; the default), random, bayes")
    parser.add_argument("--max_evals", type=int, help="trials in all, with those of earlier calls (10; exhaustive: all)")
    parser.add_argument("--processes", type=int, default=1, help="the number of processes that share the trials (1)")
    parser.add_argument("--output", help="the search's folder (one below checkpoint_dir/search)")
    return parser


def search_main(argv: Sequence[str]) -> int:
    """Run a search; returns the exit status: 1 where every trial failed, else as that of a study."""
    arguments, keys = search_parser().parse_known_args(argv)

    def make(defaults: Mapping[str, Any], is_first: bool) -> Any:
        from recbole_llara.experiments.search_definition import read_command as read_search
        from recbole_llara.experiments.search_trials import SearchTrials

        return SearchTrials(read_search(arguments, keys, defaults))

    def report(trials: Any) -> tuple[str, bool]:
        return trials.report(), trials.best() is None

    return _main("search", [*argv, "--processes=1"], arguments.processes, make, report)  # the last of two counts


def _main(
    command: str,
    argv: Sequence[str],
    processes: int,
    make: Callable[[Mapping[str, Any], bool], Any],
    report: Callable[[Any], tuple[str, bool]],
) -> int:
    """Perform a plan in one process, or in several that are started with ``argv``, and print its report in the first.

    Args:
        make: builds the plan from keys under those of files and command line, and whether this is the first of the processes.
        report: writes the report; returns what to print, and whether what was wanted has failed.
    """
    logging.captureWarnings(True)
    status = 0

    def run() -> None:
        nonlocal status
        from recbole_llara.experiments import runner  # torch, which takes seconds to import
        from recbole_llara.utils.processes import go_alone, launched

        if processes < 1:
            raise UserError(f"processes: found {processes}, expected a whole number from 1")
        # Processes that a launcher has started take whole runs, so none waits for another's steps.
        index, gpu = go_alone() if launched() > 1 else (0, None)
        runner.end_with_parent()
        environments = runner.environments_of(processes)
        plan = make({} if gpu is None else {"gpu_id": gpu}, index == 0)
        if environments:
            status = runner.run_processes([sys.executable, "-m", "recbole_llara", command, *argv], environments)
            return
        runner.execute(plan)
        if index == 0:
            text, has_failed = report(plan)
            sys.stdout.write(text)
            status = int(has_failed)

    return exit_status(command, run) or status
