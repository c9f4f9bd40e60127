"""The key ``plugins``: Python files and modules of the user's own, imported so that what they register can be named by keys."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from recbole_llara.utils.errors import UserError


def load_plugins(plugins: Any) -> None:
    """Import each plugin once in a process.

    A plugin is code: it is named on the command line, in the config dict or in the user's own config files, never by the folder
    of a run (``validation.FromRun``).

    Args:
        plugins: the key's value: a list of paths that end in ``.py`` and names of modules, or one of them; None = none.

    Raises:
        UserError: a plugin is not there, or raises while it is imported.
    """
    named = [plugins] if isinstance(plugins, str) else [] if plugins is None else plugins
    for plugin in named if isinstance(named, list | tuple) else [plugins]:
        if not isinstance(plugin, str) or not plugin:
            raise UserError(f"plugins: found {plugin!r}, expected a list of Python files or names of modules")
        try:
            _import_file(Path(plugin)) if plugin.endswith(".py") else importlib.import_module(plugin)
        except UserError as error:
            raise UserError(f"plugins: {plugin}: {error}") from error
        except ModuleNotFoundError as error:
            if error.name != plugin.partition(".")[0] and error.name != plugin:
                raise UserError(f"plugins: {plugin} imports {error.name}, which is not installed") from error
            raise UserError(
                f"plugins: found {plugin!r}, which is no module of this Python; expected a file that ends in .py or an importable module"
            ) from error
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"plugins: {plugin} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
            ) from error


def _import_file(path: Path) -> None:
    path = path.expanduser().resolve()
    name = f"plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise UserError(f"found no such file at {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
