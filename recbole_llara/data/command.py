"""``recbole-llara convert``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.data.converters import CONVERTERS, SPLITS, UNITS, convert
from recbole_llara.utils.errors import exit_status


def build_convert_parser() -> argparse.ArgumentParser:
    """The parser of ``recbole-llara convert``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara convert",
        description="Convert raw files to RecBole's atomic files. A run reads them with --dataset=NAME --data_path=OUT.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"{', '.join(CONVERTERS)}, or one of your own")
    add("--plugins", action="append", default=[], metavar="FILE.py", help="registers your own converters; may be repeated")
    add("--raw", type=Path, help="folder of the raw files; not for generic and windows")
    add("--out", type=Path, required=True, help="folder of datasets, RecBole's data_path")
    add("--overwrite", action="store_true", help="replace an existing dataset")
    add("--dataset", help="generic, windows: the dataset's name (default: that of the interactions' file)")
    add(
        "--max_malformed",
        type=float,
        default=0.001,
        help="share of malformed lines that may be left out; above it the command fails (default %(default)s)",
    )
    add("--seed", type=int, default=2020, help="steam: of the third of users and games (default %(default)s)")
    add("--item", type=Path, metavar="FILE", help="generic: items, if --inter has no titles; windows: titles, TSV")
    for split in SPLITS:
        add(f"--{split}", type=Path, metavar="FILE", help=f"windows: the {split} rows, TSV of history, length and next item")
    add = parser.add_argument_group("generic", "a dataset of your own: text, JSON or Parquet, also compressed").add_argument
    add("--inter", type=Path, metavar="FILE", help="interactions")
    columns = "OURS=YOURS,... for user_id, item_id, timestamp, title, rating, release_year, class (default: by their names)"
    add("--columns", help=f"{columns}; OURS= takes none; item.item_id for other ids' names in --item")
    add("--inter_header", metavar="NAMES", help="column names, separated by commas, of a file whose first line is data")
    add("--item_header", metavar="NAMES", help="the same for --item")
    add("--separator", metavar="MARK", help="between columns, tab for a tabulator (default: found among , ; tab | ::)")
    add("--encoding", help="of the files, such as cp1252 (default: UTF-8, or cp1252 where that is clear; the report says so)")
    quoting = 'csv = cells may stand in quotes, escaped = with \\" for a quote inside, none = a quote is text (default: found)'
    add("--quoting", choices=("csv", "escaped", "none"), help=quoting)
    add("--time_unit", choices=UNITS, help="of times that are numbers (default: by their size)")
    add("--time_format", metavar="FORMAT", help="of times that are dates, such as %%d/%%m/%%Y (default: ISO 8601)")
    titles = (
        "items without a title: refuse (the default), drop = leave them out with their interactions, id = the id is the title"
    )
    add("--missing_titles", choices=("refuse", "drop", "id"), default="refuse", help=titles)
    duplicates = "interactions of equal user, item and time: drop = the first counts (the default), keep, refuse"
    add("--duplicates", choices=("drop", "keep", "refuse"), default="drop", help=duplicates)
    add(
        "--html",
        choices=("clean", "keep"),
        default="clean",
        help="entities and tags in titles: text (the default), or as they are",
    )
    return parser


def convert_main(argv: Sequence[str] | None = None) -> int:
    """Convert a dataset and print the report; the exit status is that of ``exit_status``."""
    return exit_status("recbole-llara", lambda: sys.stdout.write(convert(build_convert_parser().parse_args(argv))))
