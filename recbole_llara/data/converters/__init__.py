"""Raw files to RecBole's atomic files: ``recbole-llara convert NAME --raw DIR --out DIR``.

The result is ``OUT/NAME/NAME.inter`` and ``.item``; runs find it with ``--dataset=NAME --data_path=OUT``.
"""

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module

from recbole_llara.utils.errors import UserError, nearest

# A converter makes ``tables.Tables`` out of the command's options; a text names one, imported when it is used.
CONVERTERS: dict[str, Callable[[Namespace], object] | str] = {
    **dict.fromkeys(("ml-100k", "ml-1m", "ml-latest"), "published:movielens"),
    **dict.fromkeys(("lastfm", "lastfm-llara"), "published:lastfm"),
    "steam": "published:steam",
    "generic": "own:generic",
    "windows": "ready_made:windows",
}
_PACKAGED = frozenset(CONVERTERS)
SPLITS = ("train", "valid", "test")
UNITS = ("s", "ms", "us", "ns")  # of times that are numbers


def register_converter(name: str, converter: Callable[[Namespace], object]) -> None:
    """Let ``recbole-llara convert NAME`` make a dataset of another kind; the file with this call is given as ``--plugins``.

    Args:
        name: of the converter; a name registered before is replaced.
        converter: takes the command's options (``name``, ``raw`` or None, ``out``, ``max_malformed`` and the others), and returns
            ``tables.Tables``. It raises ``UserError`` for what the user can mend.

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
    if options.plugins:
        from recbole_llara.config.models import load_plugins

        load_plugins(options.plugins)
    from recbole_llara.data.converters.report import report
    from recbole_llara.data.tables import write_dataset

    if options.name not in CONVERTERS:
        raise UserError(f"convert: found {options.name!r}, expected a converter; {nearest(options.name, CONVERTERS)}")
    converter = CONVERTERS[options.name]
    if isinstance(converter, str):
        module, _, function = converter.partition(":")
        converter = getattr(import_module(f"{__name__}.{module}"), function)
    tables = converter(options)
    return report(tables, write_dataset(tables, options.out, options.overwrite), options.out)
