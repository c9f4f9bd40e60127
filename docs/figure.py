"""Draws the README's figures, ``python docs/figure.py``: main_results.svg from the first table of RESULTS.md, and prompt.svg, the prompt
of the page "What the LLM reads" in colours."""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from recbole_llara.prompt.template import load_templates

DOCS = Path(__file__).resolve().parent
FIGURE = DOCS / "pages" / "main_results.svg"
PROMPT_FIGURE = DOCS / "pages" / "prompt.svg"
PROMPT_PAGE = DOCS / "pages" / "models" / "prompts.md"
COLUMN = "ml-100k, `leave_one_out`, n = 943"
CHANCE = 0.05  # one of 20 candidates
WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 760, 26, 150, 60, 66, 66  # pixels
LARGEST = 0.6  # HitRatio@1 at the right end of the axis
GROUPS = {  # how a system's name begins -> its group; each group has a colour
    "Popularity": "no model",
    "LLaRA": "LLM over a recommender",
    "RSLLM": "LLM over a recommender",
    "MoRec": "recommender",
    "GRU4Rec": "recommender",
    "Caser": "recommender",
    "SASRec": "recommender",
    "ZeroShotLLM": "LLM, titles only",
    "ChatLLM": "LLM, titles only",
    "TALLRec": "LLM, titles only",
}
COLOURS = {  # group -> colour on light and on dark ground
    "LLM over a recommender": ("#fdba74", "#b45309"),
    "recommender": ("#93c5fd", "#1d5fbf"),
    "LLM, titles only": ("#c4b5fd", "#6d4bd0"),
    "no model": ("#d1d5db", "#5b6472"),
}
TOKEN = "[*]"  # a behavioural token, as the prompt is written
WORDS = {  # what a word of the prompt is -> its colour on light and on dark ground
    "the template": ("#374151", "#d1d5db"),
    "the user's history": ("#1d4ed8", "#93c5fd"),
    "the candidates": ("#6d28d9", "#c4b5fd"),
    f"{TOKEN} behavioural token": ("#b45309", "#fdba74"),
    "the answer": ("#047857", "#6ee7b7"),
}


class Measured(NamedTuple):
    """One system's HitRatio@1, as the table writes it, and its interval."""

    system: str
    hit: str
    low: float
    high: float


def measured(results: str) -> list[Measured]:
    """The systems of a text of RESULTS.md in the order of its first table that has ``COLUMN``."""
    table = results[results.index(f"| system | {COLUMN}") :].split("\n\n")[0]
    found = re.findall(r"^\| (\S+) \| (\.\d+) \[(\.\d+), (\.\d+)\]", table, re.MULTILINE)
    return [Measured(system, hit, float(low), float(high)) for system, hit, low, high in found]


def drawn(systems: Sequence[Measured]) -> str:
    """The figure as SVG: a bar for each system, its interval, and the line of chance; readable on light and dark ground."""
    return "\n".join(_lines(systems)) + "\n"


def _lines(systems: Sequence[Measured]) -> Iterator[str]:
    height = TOP + ROW * len(systems) + BOTTOM
    bottom = height - BOTTOM
    own = [
        "text { font: 13px system-ui, sans-serif; fill: #1f2937 } .ground { fill: #ffffff } .title { font-weight: 600; font-size: 15px }",
        ".axis { stroke: #d1d5db } .line { stroke: #1f2937; stroke-width: 1.5 } .chance { stroke: #6b7280; stroke-dasharray: 4 3 }",
    ]
    dark = "text { fill: #e5e7eb } .ground { fill: #0d1117 } .axis { stroke: #374151 } .line { stroke: #e5e7eb } .chance { stroke: #9ca3af }"
    yield from _head(height, f"HitRatio@1 of {len(systems)} systems on MovieLens-100K", own, dark, "g", COLOURS)
    yield '<text class="title" x="20" y="28">Which of 20 films is next? HitRatio@1 on MovieLens-100K</text>'
    yield '<text x="20" y="48">n = 943 test rows, 95 % intervals; the LLM has 3 million parameters and is tuned on 3,200 rows</text>'
    for tenth in range(round(10 * LARGEST) + 1):
        x = _x(tenth / 10)
        yield f'<line class="axis" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>'
        yield f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">.{tenth}</text>'
    for number, system in enumerate(systems):
        yield from _bar(system, TOP + ROW * number)
    x = _x(CHANCE)
    yield f'<line class="chance" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>'
    x = 20.0
    for number, group in enumerate(COLOURS):
        yield f'<rect class="g{number}" x="{x:.0f}" y="{height - 27}" width="12" height="12" rx="2"/>'
        yield f'<text x="{x + 18:.0f}" y="{height - 16}">{group}</text>'
        x += 46 + 7 * len(group)
    yield f'<line class="chance" x1="{x:.0f}" y1="{height - 21}" x2="{x + 18:.0f}" y2="{height - 21}"/>'
    yield f'<text x="{x + 24:.0f}" y="{height - 16}">chance</text>'
    yield "</svg>"


def _head(
    height: int, label: str, own: Sequence[str], dark: str, prefix: str, colours: Mapping[str, tuple[str, str]]
) -> Iterator[str]:
    """The beginning of a figure: its styles, of which ``own`` and ``dark`` are the figure's, a class for each colour, and its ground."""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
    yield "<style>"
    yield from own
    yield " ".join(f".{prefix}{number} {{ fill: {light} }}" for number, (light, _) in enumerate(colours.values()))
    yield "@media (prefers-color-scheme: dark) {"
    yield dark
    yield " ".join(f".{prefix}{number} {{ fill: {colour} }}" for number, (_, colour) in enumerate(colours.values())) + " }"
    yield "</style>"
    yield f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>'


def _bar(system: Measured, top: int) -> Iterator[str]:
    group = list(COLOURS).index(GROUPS[system.system.partition("(")[0]])
    middle = top + ROW // 2
    yield f'<text x="{LEFT - 8}" y="{middle + 5}" text-anchor="end">{escape(system.system)}</text>'
    yield f'<rect class="g{group}" x="{LEFT}" y="{top + 4}" width="{_x(float(system.hit)) - LEFT:.1f}" height="{ROW - 8}" rx="2"/>'
    low, high = _x(system.low), _x(system.high)
    yield f'<path class="line" d="M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8"/>'
    yield f'<text x="{high + 6:.1f}" y="{middle + 5}">{system.hit}</text>'


def _x(share: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * share / LARGEST, 1)


def prompt_of(page: str) -> tuple[str, str]:
    """The prompt, line by line, and its answer, as a text of the page "What the LLM reads" has them."""
    return page.split("```text\n")[1].split("\n```")[0], re.search(r"The answer is \*(.+?)\*", page)[1]


def drawn_prompt(prompt: str, answer: str) -> str:
    """The prompt of a film as SVG: the words of each kind in one colour; readable on light and dark ground."""
    return "\n".join(_prompt_lines(prompt, answer)) + "\n"


def _prompt_lines(prompt: str, answer: str) -> Iterator[str]:
    words = list(zip(prompt, _kinds(prompt), strict=True))  # each character and its kind
    lines = [list(line) for is_break, line in groupby(words, key=lambda word: word[0] == "\n") if not is_break]
    lines[-1] += [(" ", 0), *((character, list(WORDS).index("the answer")) for character in answer)]
    step = 24
    height = 86 + step * len(lines)
    own = [
        ".prompt { font: 14px ui-monospace, Menlo, Consolas, monospace; white-space: pre } .legend { font: 13px system-ui, sans-serif }",
        ".ground { fill: #ffffff } .w3, .w4 { font-weight: 700 }",
    ]
    yield from _head(height, "A hybrid prompt of LLaRA", own, ".ground { fill: #0d1117 }", "w", WORDS)
    for number, line in enumerate(lines):
        spans = "".join(
            f'<tspan class="w{kind}">{escape("".join(character for character, _ in run))}</tspan>'
            for kind, run in groupby(line, key=lambda word: word[1])
        )
        yield f'<text class="prompt" xml:space="preserve" x="20" y="{34 + step * number}">{spans}</text>'
    x = 20
    for number, name in enumerate(WORDS):
        yield f'<text class="legend w{number}" x="{x}" y="{height - 18}">{name}</text>'
        x += 24 + 8 * len(name)
    yield "</svg>"


def _kinds(prompt: str) -> list[int]:
    """Of each character of a prompt of the first template, the place of its kind in ``WORDS``."""
    joined, names = prompt.replace("\n", " "), list(WORDS)
    begin, _, middle, _, end = load_templates("movie", 20)[0].segments
    parts = [(0, "the template"), (len(begin), "the user's history"), (joined.index(middle), "the template")]
    parts += [(joined.index(middle) + len(middle), "the candidates"), (joined.rindex(end), "the template"), (len(joined), "")]
    kinds = [names.index(name) for (start, name), (stop, _) in pairwise(parts) for _ in range(start, stop)]
    for found in re.finditer(re.escape(TOKEN), joined):
        kinds[found.start() : found.end()] = [names.index(f"{TOKEN} behavioural token")] * len(TOKEN)
    return kinds


if __name__ == "__main__":
    FIGURE.write_text(drawn(measured((DOCS.parent / "RESULTS.md").read_text(encoding="utf-8"))), encoding="utf-8")
    PROMPT_FIGURE.write_text(drawn_prompt(*prompt_of(PROMPT_PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
