"""Lets the reference read this project's docstrings: two habits that Markdown and its parser take for something else.

Parameters of one meaning share a line, ``a, b: text``; the parser wants a line each. And shapes stand in brackets, so that
``[D] [PH]`` is two of them and no link.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

_SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>: .*)$")
_BRACKETS = re.compile(r"\](?P<space>\s?)\[")


class OwnDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of a module, class, function or attribute that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(rewritten(obj.docstring.value.split("\n")))


def rewritten(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a docstring as Markdown; a literal block, which ``::`` opens, stays as it is.

    Example: ``"    a, b: [B] [T]"`` becomes ``"    a: [B] \\[T]"`` and ``"    b: [B] \\[T]"``.
    """
    literal: int | None = None  # the indentation of the line that opened a block
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if literal is not None and (not line.strip() or indent > literal):
            yield line
            continue
        literal = indent if line.endswith("::") else None
        line = line.removesuffix(":") if literal is not None else line
        line = _BRACKETS.sub(r"]\g<space>\\[", line)
        shared = _SHARED.match(line)
        if shared is None:
            yield line
        else:
            yield from (f"{shared['indent']}{name}{shared['text']}" for name in shared["names"].split(", "))
