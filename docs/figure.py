"""Draws docs/pages/main_results.svg, the README's figure, from the first table of RESULTS.md: ``python docs/figure.py``."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent
FIGURE = DOCS / "pages" / "main_results.svg"
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
    told = f"HitRatio@1 of {len(systems)} systems on MovieLens-100K"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">'
    yield "<style>"
    yield "text { font: 13px system-ui, sans-serif; fill: #1f2937 } .ground { fill: #ffffff } .title { font-weight: 600; font-size: 15px }"
    yield ".axis { stroke: #d1d5db } .line { stroke: #1f2937; stroke-width: 1.5 } .chance { stroke: #6b7280; stroke-dasharray: 4 3 }"
    yield " ".join(f".g{number} {{ fill: {light} }}" for number, (light, _) in enumerate(COLOURS.values()))
    yield "@media (prefers-color-scheme: dark) {"
    yield "text { fill: #e5e7eb } .ground { fill: #0d1117 } .axis { stroke: #374151 } .line { stroke: #e5e7eb } .chance { stroke: #9ca3af }"
    yield " ".join(f".g{number} {{ fill: {dark} }}" for number, (_, dark) in enumerate(COLOURS.values())) + " }"
    yield "</style>"
    yield f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>'
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


if __name__ == "__main__":
    FIGURE.write_text(drawn(measured((DOCS.parent / "RESULTS.md").read_text(encoding="utf-8"))), encoding="utf-8")
