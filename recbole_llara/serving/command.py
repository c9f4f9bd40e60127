"""``recbole-llara recommend``: items for one history, or JSON lines for any number of users; ``recbole-llara export``."""

import argparse
import json
import sys
from collections.abc import Sequence

from recbole_llara.utils.errors import exit_status
from recbole_llara.utils.text import read_json, write_json

_EPILOG = """\
  --run=saved/LLaRA-ml-100k-... --history "Toy Story" "GoldenEye"
  --run=saved/LLaRA-ml-100k-... --jsonl < users.jsonl > answers.jsonl
A line in: {"history": ["Toy Story", "GoldenEye"], "k": 5, "candidates": [...], "user": "any name"}; only history is needed.
A line out, in the same order: {"user": ..., "recommendations": [...]}, or {"user": ..., "error": "..."}.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara recommend",
        description="Recommend items by a finished run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help="the folder of a finished run")
    parser.add_argument(
        "--history", nargs="+", metavar="ITEM", help="titles or ids, the oldest first; id:NAME is an id in any case"
    )
    parser.add_argument(
        "--candidates", nargs="+", metavar="ITEM", help="what to choose from; else the run's recommender proposes"
    )
    parser.add_argument("--k", type=int, default=5, help="how many items (default %(default)s)")
    parser.add_argument("--retrieve_k", type=int, help="how many items the recommender proposes (default candidate_num)")
    parser.add_argument("--json", action="store_true", help="print JSON, in UTF-8")
    parser.add_argument(
        "--jsonl", action="store_true", help="read JSON lines from stdin, write JSON lines to stdout, both in UTF-8"
    )
    return parser


def recommend_main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is that of ``exit_status``."""
    parser = build_parser()
    arguments, keys = parser.parse_known_args(argv)
    if bool(arguments.history) == arguments.jsonl:
        parser.error("expected either --history or --jsonl")
    return exit_status("recbole-llara", lambda: _run(arguments, keys))


def _run(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.serving.loaded import as_json, load
    from recbole_llara.serving.stream import answer_lines

    if arguments.json or arguments.jsonl:
        write_json()
    if arguments.jsonl:
        read_json()
    run = load(arguments.run, **parse_arguments(keys))
    if arguments.jsonl:
        answer_lines(run, sys.stdin, sys.stdout, arguments.k, arguments.retrieve_k)
        return
    found = run.recommend(arguments.history, arguments.k, arguments.candidates, arguments.retrieve_k)
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(found), ensure_ascii=False, indent=2) + "\n")
        return
    width = max(len(item.title) for item in found)
    sys.stdout.write(f"{'rank':>4}  {'item':<{width}}  {'id':>8}  {'score':>9}  recommender's rank\n")
    for item in found:
        own = "" if item.recommender_rank is None else item.recommender_rank
        sys.stdout.write(f"{item.rank:>4}  {item.title:<{width}}  {item.item_id:>8}  {item.score:>9.3f}  {own}\n")


def export_main(argv: Sequence[str] | None = None) -> int:
    """Export a run; the exit status is that of ``exit_status``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara export",
        description="Write a finished run as a folder that others can use; --key=value goes over the run's own keys.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help="the folder of a finished run")
    parser.add_argument("--output", required=True, help="the folder to make")
    parser.add_argument("--merge", action="store_true", help="fold LoRA's adapter into the LLM's weights")
    parser.add_argument("--dtype", default="float32", help="of the merged weights: float32, bfloat16 or float16")
    arguments, keys = parser.parse_known_args(argv)

    def export_run() -> None:
        from recbole_llara.config.yaml_files import parse_arguments
        from recbole_llara.serving.export import export

        written = export(arguments.run, arguments.output, arguments.merge, arguments.dtype, **parse_arguments(keys))
        sys.stdout.write(f"written: {written}\n")

    return exit_status("recbole-llara", export_run)
