"""One command: ``recbole-llara [run|study|search|recommend|explain|serve|export|card|convert|candidates|leaks]``; without a name it trains and evaluates.

Nothing heavy is imported before a command does its work, so that ``--help`` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from recbole_llara.utils.errors import exit_status, nearest
from recbole_llara.utils.process_setup import prepare_process
from recbole_llara.utils.requirements import recbole_fault

# Command -> its function, which takes the arguments and returns the exit status, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("cli:run_main", "train and evaluate a model on the candidates of its test rows (the default)"),
    "study": ("experiments.command:study_main", "several systems on the same rows and candidates, over seeds"),
    "search": ("experiments.command:search_main", "search hyper-parameters by their score on the validation rows"),
    "recommend": ("serving.command:recommend_main", "recommend items with a finished run"),
    "explain": ("serving.command:explain_main", "show where one item of a run's answer comes from"),
    "serve": ("serving.http.command:main", "serve a finished run over HTTP, with a page that shows runs side by side"),
    "export": ("serving.command:export_main", "write a finished run as a folder that others can use"),
    "card": ("serving.card_command:main", "write a model card of a finished run, or a data card of a dataset"),
    "convert": ("data.command:convert_main", "convert the files of a dataset to RecBole's atomic files"),
    "candidates": (
        "recommender.command:candidates_main",
        "write a candidate_file of items that a recommender proposes",
    ),
    "leaks": ("recommender.command:leaks_main", "check whether rules without a model can find the targets of a run"),
}
WITHOUT_TORCH = frozenset({"convert", "serve"})  # the workers of serve set themselves up
_EPILOG = """\
Any other key of properties/ or of RecBole is given as --key=value, and overrides the config files.
  --model=SASRec --dataset=ml-100k --protocol=leave_one_out
  --model=LLaRA  --dataset=ml-100k --rec_model=GRU4Rec --rec_epochs=50 --decoding=generate

commands, each with its own --help:
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of a run's named arguments; all others are keys of the configuration."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="recbole-llara",
        usage="recbole-llara [COMMAND] [--model MODEL] [--dataset DATASET] [--key=value ...]",
        description="Train and evaluate a model on the candidates of its test rows.",
        epilog=_EPILOG + "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help", "-h", nargs="?", const="", metavar="KEY", help="show this help, or what KEY means, and exit")
    parser.add_argument("--model", "-m", help="one of our models, or a RecBole sequential one (see --list_models)")
    parser.add_argument("--dataset", "-d", help="ml-100k, or the name of a folder of data_path")
    parser.add_argument("--config_files", metavar='"A.yaml B.yaml"', help="YAML files, separated by spaces; later ones win")
    parser.add_argument("--list_models", action="store_true", help="list the models and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None = ``sys.argv[1:]``.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words and not words[0].startswith("-") else "run"
    if name not in COMMANDS:
        sys.stderr.write(
            f"recbole-llara: error: found {name!r}, expected a command or --key=value; {nearest(name, COMMANDS)}\n"
        )
        return 2
    if fault := recbole_fault():
        sys.stderr.write(f"recbole-llara: error: {fault}\n")
        return 2
    if not {"-h", "--help"} & set(words) and name not in WITHOUT_TORCH:
        prepare_process()
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(f"recbole_llara.{module}"), function)(words)


def run_main(argv: Sequence[str]) -> int:
    """Train and evaluate one model; the exit status is that of ``exit_status``."""
    arguments, keys = build_parser().parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _run(arguments, keys))


def _run(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    if arguments.help:
        from recbole_llara.config.help import describe_key

        sys.stdout.write(describe_key(arguments.help) + "\n")
    elif arguments.help is not None:
        sys.stdout.write(build_parser().format_help())
    elif arguments.list_models:
        from recbole_llara.config.models import MODELS, stock_models

        sys.stdout.write(f"recbole-llara: {', '.join(MODELS)}\nRecBole: {', '.join(sorted(stock_models()))}\n")
    else:
        from recbole_llara.quick_start import run_recbole_llara
        from recbole_llara.utils.processes import end_group

        files = (arguments.config_files or "").split()
        run_recbole_llara(model=arguments.model, dataset=arguments.dataset, config_file_list=files, argv=keys)
        end_group()
