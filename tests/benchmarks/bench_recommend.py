"""What a finished run answers, and how fast: its ranking against the evaluator's, users a second, memory by their number.

    python tests/benchmarks/bench_recommend.py --run=saved/RUN [--users 300,3000] [--reused 20] [--out recommend.json] [--key=value ...]

The ranking is asked for every test row of the run and compared with the order of the scores in ``cases.jsonl``; items of equal
scores, as two of one title have, may stand either way. Users are made up, of 3 to 20 random items each; their lines go through
the command line of recommend from a pipe, a process for each number of users, and what is told is its whole time and its
largest resident memory. Explanations of the first test rows' answers are compared with asking ``recommend`` about them, one row at
a time: medians of the time, means of the LLM's passes and of the prompts in them.

``prefix_cache`` is compared with none, in turn, for made-up users of a history that is one item short of the longest: asked for the first
time, again with other candidates, and with one item more. Told are medians of the time (of the process, on a CPU), their ratio, the
share of the tokens of prompts and answers that must be read, and by how much scores differ at the most.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from measure import seconds, settle

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.llm.answer_tree import build_trie
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.serving.explain import explain
from recbole_llara.serving.loaded import LoadedRun

SEED = 0


def compare_rankings(run: LoadedRun, folder: Path) -> dict[str, int]:
    """Test rows, those whose best item is the evaluator's answer, and those whose whole order is the evaluator's."""
    cases = read_records(folder / "cases.jsonl")
    histories, candidates = ([[f"id:{item}" for item in case[key]] for case in cases] for key in ("history", "candidates"))
    found = run.recommend_batch(histories, len(candidates[0]), candidates)
    told = [dict(zip(case["candidates"], case["scores"], strict=True)) for case in cases]
    answers = sum(items[0].item_id == case["answer"] for items, case in zip(found, cases, strict=True))
    orders = [[scores[item.item_id] for item in items] for items, scores in zip(found, told, strict=True)]
    return {"rows": len(cases), "equal_answers": answers, "equal_rankings": sum(map(_descends, orders))}


def _descends(scores: list[float]) -> bool:
    return all(first >= second for first, second in pairwise(scores))


def explain_rows(run: LoadedRun, folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """What ``recommend`` and ``explain`` cost a test row: milliseconds, passes of the LLM, prompts."""
    found: dict[str, dict[str, float]] = {}
    cases = [
        [[f"id:{item}" for item in case[key]] for key in ("history", "candidates")]
        for case in read_records(folder / "cases.jsonl")[:rows]
    ]
    prompts: list[int] = []  # of each pass

    def count(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        prompts.append(len(named["inputs_embeds"]))

    def recommended(history: list[str], candidates: list[str]) -> None:
        run.recommend(history, 5, candidates)

    def explained(history: list[str], candidates: list[str]) -> None:
        explain(run, history, candidates=candidates)

    hook = causal_lm(run.model.llm).register_forward_pre_hook(count, with_kwargs=True)
    for ask in (recommended, explained):
        ask(*cases[0])
        prompts.clear()
        spent = [seconds(lambda case=case, ask=ask: ask(*case)) for case in cases]
        cost = {"ms": 1000 * median(spent), "passes": len(prompts) / len(spent), "prompts": sum(prompts) / len(spent)}
        found[ask.__name__] = cost
    hook.remove()
    return found


def answer_users(run: LoadedRun, folder: Path, users: int, keys: list[str]) -> dict[str, float]:
    """Answer made-up users by the command line."""
    draw, ids = random.Random(SEED), run.names.ids[1 : run.retriever.n_known]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "users.jsonl"), Path(scratch, "answers.jsonl")
        with asked.open("w", encoding="utf-8") as out:
            for user in range(users):
                history = [f"id:{item}" for item in draw.sample(ids, draw.randint(3, 20))]
                out.write(json.dumps({"user": user, "history": history}) + "\n")
        command = [sys.executable, "-m", "recbole_llara", "recommend", f"--run={folder}", "--jsonl", *keys]
        started = perf_counter()
        with asked.open("rb") as lines, answered.open("wb") as out:
            subprocess.run(command, stdin=lines, stdout=out, check=True)
        spent = perf_counter() - started
        with answered.open(encoding="utf-8") as lines:
            answers = sum("recommendations" in json.loads(line) for line in lines)
    assert answers == users, f"{answers} of {users} users were answered"
    # The largest of all processes so far: call with growing numbers of users.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    return {"users": users, "seconds": spent, "users_per_second": users / spent, "peak_memory_mb": memory / 1e6}


def reuse_prefixes(run: LoadedRun, users: int, candidates: int) -> dict[str, dict[str, float]]:
    """What answers to so many users cost with what was read before, and without, by what was asked before."""
    draw, store, model = random.Random(SEED), run.model.prefixes, run.model
    items = range(1, run.retriever.n_known)
    clock = process_time if model.device.type == "cpu" else perf_counter
    found: dict[str, list[tuple[float, float, float, float]]] = {}

    def asked(history: list[int], shown: list[int]) -> tuple[float, torch.Tensor]:
        settle(model.device)
        started = clock()
        scores = run.scores([history], torch.tensor([shown]))
        settle(model.device)
        return clock() - started, scores

    for user in range(users):
        *history, new = draw.sample(items, run.config["MAX_ITEM_LIST_LENGTH"])
        for kind, read in (("first", history), ("again", history), ("grown", [*history, new])):
            shown = draw.sample(sorted({*items} - {*history, new}), candidates)
            tree = build_trie(model.encoder.answer_ids(torch.tensor([shown]), model.representation))
            nodes = int(tree.visible.diagonal(dim1=1, dim2=2).sum())
            before, told = (store.read, store.reused), {}
            for keeps in (True, False) if user % 2 else (False, True):
                model.prefixes = store if keeps else None
                told[keeps] = asked(read, shown)
            n_read, n_reused = store.read - before[0], store.reused - before[1]
            share = (n_read + nodes) / (n_read + n_reused + nodes)
            apart = float((told[True][1] - told[False][1]).abs().max())
            found.setdefault(kind, []).append((told[False][0], told[True][0], share, apart))
        model.prefixes = store
    costs = {}
    for kind, rows in found.items():
        whole, kept, share, apart = zip(*rows, strict=True)
        costs[kind] = {"whole_ms": 1000 * median(whole), "kept_ms": 1000 * median(kept), "ratio": median(whole) / median(kept)}
        costs[kind] |= {"share_read": sum(share) / users, "apart": max(apart)}
    return costs


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--users", default="300,3000", help="numbers of users, ascending (default %(default)s)")
    parser.add_argument("--explained", type=int, default=100, help="how many answers are explained (default %(default)s)")
    parser.add_argument(
        "--reused", type=int, default=20, help="users asked with prefix_cache and without (default %(default)s)"
    )
    parser.add_argument("--reused_candidates", default="5,20,50", help="candidates of each (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("recommend.json"))
    arguments, words = parser.parse_known_args(argv)
    run = recbole_llara.load(arguments.run, **parse_arguments(words))
    found: dict[str, Any] = {"ranking": compare_rankings(run, arguments.run), "users": []}
    sys.stdout.write("{equal_answers} answers and {equal_rankings} rankings of {rows} equal\n".format(**found["ranking"]))
    if run.is_llm:
        found["explained"] = explain_rows(run, arguments.run, arguments.explained)
        for name, cost in found["explained"].items():
            sys.stdout.write(name + ": {ms:.0f} ms, {passes:.2f} passes, {prompts:.1f} prompts\n".format(**cost))
    if run.is_llm and run.model.prefixes is not None and arguments.reused:
        found["reused"] = {}
        for candidates in map(int, arguments.reused_candidates.split(",")):
            found["reused"][candidates] = reuse_prefixes(run, arguments.reused, candidates)
            for kind, cost in found["reused"][candidates].items():
                told = "{whole_ms:.1f} ms, kept {kept_ms:.1f} ms, ratio {ratio:.2f}; {share_read:.2f} of the tokens read, scores {apart:.1e} apart\n"
                sys.stdout.write(f"{candidates} candidates, {kind}: whole " + told.format(**cost))
    for users in sorted(map(int, filter(None, arguments.users.split(",")))):
        found["users"].append(answer_users(run, arguments.run, users, words))
        told = "{users:,} users: {users_per_second:.1f} a second, {peak_memory_mb:,.0f} MB\n"
        sys.stdout.write(told.format(**found["users"][-1]))
        sys.stdout.flush()
    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    sys.stdout.write(f"written: {arguments.out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
