"""The command of a study: several systems on the same rows and candidates, over seeds.

``study_definition`` says what is compared, ``study_runs`` runs it, ``study_summary`` computes its statistics, ``study_report``
writes its tables, figures and page.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.experiments.study_definition import Study, known_studies, load_study
from recbole_llara.utils.errors import UserError, exit_status


def build_parser() -> argparse.ArgumentParser:
    """The parser of the named arguments; all others are the study's name and keys."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara study",
        usage="%(prog)s NAME [--dataset=...] [--seeds=...] [--candidate_seeds=...] [--key=value ...] [--fresh] [--processes=N]",
        description="Run several systems on the same rows and candidates, compare them, and write tables, figures and a page.",
        epilog=f"NAME: {', '.join(known_studies())}, or a YAML file. --key=value: any key of properties/, for all systems. "
        "The same command resumes a study that was stopped or killed.",
        allow_abbrev=False,
    )
    parser.add_argument("--fresh", action="store_true", help="run finished systems again; use it after changing code")
    parser.add_argument("--processes", type=int, default=1, help="that share the systems (1)")
    return parser


def read_command(arguments: Sequence[str]) -> Study:
    """The study that the unnamed arguments of a command line ask for.

    Args:
        arguments: the study's name, and ``--key=value`` over its settings.

    Raises:
        UserError: an argument cannot be used.
    """
    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) != 1:
        known = ", ".join(known_studies())
        raise UserError(f"found {len(names)} studies ({', '.join(names)}), expected one of {known} or a YAML file")
    return load_study(names[0]).with_arguments(parse_arguments([argument for argument in arguments if argument != names[0]]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; returns the exit status: 1 where a system failed, 2 for a user's mistake, 128 + the signal when stopped."""
    logging.captureWarnings(True)
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, words = build_parser().parse_known_args(argv)
    statuses: list[int] = []
    return exit_status("study", lambda: statuses.append(_run(arguments, words))) or statuses[0]


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from recbole_llara.experiments.runner import run_command  # torch, which takes seconds to import
    from recbole_llara.experiments.study_report import write_study_report
    from recbole_llara.experiments.study_runs import FailedArm, StudyRuns

    def make_runs(gpu: int | None, is_first: bool) -> StudyRuns:
        study = read_command(words)
        if gpu is not None and "gpu_id" not in study.settings:
            study = study.with_arguments({"gpu_id": gpu})
        return StudyRuns(study, arguments.fresh and is_first)

    def report(runs: StudyRuns) -> int:
        sys.stdout.write(write_study_report(runs.study, runs.outcomes))
        return int(any(isinstance(outcome, FailedArm) for outcome in runs.outcomes.values()))

    return run_command("study", words, arguments.processes, make_runs, report)
