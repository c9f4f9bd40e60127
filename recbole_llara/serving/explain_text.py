"""An explanation in tables, as the command line prints it."""

from collections.abc import Sequence
from math import exp
from textwrap import fill

from recbole_llara.serving.explain import Explanation, Standing

WIDEST_TITLE = 40  # characters of a title in a table
WIDEST_LINE = 110  # characters of a line of words
# Of the keys of ``MEANINGS`` those that the tables call otherwise.
_WORDS = {
    "log_prob": "log-prob",
    "unseen_rank": "unseen",
    "without_behavioural_tokens": "without behavioural tokens, no tokens",
    "without_history_titles": "without the history's titles, no titles",
    "removals": "left out of the history",
    "parts": "gave, lead",
}


def as_text(explanation: Explanation) -> str:
    """The explanation: the item, the parts of a sum, what was left out, all candidates, and what each number is."""
    own, count = explanation.explained, len(explanation.candidates)
    read = " | ".join(str(one["title"]) for one in explanation.history)
    title = f"{explanation.system}: {own.title} (id {own.item_id}) has rank {own.answer.rank} of {count} candidates"
    blocks = [f"{title}\nhistory that is read, the oldest first: {read}", _own_table(explanation)]
    if explanation.fusion is not None:
        blocks.append(_parts_table(explanation))
    if explanation.removals is not None:
        blocks.append(_removals_table(explanation))
    words = {**_WORDS, "is_placeholder_trained": f"[PH], trained: {'yes' if explanation.is_placeholder_trained else 'no'}"}
    told = [
        fill(f"{words.get(name, name)}: {meaning}.", WIDEST_LINE, subsequent_indent="  ")
        for name, meaning in explanation.meanings.items()
    ]
    return "\n\n".join([*blocks, _candidates_table(explanation), "\n".join(told)]) + "\n"


def _systems(explanation: Explanation) -> dict[str, str]:
    """The systems that say something of every candidate, and the field in which they do: the sum, the LLM, the recommender."""
    systems = {explanation.system: "answer"} if explanation.fusion else {}
    systems |= {explanation.llm: "llm"} if explanation.llm else {}
    return systems | {explanation.recommender: "recommender"}


def _own_table(explanation: Explanation) -> str:
    own, rows = explanation.explained, []
    for name, field in _systems(explanation).items():
        rows.append([name, *_standing(getattr(own, field))])
        if field == "llm":
            names = {"behavioural tokens": own.without_behavioural_tokens, "the history's titles": own.without_history_titles}
            rows += [[f"  without {what}", *_standing(found, own.llm)] for what, found in names.items()]
    rows.append([f"  among {explanation.unseen} unseen items", "", "", _number(own.unseen_rank)])
    return _table(["according to", "log-prob", "prob", "rank", "change"], rows)


def _parts_table(explanation: Explanation) -> str:
    fusion, own = explanation.fusion, explanation.explained
    rows = [[name, f"{fusion.weights[name]:.3f}", f"{one.gave:.3f}", f"{one.lead:+.3f}"] for name, one in own.parts.items()]
    lead = sum(one.lead for one in own.parts.values())
    rows.append([f"all, less {fusion.normaliser:.3f}", "", f"{own.answer.log_prob:.3f}", f"{lead:+.3f}"])
    return _table(["part of the sum", "weight", "gave", "lead"], rows)


def _removals_table(explanation: Explanation) -> str:
    systems = _systems(explanation)
    rows = []
    for removal in explanation.removals:
        changes = [getattr(removal, field) for field in systems.values()]
        cells = [cell for one in changes for cell in (f"{one.change:+.3f}", str(one.rank))]
        rows.append([f"{removal.position}. {_short(removal.title)}", *cells])
    return _table(["left out of the history", *(column for name in systems for column in (name, "rank"))], rows)


def _candidates_table(explanation: Explanation) -> str:
    own = explanation.explained
    erased = {"no tokens": "without_behavioural_tokens", "no titles": "without_history_titles"}
    columns = _systems(explanation) | {name: field for name, field in erased.items() if getattr(own, field) is not None}
    rows = []
    for one in explanation.candidates:
        cells = [f"{getattr(one, field).log_prob:.3f}" for field in columns.values()]
        mark = ">" if one is own else " "
        rows.append([f"{mark}{one.answer.rank:>3}", _short(one.title), *cells, _number(one.unseen_rank)])
    return _table(["", "candidate", *columns, "unseen"], rows, texts=2)


def _standing(found: Standing | None, before: Standing | None = None) -> list[str]:
    """The cells log-probability, probability, rank and, where there was one before, the change from it."""
    if found is None:
        return ["-", "-", "-", "does not apply"]
    change = "" if before is None else f"{found.log_prob - before.log_prob:+.3f}"
    return [f"{found.log_prob:.3f}", f"{exp(found.log_prob):.3f}", str(found.rank), change]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _short(title: str) -> str:
    return title if len(title) <= WIDEST_TITLE else f"{title[: WIDEST_TITLE - 3]}..."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Aligned columns: the first ``texts`` of them to the left, numbers to the right; a short row ends early."""
    widths = [max(len(row[place]) for row in (head, *rows) if place < len(row)) for place in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
