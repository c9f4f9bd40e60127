"""recbole-llara: large language models as sequential recommenders, on RecBole's spine.

Importing the package imports neither RecBole nor transformers: the engine (``prompt``, ``llm.loading``,
``llm.projector``, ``llm.hybrid``, ``llm.answer_loss``) works on a machine without RecBole.
"""

import os
from typing import TYPE_CHECKING

# Read by torch at its first tensor: large ones in huge pages where the kernel gives them (madvise). Together with
# compat.prepare_cpu it made training 1.2 and evaluation 1.3 times as fast on two cores, in less memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from recbole_llara.quick_start import run_recbole_llara
    from recbole_llara.serving import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run_recbole_llara"]


def __getattr__(name: str) -> object:
    """Import what runs and loads runs when it is first asked for, and RecBole with it."""
    if name == "run_recbole_llara":
        from recbole_llara.quick_start import run_recbole_llara

        return run_recbole_llara
    if name == "load":
        from recbole_llara.serving import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
