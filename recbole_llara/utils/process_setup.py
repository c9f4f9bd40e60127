"""What the process itself is set to: what the command line changes of it, what RecBole changes and is put back, and encodings.

``run_recbole_llara`` and ``load`` leave the process alone: whoever calls them and wants the command line's speed and readable
screen calls ``prepare_process`` first. It changes no feature; without it a CPU trains more slowly.
"""

import codecs
import ctypes
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# (message, module): each is a library's own code, or ours, calling something that still works.
_HARMLESS = (
    # The names that every transformers 5 has.
    (r"`(gradient_checkpointing_enable|is_gradient_checkpointing)` is deprecated", r"transformers\.modeling_utils"),
    (r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated", r"recbole\.trainer\.trainer"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def prepare_process() -> None:
    """Set up the process of a program; call it before torch is imported, and before torch starts its threads.

    - ``THP_MEM_ALLOC_ENABLE=1``, unless the caller has set it: torch asks the kernel for huge pages for large tensors.
    - ``GOMP_SPINCOUNT=1000``, unless the caller has set it or ``OMP_WAIT_POLICY``: a thread that waits for another one sleeps after 1,000
      looks. GNU's OpenMP looks 300,000 times, some milliseconds. Where another program has the core that the other thread needs, these
      are lost: an epoch of SASRec by two threads, one of two cores taken, took 52 s with 10,000 looks and takes 18 s
      (``tests/benchmarks/bench_spin.py``).
    - Numbers below 1.2e-38 become zero: a CPU is slow with them, and training comes to them. Caser on ml-100k fell from 22 to 6
      steps a second after four epochs, and keeps its pace with this. Threads inherit it from the thread that starts them.
    - Freed memory is kept: glibc would give that of large tensors back to the kernel after every layer, and get it again page
      by page.
    - Warnings of other libraries that tell a user nothing to act on are ignored; no others.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is imported
    import numpy as np
    import torch

    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looks at the smallest number once, and warns where that is zero already
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    for message, module in _HARMLESS:
        warnings.filterwarnings("ignore", message=message, category=FutureWarning, module=module)


def give_back_freed_memory() -> None:
    """Let the kernel have what this process has freed, where glibc would keep it: after much was read once and dropped."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)


@contextmanager
def own_environment() -> Iterator[None]:
    """Put the environment variables back afterwards: RecBole's Config sets ``CUDA_VISIBLE_DEVICES`` to ``gpu_id``."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Have transformers show its own bars, of weights read and written, or not, as before afterwards."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    switch[shown and was_shown]()
    try:
        yield
    finally:
        switch[was_shown]()


BYTE_ORDER_MARK = "\ufeff"


def with_mark(encoding: str) -> str:
    """The encoding under which a byte order mark is none of a file's text; UTF-16 and UTF-32 drop the mark themselves."""
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def is_text(text: str) -> bool:
    """Whether a text can be written down, as tokenizers want it: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escape_output() -> None:
    """Write what the console's encoding lacks (Windows, the locale C) as ``\\u9738`` instead of breaking off with an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_json() -> None:
    """From here on standard output is UTF-8 with ``\\n`` at the ends of lines, as JSON wants it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")


def read_json() -> None:
    """From here on standard input is UTF-8; other bytes come as halves of surrogate pairs, for each line to be refused."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
