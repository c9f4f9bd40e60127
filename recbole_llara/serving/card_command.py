"""``recbole-llara card``: a model card of a finished run, or a data card of a dataset."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.utils.errors import UserError, exit_status

_EPILOG = """\
  --run=saved/LLaRA-ml-100k-... --output=README.md
  --dataset=ml-100k --protocol=leave_one_out --output=ml-100k.md
Without --output the card is printed. "recbole-llara export" puts a card into the folder that it makes.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``card``; further arguments are keys of the data, with ``--dataset``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara card",
        description="Write a model card of a finished run, or a data card of a dataset, in Hugging Face's form.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="the folder of a finished run, or an exported one: a model card")
    what.add_argument("--dataset", "-d", help="ml-100k, or the name of a folder of data_path: a data card")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the card there (default: print it)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--license", help="an identifier of the Hugging Face hub, such as mit (default: to be filled in by hand)"
    )
    parser.add_argument(
        "--epochs", type=int, default=5, help="data card: training epochs whose draws the leak rules see (default %(default)s)"
    )
    parser.add_argument(
        "--plugins", action="append", default=[], metavar="FILE.py", help="registers a model of your own; may be given again"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a card; the exit status is that of ``exit_status``."""
    arguments, keys = build_parser().parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _write(arguments, keys))


def _write(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    from recbole_llara.utils.atomic import write_text

    output = arguments.output
    if output is not None and output.exists() and not arguments.overwrite:
        raise UserError(f"--output: {output} is there already, expected a file to be made; --overwrite replaces it")
    if arguments.epochs < 1:
        raise UserError(f"--epochs: found {arguments.epochs}, expected a whole number from 1")
    card = _model_card(arguments, keys) if arguments.run else _data_card(arguments, keys)
    if output is None:
        sys.stdout.write(card)
    else:
        sys.stdout.write(f"written: {write_text(output, card)}\n")


def _model_card(arguments: argparse.Namespace, keys: Sequence[str]) -> str:
    from recbole_llara.serving.card import model_card

    if keys:
        raise UserError(f"found {keys[0]!r}, expected no key with --run: a model card is about the run's own keys")
    return str(model_card(arguments.run, licence=arguments.license, plugins=arguments.plugins))


def _data_card(arguments: argparse.Namespace, keys: Sequence[str]) -> str:
    import logging

    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.config.settings import COLD_ITEMS, SPLITS
    from recbole_llara.data.card import data_card
    from recbole_llara.data.dataset import prepare_data

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    defaults = {"model": "Popularity", "dataset": arguments.dataset, "state": "WARNING", "plugins": arguments.plugins}
    config = RunConfig(config_dict=defaults, argv=keys)
    title_field = config["title_field"]
    if SPLITS[config["protocol"]] != COLD_ITEMS:  # which holds items out by their titles
        config["title_field"] = None  # items without a title are counted, not refused
    return str(data_card(prepare_data(config), title_field, arguments.epochs, arguments.license))
