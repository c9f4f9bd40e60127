"""``recbole-llara convert``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.data.converters import CONVERTERS, SPLITS, convert
from recbole_llara.utils.errors import exit_status


def build_convert_parser() -> argparse.ArgumentParser:
    """The parser of ``recbole-llara convert``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara convert",
        description="Raw files to RecBole's atomic files; a run reads them with --dataset=NAME --data_path=OUT.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"{', '.join(CONVERTERS)}, or one of your own")
    add(
        "--plugins", action="append", default=[], metavar="FILE.py", help="registers converters of your own; may be given again"
    )
    add("--raw", type=Path, help="folder of the raw files")
    add("--out", type=Path, required=True, help="folder of datasets, RecBole's data_path")
    add("--overwrite", action="store_true", help="replace a dataset that is there already")
    add("--max_malformed", type=float, default=0.001, help="share of malformed lines that is left out (default %(default)s)")
    add("--seed", type=int, default=2020, help="steam: of the third of users and games (default %(default)s)")
    add("--inter", type=Path, help="generic: interactions, CSV, TSV or Parquet")
    add("--item", type=Path, help="generic: items, likewise; windows: titles, TSV")
    for split in SPLITS:
        add(f"--{split}", type=Path, help=f"windows: the {split} rows, TSV of history, length and next item")
    add("--columns", help="generic: OURS=YOURS,... for user_id, item_id, timestamp, title, rating, release_year, class")
    quoting = "generic: csv = cells may stand in quotes (default of CSV); none = a quote is text (default of TSV)"
    add("--quoting", choices=("csv", "none"), help=quoting)
    add("--dataset", help="generic, windows: the dataset's name (default: that of the interactions' file)")
    return parser


def convert_main(argv: Sequence[str] | None = None) -> int:
    """Convert a dataset and print the report; the exit status is that of ``exit_status``."""
    return exit_status("recbole-llara", lambda: sys.stdout.write(convert(build_convert_parser().parse_args(argv))))
