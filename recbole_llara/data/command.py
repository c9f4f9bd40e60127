"""``recbole-llara convert`` and ``recbole-llara leaks``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.data.converters import CONVERTERS, QUOTINGS, SPLITS, convert
from recbole_llara.utils.errors import exit_status

_PLUGINS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
_PLUGINS.add_argument(
    "--plugins", action="append", default=[], metavar="FILE.py", help="registers converters of your own; may be given again"
)


def build_convert_parser() -> argparse.ArgumentParser:
    """The parser of ``recbole-llara convert``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara convert",
        description="Raw files to RecBole's atomic files; a run reads them with --dataset=NAME --data_path=OUT.",
        parents=[_PLUGINS],
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=[*CONVERTERS], metavar="NAME", help=", ".join(CONVERTERS))
    parser.add_argument("--raw", type=Path, help="folder of the raw files")
    parser.add_argument("--out", type=Path, required=True, help="folder of datasets, RecBole's data_path")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    parser.add_argument(
        "--max_malformed", type=float, default=0.001, help="share of malformed lines that is left out (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2020, help="steam: of the third of users and games (default %(default)s)")
    parser.add_argument("--inter", type=Path, help="generic: interactions, CSV, TSV or Parquet")
    parser.add_argument("--item", type=Path, help="generic: items, likewise; windows: titles, TSV")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, help=f"windows: the {split} rows, TSV of history, length and next item")
    parser.add_argument(
        "--columns", help="generic: OURS=YOURS,... for user_id, item_id, timestamp, title, rating, release_year, class"
    )
    parser.add_argument(
        "--quoting",
        choices=QUOTINGS,
        help="generic: csv = cells may stand in quotes (default of CSV); none = a quote is text (default of TSV)",
    )
    parser.add_argument("--dataset", help="generic, windows: the dataset's name (default: that of the interactions' file)")
    return parser


def convert_main(argv: Sequence[str] | None = None) -> int:
    """Convert a dataset and print the report; the exit status is that of ``exit_status``."""

    def convert_dataset() -> None:
        plugins = _PLUGINS.parse_known_args(argv)[0].plugins
        if plugins:
            from recbole_llara.config.models import load_plugins

            load_plugins(plugins)
        sys.stdout.write(convert(build_convert_parser().parse_args(argv)))

    return exit_status("recbole-llara", convert_dataset)


def leaks_main(argv: Sequence[str] | None = None) -> int:
    """Print what rules without a model find; returns the exit status, 1 where one of them is a leak."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara leaks",
        description="What rules without a model find in the draws of a run; further arguments are the run's keys.",
    )
    parser.add_argument("--epochs", type=int, default=5, help="training epochs whose draws the rules see (default %(default)s)")
    arguments, keys = parser.parse_known_args(argv)
    found: list[int] = []

    def find() -> None:
        from recbole_llara.data.leaks import report

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        text, leaks = report(keys, arguments.epochs)
        found.append(leaks)
        sys.stdout.write(text)

    return exit_status("recbole-llara", find) or int(any(found))
