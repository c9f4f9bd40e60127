"""Raw files to RecBole's atomic files: ``recbole-llara convert NAME --raw DIR --out DIR``.

The result is ``DIR/NAME/NAME.inter`` and ``.item``; runs find it with ``--dataset=NAME --data_path=DIR``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.data.converters import generic, lastfm, movielens, steam, windows
from recbole_llara.data.converters.tables import Tables, write_dataset
from recbole_llara.utils.errors import UserError, exit_status

RAW_CONVERTERS = {
    **dict.fromkeys(movielens.FORMATS, movielens.convert),
    "lastfm": lastfm.convert,
    "lastfm-llara": lastfm.convert,
    "steam": steam.convert,
}
NAMES = (*RAW_CONVERTERS, "generic", "windows")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="convert.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--raw", type=Path, help="folder of the raw files")
    parser.add_argument("--out", type=Path, required=True, help="folder of datasets, RecBole's data_path")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    parser.add_argument(
        "--max_malformed", type=float, default=0.001, help="share of malformed lines that is left out (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2020, help="steam: of the third of users and games (default %(default)s)")
    parser.add_argument("--inter", type=Path, help="generic: interactions, CSV, TSV or Parquet")
    parser.add_argument("--item", type=Path, help="generic: items, likewise; windows: titles, TSV")
    for split in windows.SPLITS:
        parser.add_argument(f"--{split}", type=Path, help=f"windows: the {split} rows, TSV of history, length and next item")
    parser.add_argument(
        "--columns", help="generic: OURS=YOURS,... for user_id, item_id, timestamp, title, rating, release_year, class"
    )
    parser.add_argument(
        "--quoting",
        choices=generic.QUOTINGS,
        help="generic: csv = cells may stand in quotes (default of CSV); none = a quote is text (default of TSV)",
    )
    parser.add_argument("--dataset", help="generic, windows: the dataset's name (default: that of the interactions' file)")
    return parser


def read_tables(arguments: argparse.Namespace) -> tuple[str, Tables]:
    """The dataset's name and its tables.

    Raises:
        UserError: an argument is missing, or a raw file cannot be read.
    """
    if arguments.name == "generic":
        if arguments.inter is None or arguments.item is None:
            raise UserError("generic: expected --inter FILE and --item FILE")
        name = arguments.dataset or Path(arguments.inter.name.removesuffix(".gz")).stem
        columns = generic.parse_columns(arguments.columns)
        return name, generic.convert(arguments.inter, arguments.item, columns, arguments.quoting)
    if arguments.name == "windows":
        files = {split: getattr(arguments, split) for split in windows.SPLITS}
        missing = [
            f"--{key}"
            for key, value in {**files, "item": arguments.item, "dataset": arguments.dataset}.items()
            if value is None
        ]
        if missing:
            raise UserError(
                f"windows: found no {', '.join(missing)}, expected --train, --valid, --test, --item FILE and --dataset NAME"
            )
        return arguments.dataset, windows.convert(files, arguments.item, arguments.max_malformed)
    if arguments.raw is None:
        raise UserError(f"{arguments.name}: expected --raw DIR, the folder of the raw files")
    options = {"seed": arguments.seed} if arguments.name == "steam" else {}
    return arguments.name, RAW_CONVERTERS[arguments.name](arguments.name, arguments.raw, arguments.max_malformed, **options)


def convert(argv: Sequence[str]) -> str:
    """Convert one dataset and return the report.

    Args:
        argv: the command line's words.
    """
    arguments = build_parser().parse_args(argv)
    name, tables = read_tables(arguments)
    counts = write_dataset(tables, arguments.out, name, arguments.overwrite)
    lines = [f"{arguments.out / name}:"]
    for what, count in counts.items():
        paper = tables.published.get(what)
        lines.append(
            f"  {count:>9,} {what}"
            + ("" if paper is None else f"  (papers: {paper:,}{'' if paper == count else ', see below'})")
        )
    lines += [f"  - {difference}" for difference in tables.differences]
    if tables.warning is not None:
        lines.append(f"WARNING: {tables.warning}")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, print the report and return the exit status."""
    return exit_status("convert", lambda: sys.stdout.write(convert(sys.argv[1:] if argv is None else argv)))
