"""Text of files and of the console: encodings, and the mark that may stand at a file's beginning."""

import codecs
import io
import sys

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
