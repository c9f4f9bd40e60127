"""The one exception for mistakes a user can mend, raised by every room of the package, and how a program ends by it."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A user's mistake: the message says what was found, what was expected and which key to change."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names a mistaken one may have meant.

    Args:
        name: what the user wrote.
        known: every name that would have been right.
        count: at most so many near names are given.

    Returns:
        ``did you mean 'a' or 'b'?``, or ``known: a, b, c`` where nothing is near and the list is short.
    """
    names = sorted(set(known))
    by_folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(str(name).casefold(), list(by_folded), n=count, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(by_folded[folded]) for folded in close) + "?"
    if not names:
        return "none is known"
    return "known: " + ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")


def exit_status(program: str, action: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Run a program's work; a user's mistake and Ctrl-C end it with one line and no traceback.

    Args:
        program: its name, before the line.
        action: the work.
        interrupted: what the line says after Ctrl-C.

    Returns:
        0, 2 for a user's mistake, 130 when interrupted.
    """
    try:
        action()
    except UserError as error:
        sys.stderr.write(f"{program}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: {interrupted}\n")
        return 130
    return 0
