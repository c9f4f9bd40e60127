"""``recbole-llara study NAME [--dataset=...] [--seeds=...] [--candidate_seeds=...] [--key=value ...] [--fresh]``."""

import sys
from collections.abc import Sequence

from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.experiments.study.arms import Failure
from recbole_llara.experiments.study.definition import Study, known_studies, load_study
from recbole_llara.experiments.study.run import StudyRun
from recbole_llara.utils.errors import UserError, exit_status
from recbole_llara.utils.processes import go_alone, launched

FAILED = 1


def read_command(arguments: Sequence[str]) -> tuple[Study, bool]:
    """The study that a command line asks for, and whether finished arms are to be run again.

    Args:
        arguments: the study's name, ``--key=value`` over its settings, and ``--fresh``.

    Raises:
        UserError: an argument cannot be used.
    """
    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) != 1:
        known = ", ".join(known_studies())
        raise UserError(f"found {len(names)} studies ({', '.join(names)}), expected one of {known} or a YAML file")
    words = [argument for argument in arguments if argument not in (names[0], "--fresh")]
    return load_study(names[0]).with_arguments(parse_arguments(words)), "--fresh" in arguments


def run_study(arguments: Sequence[str]) -> bool:
    """Run a study, write its folder, and print its report; of processes launched together, the first does so.

    Args:
        arguments: as for ``read_command``.

    Returns:
        Whether every arm came to its end.

    Raises:
        UserError: an argument cannot be used, or a system's keys.
    """
    from recbole_llara.experiments.study.report import write_report

    study, fresh = read_command(arguments)
    if launched() > 1:
        # Systems are dealt out rather than steps and rows: nothing then waits for anything.
        index, gpu = go_alone()
        if "gpu_id" not in study.settings:
            study = study.with_arguments({"gpu_id": gpu})
        fresh = fresh and index == 0
    else:
        index = 0
    outcomes = StudyRun(study, fresh).run()
    if index == 0:
        sys.stdout.write(write_report(study, outcomes))
    return not any(isinstance(outcome, Failure) for outcome in outcomes.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; returns the exit status: 1 where an arm failed."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "interrupted; finished systems and recommenders are kept, run it again to go on"
    whole: list[bool] = []
    status = exit_status("study", lambda: whole.append(run_study(arguments)), kept)
    return status or (0 if all(whole) else FAILED)
