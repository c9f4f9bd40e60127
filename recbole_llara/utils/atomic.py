"""Files and folders that appear whole or not at all: filled beside their place, put on disk, then renamed.

Whatever ends the process, the path shows what it showed before or what was written, never a part of it. A process that is
killed leaves its hidden temporary behind; ``sweep`` removes those. ``sole_writer`` lets one process at a time write.
"""

import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from logging import getLogger
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from recbole_llara.utils.errors import RunError

UNFINISHED, REPLACED = "part", "old"  # what a temporary's name ends with
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, include/uapi/linux/fcntl.h and fs.h


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` write beside ``path``, put it on disk, then rename it to ``path``, which is returned.

    A folder that is there already is swapped for the new one in one step where kernel and file system can do that. Where
    they cannot, it is moved aside first: a reader may find none for a moment, but never a part of one, and after a crash
    in that moment ``sweep`` puts the old one back.

    Args:
        path: what it replaces if it is there; its parent is made if need be.
        write: is given a free path to write to; where it raises, nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, UNFINISHED)
    try:
        write(temporary)
        for place in (*temporary.rglob("*"), temporary):
            _sync(place)
        if not path.is_dir():
            os.replace(temporary, path)
        elif not _swap(temporary, path):
            old = _beside(path, REPLACED)
            os.replace(path, old)
            os.replace(temporary, path)
            _remove(old)
        _sync(path.parent)
    finally:
        _remove(temporary)
    return path


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """``write_file`` of a folder, which is made for ``fill``."""

    def write(folder: Path) -> None:
        folder.mkdir()
        fill(folder)

    return write_file(path, write)


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """``write_file`` of a UTF-8 text, as a whole or in parts, with the errors of ``run_errors``."""

    def write(temporary: Path) -> None:
        with open(temporary, "x", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)

    with run_errors(path):
        return write_file(path, write)


@contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Within, what keeps a run from writing ``path`` becomes a ``RunError`` that says what is kept and what to look at."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be written ({error}); what was written before is untouched. Is the disk full or read-only? "
            "The folder is that of checkpoint_dir or result_file"
        ) from error


def take_lock(path: Path) -> AcquireReturnProxy | None:
    """Take a lock, which ends with the context, and with its process however that ends; None where another process has it."""
    try:
        return FileLock(path).acquire(timeout=0)
    except Timeout:
        return None


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``; other processes wait at this line, and find what was written meanwhile.

    What killed writers left is swept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    if (lock := take_lock(place)) is None:
        getLogger().info(f"Waiting for another process that writes {path}")
        lock = FileLock(place).acquire()
    with lock:
        sweep(path)
        yield


def sweep(path: Path) -> None:
    """Remove what writers of ``path`` that were killed have left beside it.

    Only for a caller that holds the lock all writers of ``path`` take, or that alone writes there: a temporary does not
    tell whether its writer still lives.
    """
    for ending in (REPLACED, UNFINISHED):
        for left in sorted(path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 32}.{ending}")):
            if ending == REPLACED and not path.exists():  # killed between two renames
                os.replace(left, path)
            else:
                _remove(left)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{ending}")


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in one step; whether that was possible. Python itself has no call for it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
