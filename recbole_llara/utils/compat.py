"""What RecBole 1.2.1 needs from us to run on today's libraries, beyond the version ranges of setup.py.

Most of it is what we do not do. ``recbole.quick_start`` imports ray, and ray pkg_resources: we import
``recbole.config``, ``data``, ``trainer`` and ``model``, which need neither. ``torch.load`` of RecBole's pickled
checkpoints, refused since torch 2.6, is replaced by safetensors (``checkpoint.weights``). What is left are
warnings that tell a user nothing to act on, and one switch: importing RecBole's sequential models (SINE's module)
turns on autograd's anomaly detection for the whole process, which looks for NaN in every gradient and more than
doubles the time of a training step.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

# (category, text, module): each is a library's own code, or ours, calling something that still works.
_HARMLESS = (
    # The names that every transformers 5 has.
    (
        FutureWarning,
        r"`(gradient_checkpointing_enable|is_gradient_checkpointing)` is deprecated",
        r"transformers\.modeling_utils",
    ),
    # Filling holes of a column in place: pandas 3 stops doing it, and setup.py keeps pandas below 3.
    (FutureWarning, r"A value is trying to be set on a copy of a DataFrame or Series", r"recbole\.data\.dataset\.dataset"),
    (FutureWarning, r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated", r"recbole\.trainer\.trainer"),
)

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def silence_harmless_warnings() -> None:
    """Ignore the warnings of the table above, and no others."""
    for category, message, module in _HARMLESS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)


def prepare_cpu() -> None:
    """Switches of this process without which a CPU trains slowly.

    Numbers below 1.2e-38 become zero: a CPU is slow with them, and training comes to them. Caser on ml-100k fell from 22 to 6
    steps a second after four epochs, and keeps its pace with this. Threads inherit it from the one that starts them: call it
    before torch starts its own.

    Freed memory is kept: glibc would give that of large tensors back to the kernel after every layer, and get it again page by
    page.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def sequential_recommenders() -> ModuleType:
    """RecBole's sequential models, imported without their switching on anomaly detection."""
    enabled = torch.is_anomaly_enabled()
    from recbole.model import sequential_recommender

    torch.autograd.set_detect_anomaly(enabled)
    return sequential_recommender


def make_folders(model: str, checkpoint_dir: str | Path) -> None:
    """Make the folders that RecBole would make: it looks whether they exist, then makes them, and fails if another run was quicker.

    Args:
        model: its name; the log goes to ``log/NAME``.
        checkpoint_dir: the key.
    """
    for folder in (Path("log") / model, checkpoint_dir):
        os.makedirs(folder, exist_ok=True)
