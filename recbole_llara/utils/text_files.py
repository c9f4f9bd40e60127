"""What all text files that the package reads have in common: their encoding, and the mark that may stand at their beginning."""

import codecs

BYTE_ORDER_MARK = "\ufeff"


def with_mark(encoding: str) -> str:
    """The encoding under which a byte order mark at a file's beginning is none of its text.

    Args:
        encoding: any that Python knows; those of UTF-16 and UTF-32 drop the mark themselves.
    """
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def is_text(text: str) -> bool:
    """Whether a text can be written down, as tokenizers want it: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
