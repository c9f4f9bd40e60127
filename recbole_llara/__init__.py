"""recbole-llara: large language models as sequential recommenders, on RecBole's spine.

Importing the package imports neither RecBole nor torch: what is named here is imported when it is first asked for.
"""

import sys
from importlib import import_module

from recbole_llara.utils import __version__

if sys.version_info < (3, 11):  # noqa: UP036 pip refuses such a Python, but a checkout can be started by it
    # SystemExit: a command ends with this one line. This file itself compiles on Python 3.6.
    raise SystemExit(
        f"recbole-llara: error: found Python {sys.version.split()[0]}, expected 3.11 to 3.13; see docs/pages/install.md"
    )

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
        fault = import_module("recbole_llara.utils.requirements").recbole_fault()
        if fault is not None:
            raise ImportError(fault)
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
