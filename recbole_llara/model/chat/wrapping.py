"""An answer apart from its wrapping: how the message of a chat model names a candidate. RecBole-free.

Chat models think aloud, number, label, quote and embellish. The rule:

1. What stands before a closing ``</think>`` is no answer, nor what follows a ``<think>`` that is never closed.
2. The whole message is read first, then its lines: lines that name one candidate between them name it, lines that name several
   name none. A last line that the endpoint has cut off is not read, since more may have followed.
3. A text is read as it stands, and then without one wrapping after the other: quotes and emphasis around it, a full stop behind
   it, a label such as ``Answer:`` or the mark of a list such as ``1.`` before it. The least unwrapped reading that is a
   candidate's title counts: where "1. FC Köln" is a candidate, "1. FC Köln" names it and not "FC Köln".
4. Only where none of these readings is a title are they compared again without regard to case.

Titles are never searched for inside a text, as everywhere (``answer.match_titles``). This rule is for messages of chat models
alone: what the LLM of a run generates must be the title, as in the papers.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from recbole_llara.evaluator.answer import normalise_title

_TAGS = "think|thinking|thought|reasoning"
_REASONING_ENDS = re.compile(rf"</(?:{_TAGS})>", re.IGNORECASE)
_REASONING_BEGINS = re.compile(rf"<(?:{_TAGS})>", re.IGNORECASE)
_AROUND = (*((mark, mark) for mark in "\"'`*_"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"))
_FULL_STOPS = (".", "。")
MOST_WRAPPINGS = 8  # of one text; "**" around it is two
_LIST_MARK = re.compile(r"(?:[-*•–—>]|#{1,6}|#?\(?\d{1,3}[.):]|\[\d{1,3}\]|#\d{1,3})\s+")
_LABEL = re.compile(
    r"[*_]*(?:(?:my|the|your|final|best|next|top|recommended|predicted)\s+)*"
    r"(?:answer|choice|pick|title|recommendation|prediction|item|movie|film|game|artist)(?:[*_\s]*[:：]|\s+is\b[*_\s]*:?)",
    re.IGNORECASE,
)


def without_reasoning(message: str) -> str:
    """What of a message is answer, "" where it is all reasoning."""
    text = _REASONING_ENDS.split(message)[-1]
    return _REASONING_BEGINS.split(text)[0].strip()


def read_answer(message: str, titles: Sequence[str], is_cut: bool = False) -> tuple[int | None, bool]:
    """Which candidate a message names.

    Args:
        message: of a chat model.
        titles: of the candidates.
        is_cut: whether the endpoint ended the message before the model did.

    Returns:
        the candidate's place among ``titles``, None where none or several are named; and whether anything was taken off, or
        case disregarded, to find it.

    Example, candidates "Alien" and "M":

        "M"                                     0 wrappings, names M
        "<think>Alien?</think> **Answer:** m."  names M: without reasoning, emphasis, label and full stop, and in any case
        "1. Alien\\n2. M"                        names none: its lines name two
    """
    whole = message[: message.rfind("\n") + 1] if is_cut else message
    if places := _places(titles, normalise_title).get(normalise_title(whole)):
        return (places[0] if len(places) == 1 else None), whole != message
    text = without_reasoning(whole)
    lines = text.splitlines()
    for compared in (normalise_title, _folded):
        by_title = _places(titles, compared)
        found = _named(text, by_title, compared) or set().union(*(_named(line, by_title, compared) for line in lines))
        if found:
            return (found.pop() if len(found) == 1 else None), True
    return None, False


def _folded(text: str) -> str:
    return normalise_title(normalise_title(text).casefold())


def _places(titles: Sequence[str], compared: Callable[[str], str]) -> dict[str, list[int]]:
    """Where each title stands among the candidates, by the form in which it is compared; an empty one is no name."""
    places: dict[str, list[int]] = {}
    for place, title in enumerate(titles):
        places.setdefault(compared(title), []).append(place)
    places.pop("", None)
    return places


def _named(text: str, by_title: dict[str, list[int]], compared: Callable[[str], str]) -> set[int]:
    """The candidates that the least unwrapped readings of a text name."""
    readings = {text.strip()}
    for _ in range(MOST_WRAPPINGS + 1):
        named = {place for reading in readings for place in by_title.get(compared(reading), ())}
        if named:
            return named
        readings = {shorter for reading in readings for shorter in _unwrapped(reading)}
    return set()


def _unwrapped(text: str) -> Iterator[str]:
    """A text without one of its wrappings, in every way that there is."""
    for opening, closing in _AROUND:
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            yield text[1:-1].strip()
    for stop in _FULL_STOPS:
        if text.endswith(stop):
            yield text.removesuffix(stop).strip()
    if found := _LIST_MARK.match(text):
        yield text[found.end() :].strip()
    if found := _LABEL.match(text):
        yield text[found.end() :].strip()
        yield text[found.end() :].lstrip("*_ \t")  # of **Answer:** Title
