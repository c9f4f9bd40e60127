"""The command line: ``--model --dataset --config_files`` and any ``--key=value``, in RecBole's manner."""

import argparse
import sys
from collections.abc import Sequence

from recbole_llara.utils.errors import exit_status

_DESCRIPTION = "Train and evaluate a model on the candidates of its test rows."
_EPILOG = """\
Any further key of properties/ or of RecBole: --key=value, over those of the config files.
  --model=SASRec --dataset=ml-100k --protocol=leave_one_out
  --model=LLaRA  --dataset=ml-100k --rec_model=GRU4Rec --rec_epochs=50 --decoding=generate
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the named arguments; all others are keys of the configuration."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", help="one of our models, or a RecBole sequential one (see --list_models)")
    parser.add_argument("--dataset", "-d", help="ml-100k, or the name of a folder of data_path")
    parser.add_argument("--config_files", metavar='"A.yaml B.yaml"', help="YAML files, parted by spaces; later ones win")
    parser.add_argument("--list_models", action="store_true", help="list the models and end")
    return parser


def list_models() -> str:
    """The names of all models, ours first, one paragraph each."""
    from recbole_llara.config.models import MODELS, stock_models

    return f"recbole-llara: {', '.join(MODELS)}\nRecBole: {', '.join(sorted(stock_models()))}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; None = ``sys.argv[1:]``.

    Returns:
        The exit status: 0, 2 for a user's mistake, 130 when interrupted.
    """
    arguments, keys = build_parser().parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _run(arguments, keys))


def _run(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    if arguments.list_models:
        sys.stdout.write(list_models())
        return
    from recbole_llara.quick_start import run_recbole_llara

    run_recbole_llara(
        model=arguments.model,
        dataset=arguments.dataset,
        config_file_list=(arguments.config_files or "").split(),
        argv=keys,
    )
