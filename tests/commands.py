"""The commands that pages tell people to type: finding them, and looking at one as far as its configuration."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from recbole_llara.cli import build_parser
from recbole_llara.config.run_config import RunConfig
from recbole_llara.experiments.command import study_parser
from recbole_llara.experiments.study_definition import read_command
from recbole_llara.experiments.study_runs import StudyRuns


def arguments_of(command: str, lines: Iterable[str]) -> list[str]:
    """What follows a command of ``recbole_llara.cli.COMMANDS`` in the lines that run it, under a launcher or not."""
    program = "run_recbole_llara.py" if command == "run" else f"recbole[-_]llara {command}"
    begins = re.compile(rf"(?:(?:python|torchrun|accelerate launch)[^#]*? )?{program} (.*)")
    return sorted({found[1] for line in lines if (found := begins.match(line))})


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows, each a block with its name as the title."""
    for name, content in re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(content, encoding="utf-8")


def check_run(command: str, folder: Path) -> None:
    """Refuse a run's arguments that are no configuration; ``folder`` is the working folder, empty."""
    arguments, keys = build_parser().parse_known_args(shlex.split(command))
    if arguments.dataset != "ml-100k":  # as if it had been converted
        (folder / "dataset" / arguments.dataset).mkdir(parents=True)
        for part in ("", ".train", ".valid", ".test"):
            (folder / "dataset" / arguments.dataset / f"{arguments.dataset}{part}.inter").touch()
        titles = folder / "dataset" / arguments.dataset / f"{arguments.dataset}.item"
        titles.write_text("item_id:token\ttitle:token_seq\n", encoding="utf-8")
    files = (arguments.config_files or "").split()
    config = RunConfig(arguments.model, arguments.dataset, files, argv=keys)
    assert config["model"] == arguments.model


def check_study(command: str, folder: Path) -> None:
    """Refuse a study's arguments that are no study; ``folder`` is the working folder, empty."""
    (folder / "dataset" / "lastfm").mkdir(parents=True)  # as if it had been converted
    (folder / "dataset" / "lastfm" / "lastfm.inter").touch()
    _, words = study_parser().parse_known_args(shlex.split(command))
    StudyRuns(read_command(words))
