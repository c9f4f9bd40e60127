"""Errors that a user can fix, errors that end a run, signals that stop it; and how a program ends in each case."""

import difflib
import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from recbole_llara.utils.process_setup import escape_output

_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


class UserError(ValueError):
    """A user's mistake: the message says what was found, what was expected and which key to change."""


class RunError(RuntimeError):
    """What broke a run that was asked for rightly: the message says what happened, what is kept and how to go on."""


class Diverged(RunError):
    """A training whose numbers are no longer finite: the cause is in its keys, not in the machine."""


class Stopped(KeyboardInterrupt):
    """A run that a signal has ended; the message says what is kept and how to go on, "" where nothing is."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names a mistaken one may have meant.

    Returns:
        ``did you mean 'a' or 'b'?``, or ``known: a, b, c`` where nothing is near.
    """
    names = sorted(set(known))
    by_folded = {candidate.casefold(): candidate for candidate in names}
    if close := difflib.get_close_matches(str(name).casefold(), list(by_folded)):
        return "did you mean " + " or ".join(repr(by_folded[folded]) for folded in close) + "?"
    if not names:
        return "none is known"
    return "known: " + ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The entries in which two tables differ, each as a text; an absent one is None."""
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return [f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]


def signal_of(stop: KeyboardInterrupt) -> int:
    """The number of the signal by which a program was stopped."""
    return stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT


def exit_status(program: str, action: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Run a program's work; an error that a user can fix, or a signal, ends it with one line and no traceback.

    SIGTERM ends it as Ctrl-C does, so that nothing half-done is left lying about.

    Args:
        program: its name, before the line.
        action: the work.
        interrupted: what the line says after a signal, where the work itself says nothing.

    Returns:
        0, 2 for a user's mistake, 1 for what broke the run, 128 + the signal's number when stopped.
    """
    escape_output()
    before = signal.signal(signal.SIGTERM, _stop) if _may_handle(signal.SIGTERM) else None
    try:
        action()
    except (UserError, RunError) as error:
        sys.stderr.write(f"{program}: error: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        sys.stderr.write(f"{program}: error: {error}; free some space or fix the permissions, then retry\n")
        return 1
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{program}: {str(stop) or interrupted}\n")
        return 128 + signal_of(stop)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


class StopRequest:
    """Ctrl-C and SIGTERM during training: the current step finishes and a state is saved before the run ends.

    Outside of training a signal acts at once: everything worth keeping is on disk. So does a second signal.

    Attributes:
        asked: the signal's number; None where nobody has asked this process to stop.
    """

    def __init__(self) -> None:
        self.asked: int | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, the first signal is noted only, and the one after it raises ``Stopped``.

        A signal that does nothing (as Ctrl-C in a shell's background jobs) still does nothing.
        """
        before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM) if _may_handle(number)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            _stop(signal_number, frame)
        self.asked = signal_number


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise Stopped(signal_number)


def _may_handle(signal_number: int) -> bool:
    """Whether this thread may say what a signal does, and nobody before it said that the signal does nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signal_number) not in (signal.SIG_IGN, None)
