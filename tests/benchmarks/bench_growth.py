"""How time and memory grow with items, rows, candidates, history and title length: ``make bench-growth``.

    python tests/benchmarks/bench_growth.py [--out growth.json] [--largest] [--only data,titles,...]

Each point runs in a process of its own, whose peak memory is the point's. Synthetic interactions: Zipf-like popularity, ten of
them a user, in RecBole's atomic files. ``--largest`` adds 10^6 items with 10^7 rows, which takes RecBole's own reading
minutes and tens of gigabytes. Beside the JSON a page with curves is written.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measure import titles_of

ROWS_A_USER = 10
# (items, rows)
SIZES = [(1_000, 10_000), (1_000, 100_000), (10_000, 100_000), (100_000, 100_000), (1_000, 1_000_000), (100_000, 1_000_000)]
LARGEST = [(1_000_000, 1_000_000), (1_000_000, 10_000_000)]
CATALOGUES = [1_000, 10_000, 100_000, 1_000_000]
CANDIDATES, HISTORIES, WORDS = [10, 20, 50, 100], [10, 20, 50], [2, 4, 8, 16]
BATCH = 16


def peak() -> float:
    """GB of memory at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def write_dataset(folder: Path, items: int, rows: int) -> None:
    """``folder/grown/grown.inter`` and ``.item``; an item that nobody chose has no interactions."""
    place = folder / "grown"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (place / "grown.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for start in range(0, rows, 1_000_000):
            count = min(1_000_000, rows - start)
            numbers = np.arange(start, start + count)
            # Every item once, then by popularity that falls as 1 / rank.
            chosen = np.where(numbers < items, numbers, np.floor((items + 1.0) ** rng.random(count)).astype(np.int64) - 1)
            columns = zip((numbers % (rows // ROWS_A_USER)).tolist(), chosen.tolist(), numbers.tolist(), strict=True)
            file.writelines(f"u{user}\ti{item}\t{time}\n" for user, item, time in columns)
    with (place / "grown.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        file.writelines(f"i{number}\t{title}\n" for number, title in enumerate(titles_of(items, 4)[1:]))


def data_point(items: int, rows: int, folder: str) -> dict[str, float]:
    """Seconds and memory of ``prepare_data``, and of one epoch's candidates for all training rows."""
    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.data.dataset import prepare_data

    start = perf_counter()
    write_dataset(Path(folder), items, rows)
    written, before = perf_counter() - start, peak()
    load_col = {"inter": ["user_id", "item_id", "timestamp"]}
    keys = {"data_path": folder, "checkpoint_dir": f"{folder}/saved", "protocol": "leave_one_out", "load_col": load_col}
    few = {"use_gpu": False, "title_field": "title", "max_eval_rows": 2000, "rec_model": "SASRec"}
    config = RunConfig("LLaRA", "grown", config_dict={**keys, **few})
    start = perf_counter()
    data = prepare_data(config)
    set_up = perf_counter() - start
    after = peak()
    rows_in = data.dataset.inter_feat
    start = perf_counter()
    data.sampler.draw(rows_in["row_id"].numpy(), data.dataset.rows_of(rows_in), "train")
    drawn = perf_counter() - start
    return {
        "written_s": written,
        "set_up_s": set_up,
        "candidates_s": drawn,
        "before_gb": before,
        "set_up_gb": after,
        "peak_gb": peak(),
        "training_rows": len(rows_in),
    }


def catalogue_point(items: int) -> dict[str, float]:
    """Seconds and memory of tokenising a catalogue once, as for LLaRA's curriculum."""
    from recbole_llara.llm.loading import load_llm
    from recbole_llara.prompt.encoding import PromptEncoder
    from recbole_llara.prompt.representation import REPRESENTATIONS
    from recbole_llara.prompt.template import load_templates

    _, tokenizer = load_llm("tiny")
    titles = titles_of(items, 4)
    before, start = peak(), perf_counter()
    shown = [REPRESENTATIONS["hybrid"], REPRESENTATIONS["text_only"]]
    encoder = PromptEncoder(tokenizer, titles, load_templates("item", 20), representations=shown)
    return {
        "set_up_s": perf_counter() - start,
        "before_gb": before,
        "peak_gb": peak(),
        "bank_mb": encoder._bank.nbytes / 1e6,
    }


def prompt_point(candidates: int, history: int, words: int) -> dict[str, float]:
    """Milliseconds a row: prompts put together, and answers of the embedded LLM by scores."""
    from recbole_llara.llm.architecture import EmbeddedPrompts, input_embeddings
    from recbole_llara.llm.likelihood import score_candidates
    from recbole_llara.llm.loading import load_llm
    from recbole_llara.prompt.encoding import PromptEncoder
    from recbole_llara.prompt.representation import REPRESENTATIONS
    from recbole_llara.prompt.template import load_templates

    llm, tokenizer = load_llm("tiny")
    encoder = PromptEncoder(tokenizer, titles_of(2000, words), load_templates("item", candidates))
    rng = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(2000, generator=rng)[: candidates + history] + 1 for _ in range(BATCH)])
    shown, past, first = items[:, :candidates], items[:, candidates:], torch.zeros(BATCH, dtype=torch.int64)
    representation = REPRESENTATIONS["hybrid"]
    encoding, scoring = [], []
    for number in range(4):
        start = perf_counter()
        prompts = encoder.encode(past, shown, None, representation, first)
        answers = encoder.answer_ids(shown, representation)
        middle = perf_counter()
        with torch.no_grad():
            inputs = EmbeddedPrompts(input_embeddings(llm)(prompts.input_ids), prompts.attention_mask, prompts.position_ids)
        score_candidates(llm, inputs, answers)
        if number:  # the first warms up
            encoding.append(middle - start), scoring.append(perf_counter() - middle)
    tokens = float(prompts.attention_mask.sum()) / BATCH
    return {
        "tokens": tokens,
        "encode_ms": min(encoding) / BATCH * 1e3,
        "score_ms": min(scoring) / BATCH * 1e3,
        "peak_gb": peak(),
    }


def measured(kind: str, numbers: tuple[int, ...]) -> dict[str, Any]:
    """One point, in a process of its own; its numbers, or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--point", kind, "--numbers", ",".join(map(str, numbers)), "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


POINTS = {"data": data_point, "titles": catalogue_point, "prompt": prompt_point}


def planned(largest: bool) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """What is measured: axis -> (kind, numbers) of each point."""
    return {
        "data": [("data", size) for size in [*SIZES, *(LARGEST if largest else ())]],
        "titles": [("titles", (items,)) for items in CATALOGUES],
        "candidates": [("prompt", (count, 10, 4)) for count in CANDIDATES],
        "history": [("prompt", (20, length, 4)) for length in HISTORIES],
        "title length": [("prompt", (20, 10, words)) for words in WORDS],
    }


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A page with a panel for each axis, both scales logarithmic."""
    from plotly.subplots import make_subplots

    wanted = {
        "data": ("rows", ("set_up_s", "candidates_s", "set_up_gb")),
        "titles": ("items", ("set_up_s", "peak_gb")),
        "candidates": ("candidates", ("encode_ms", "score_ms")),
        "history": ("history", ("encode_ms", "score_ms")),
        "title length": ("words", ("encode_ms", "score_ms")),
    }
    shown = [axis for axis in wanted if axis in found]
    figure = make_subplots(rows=len(shown), cols=1, subplot_titles=shown, vertical_spacing=0.06)
    for row, axis in enumerate(shown, 1):
        name, values = wanted[axis]
        points = [point for point in found[axis] if "error" not in point]
        for items in sorted({point["items"] for point in points} if axis == "data" else {None}, key=lambda n: n or 0):
            of_items = [point for point in points if items is None or point["items"] == items]
            for value in values:
                label = value if items is None else f"{value}, {items:,} items"
                x, y = [point[name] for point in of_items], [point[value] for point in of_items]
                figure.add_scatter(x=x, y=y, mode="lines+markers", name=f"{axis}: {label}", row=row, col=1)
        figure.update_xaxes(type="log", title=name, row=row, col=1)
        figure.update_yaxes(type="log", row=row, col=1)
    figure.update_layout(height=360 * len(shown), width=1000, template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--point", choices=POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.point:
        numbers = tuple(int(word) for word in arguments.numbers.split(","))
        extra = (arguments.folder,) if arguments.point == "data" else ()
        sys.stdout.write(json.dumps(POINTS[arguments.point](*numbers, *extra)) + "\n")
        return
    names = {"data": ("items", "rows"), "titles": ("items",), "prompt": ("candidates", "history", "words")}
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, points in planned(arguments.largest).items():
        if arguments.only and axis not in arguments.only.split(","):
            continue
        for kind, numbers in points:
            point = {**dict(zip(names[kind], numbers, strict=True)), **measured(kind, numbers)}
            found.setdefault(axis, []).append(point)
            shown = {name: round(value, 3) if isinstance(value, float) else value for name, value in point.items()}
            sys.stdout.write(f"{axis}: {shown}\n")
            sys.stdout.flush()
            arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    draw(found, arguments.out.with_suffix(".html"))
    sys.stdout.write(f"written: {arguments.out}, {arguments.out.with_suffix('.html')}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
