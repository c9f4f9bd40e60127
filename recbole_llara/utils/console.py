"""Standard input and output: text for people in the console's own encoding, JSON in UTF-8 whatever that is."""

import io
import sys


def escape_output() -> None:
    """Write what the console's encoding lacks as an escape such as ``\\u9738``, where Python would break off with an error.

    Consoles of Windows and the locale C hold few characters; titles hold any.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_json() -> None:
    """From here on standard output is UTF-8 with ``\\n`` at the ends of lines, as JSON wants it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")


def read_json() -> None:
    """From here on standard input is UTF-8; bytes that are not come as halves of surrogate pairs, for each line to be refused."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
