"""Files and folders that appear whole or not at all: filled beside their place, put on disk, then renamed.

Whatever ends the process, the path shows what it showed before or what was written, never a part of it. A process that is
killed leaves its hidden temporary behind; ``sweep`` removes those. ``sole_writer`` lets one process at a time write.
"""

import ctypes
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_llara.utils.errors import RunError

UNFINISHED, REPLACED = "part", "old"  # what a temporary's name ends with
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, include/uapi/linux/fcntl.h and fs.h


def write_file(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` write a file beside ``path``, put it on disk, then rename it to ``path``.

    Args:
        path: what it replaces if it is there; its folder is made if need be.
        write: is given the path to write to; where it raises, nothing is left of it.

    Returns:
        ``path``.
    """
    with _temporary(path) as temporary:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    return path


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Write a text file, whole or not at all.

    Args:
        path: what it replaces if it is there; its folder is made if need be.
        text: as a whole, or in parts.

    Returns:
        ``path``.

    Raises:
        RunError: it cannot be written; what was there is untouched.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "x", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)

    try:
        return write_file(path, write)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error}); what was written before is untouched. Is the disk full or read-only? "
            "The folder is that of checkpoint_dir or result_file"
        ) from error


def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` fill a new folder beside ``path``, put all that is in it on disk, then rename it to ``path``.

    A folder that is there already is swapped for the new one in one step where kernel and file system can do that. Where
    they cannot, it is moved aside first: a reader may find none for a moment, but never a part of one, and after a crash
    in that moment ``sweep`` puts the old one back.

    Args:
        path: what it replaces if it is there; its parent is made if need be.
        fill: is given the empty folder; where it raises, nothing is left of it.

    Returns:
        ``path``.
    """
    with _temporary(path) as temporary:
        temporary.mkdir()
        fill(temporary)
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        _put_folder(temporary, path)
        _sync(path.parent)
    return path


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``; other processes wait at this line, and find what was written meanwhile.

    The operating system ends a lock with its process, however that ends. What killed writers left is swept.

    Args:
        path: of a file or a folder; the lock lies beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        getLogger().info(f"Waiting for another process that writes {path}")
        lock.acquire()
    try:
        sweep(path)
        yield
    finally:
        lock.release()


def sweep(path: Path) -> None:
    """Remove what writers of ``path`` that were killed have left beside it.

    Only for a caller that holds the lock all writers of ``path`` take, or that alone writes there: a temporary does not
    tell whether its writer still lives.

    Args:
        path: of a file or a folder, as given to ``write_file`` or ``write_folder``.
    """
    if not path.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.({UNFINISHED}|{REPLACED})")
    for left in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(left.name)
        if match is None:
            continue
        if match[1] == REPLACED and not path.exists():  # killed between two renames
            os.replace(left, path)
        else:
            _remove(left)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A free name beside ``path``; whatever bears it in the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, UNFINISHED)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{ending}")


def _put_folder(new: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(new, path)
    elif not _swap(new, path):
        old = _beside(path, REPLACED)
        os.replace(path, old)
        os.replace(new, path)
        _remove(old)


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
