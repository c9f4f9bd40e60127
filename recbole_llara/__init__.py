"""recbole-llara: large language models as sequential recommenders, on RecBole's spine.

Importing the package imports neither RecBole nor torch: what is named here is imported when it is first asked for.
"""

from importlib import import_module

from recbole_llara.utils import __version__

_LAZY = {
    "run_recbole_llara": "recbole_llara.quick_start",
    "load": "recbole_llara.serving.loaded",
    "register_model": "recbole_llara.config.models",
    "register_converter": "recbole_llara.data.converters",
}
__all__ = ["__version__", "load", "register_converter", "register_model", "run_recbole_llara"]


def __getattr__(name: str) -> object:
    """Import what runs and loads runs when it is first asked for, and RecBole with it."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
