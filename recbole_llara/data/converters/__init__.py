"""Raw files to RecBole's atomic files: ``recbole-llara convert NAME --raw DIR --out DIR``.

The result is ``OUT/NAME/NAME.inter`` and ``.item``; runs find it with ``--dataset=NAME --data_path=OUT``.
"""

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from recbole_llara.utils.errors import UserError

# A converter makes the dataset's name and tables out of the command's options; a text names one, imported when it is used.
Converter = Callable[[Namespace], tuple[str, Any]]
CONVERTERS: dict[str, Converter | str] = {
    **dict.fromkeys(("ml-100k", "ml-1m", "ml-latest"), "movielens:from_options"),
    **dict.fromkeys(("lastfm", "lastfm-llara"), "lastfm:from_options"),
    "steam": "steam:from_options",
    "generic": "generic:from_options",
    "windows": "windows:from_options",
}
_PACKAGED = frozenset(CONVERTERS)
QUOTINGS = ("csv", "none")
SPLITS = ("train", "valid", "test")


def register_converter(name: str, converter: Converter) -> None:
    """Let ``recbole-llara convert NAME`` make a dataset of another kind; the file with this call is given as ``--plugins``.

    Args:
        name: of the converter; a name registered before is replaced.
        converter: takes the command's options (``name``, ``raw`` or None, ``out``, ``max_malformed`` and the others), and returns
            the dataset's name and its ``tables.Tables``. It raises ``UserError`` for what the user can mend.

    Raises:
        UserError: the name is one of this package's.
    """
    if name in _PACKAGED:
        raise UserError(f"register_converter: the name {name} is taken by this package; choose another")
    CONVERTERS[name] = converter


def convert(options: Namespace) -> str:
    """Convert one dataset; returns the report.

    Raises:
        UserError: an option is missing, a raw file cannot be read, or the dataset is there already.
    """
    from recbole_llara.data.converters.tables import write_dataset

    converter = CONVERTERS[options.name]
    if isinstance(converter, str):
        module, _, function = converter.partition(":")
        converter = getattr(import_module(f"{__name__}.{module}"), function)
    name, tables = converter(options)
    lines = [f"{options.out / name}:"]
    for what, count in write_dataset(tables, options.out, name, options.overwrite).items():
        paper = tables.published.get(what)
        beside = "" if paper is None else f"  (papers: {paper:,}{'' if paper == count else ', see below'})"
        lines.append(f"  {count:>9,} {what}{beside}")
    lines += [f"  - {difference}" for difference in tables.differences]
    if tables.warning is not None:
        lines.append(f"WARNING: {tables.warning}")
    return "\n".join(lines) + "\n"


def raw_folder(options: Namespace) -> tuple[str, Path, float]:
    """The converter's name, the folder of the raw files and ``max_malformed``.

    Raises:
        UserError: no folder is given.
    """
    if options.raw is None:
        raise UserError(f"{options.name}: expected --raw DIR, the folder of the raw files")
    return options.name, options.raw, options.max_malformed
