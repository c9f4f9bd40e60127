"""``recbole-llara recommend``: items for one history, or JSON lines for any number of users; ``explain`` one; ``export`` a run."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from recbole_llara.utils.atomic import write_file
from recbole_llara.utils.errors import UserError, exit_status
from recbole_llara.utils.process_setup import BYTE_ORDER_MARK, is_text, read_json, write_json

if TYPE_CHECKING:
    from recbole_llara.serving.loaded import LoadedRun

_EPILOG = """\
  --run=saved/LLaRA-ml-100k-... --history "Toy Story" "GoldenEye"
  --run=saved/LLaRA-ml-100k-... --jsonl < users.jsonl > answers.jsonl
  --run=saved/LLaRA-ml-100k-... --jsonl --output=answers --input parts/*.jsonl
A line in: {"history": ["Toy Story", "GoldenEye"], "k": 5, "candidates": [...], "user": "any name"}; only history is needed.
A line out, in the same order: {"user": ..., "recommendations": [...]}, or {"user": ..., "error": "..."}.
"""
_EXPLAIN_EPILOG = """\
  --run=saved/LLaRA-ml-100k-... --history "Toy Story" "GoldenEye"
  --run=saved/LLaRA-ml-100k-... --history "Toy Story" "GoldenEye" --candidates "Babe" "Heat" "Alien" --item "Heat" --json
"""
KEYS = frozenset({"user", "history", "candidates", "k", "retrieve_k"})  # of a line
LONGEST_LINE = 1 << 20  # characters
BATCHES_AT_ONCE = 8  # read before they are answered, so that prompts of like length come together


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``recommend``."""
    parser = _asking_parser("recommend", "Recommend items by a finished run.", _EPILOG)
    parser.add_argument("--k", type=int, default=5, help="how many items (default %(default)s)")
    parser.add_argument(
        "--jsonl", action="store_true", help="read JSON lines from stdin, write JSON lines to stdout, both in UTF-8"
    )
    parser.add_argument("--input", nargs="+", metavar="FILE", help="with --jsonl: read these files instead of stdin")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where the answers to each file of --input go, under its name; those that are there stay",
    )
    return parser


def build_explain_parser() -> argparse.ArgumentParser:
    """The parser of ``explain``."""
    what = (
        "Show where one item of an answer comes from: the recommender, the LLM's tokens and titles, the items of the history."
    )
    parser = _asking_parser("explain", what, _EXPLAIN_EPILOG, is_required=True)
    parser.add_argument("--item", metavar="ITEM", help="the candidate to explain (default: the run's own first choice)")
    parser.add_argument(
        "--k", type=int, default=3, help="how many items of the history, those that matter most (default %(default)s)"
    )
    return parser


def _asking_parser(command: str, what: str, epilog: str, is_required: bool = False) -> argparse.ArgumentParser:
    """The parser of a command that asks a run a question."""
    parser = run_parser(command, what, epilog=epilog)
    history = "titles or ids, the oldest first; id:NAME is an id in any case"
    parser.add_argument("--history", nargs="+", metavar="ITEM", required=is_required, help=history)
    parser.add_argument(
        "--candidates", nargs="+", metavar="ITEM", help="what to choose from; else the run's recommender proposes"
    )
    parser.add_argument(
        "--items", metavar="FILE", help="an .item file of items that came, were renamed or removed after training"
    )
    parser.add_argument("--retrieve_k", type=int, help="how many items the recommender proposes (default candidate_num)")
    parser.add_argument("--json", action="store_true", help="print JSON, in UTF-8")
    return parser


def run_parser(command: str, what: str, run: str = "the folder of a finished run", epilog: str = "") -> argparse.ArgumentParser:
    """A command's parser of ``--run``; further arguments are keys over the run's own."""
    parser = argparse.ArgumentParser(
        prog=f"recbole-llara {command}",
        description=what,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help=run)
    return parser


def recommend_main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is that of ``exit_status``."""
    parser = build_parser()
    arguments, keys = parser.parse_known_args(argv)
    if bool(arguments.history) == arguments.jsonl:
        parser.error("expected either --history or --jsonl")
    if bool(arguments.input) != bool(arguments.output) or (arguments.input and not arguments.jsonl):
        parser.error("expected --input and --output together, with --jsonl")
    return exit_status("recbole-llara", lambda: _recommend(arguments, keys))


def _recommend(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.serving.loaded import as_json, load

    if arguments.json or arguments.jsonl:
        write_json()
    if arguments.jsonl:
        read_json()
    if arguments.input:
        if parts := unanswered(arguments.input, arguments.output):  # else nothing is loaded
            run = load(arguments.run, **parse_arguments(keys))
            for part in parts:
                answer_part(run, part, arguments.output, arguments.k, arguments.retrieve_k)
        sys.stdout.write(f"written: {len(parts)} of {len(arguments.input)} parts; the others were there\n")
        return
    run = load(arguments.run, **parse_arguments(keys))
    _take_items(run, arguments.items)
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


def _take_items(run: "LoadedRun", path: str | None) -> None:
    """Take in what a file tells of items."""
    from recbole_llara.serving.items import read_items

    if path is None:
        return
    if not Path(path).expanduser().is_file():
        raise UserError(f"items: found no file {path}, expected an .item file such as the dataset's")
    run.changing.change(read_items(Path(path).expanduser(), run.config))


def explain_main(argv: Sequence[str] | None = None) -> int:
    """Explain one item of an answer; the exit status is that of ``exit_status``."""
    arguments, keys = build_explain_parser().parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _explain(arguments, keys))


def _explain(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.serving.explain import explain
    from recbole_llara.serving.explain_text import as_text
    from recbole_llara.serving.loaded import load

    if arguments.json:
        write_json()
    run = load(arguments.run, **parse_arguments(keys))
    _take_items(run, arguments.items)
    asked = (arguments.history, arguments.item, arguments.candidates, arguments.k, arguments.retrieve_k)
    found = explain(run, *asked)
    text = json.dumps(found.as_json(), ensure_ascii=False, indent=2) + "\n" if arguments.json else as_text(found)
    sys.stdout.write(text)


def answer_lines(run: "LoadedRun", lines: Iterable[str], out: TextIO, k: int = 5, retrieve_k: int | None = None) -> None:
    """Answer one user a line in its order, a batch at a time; a line that cannot be answered gets an error of its own.

    A byte order mark before a line is dropped. Half of a surrogate pair, which JSON can escape and UTF-8 cannot hold, is
    escaped in the answer too.

    Args:
        lines: JSON objects with ``history``, and ``user``, ``candidates``, ``k`` or ``retrieve_k`` where wanted.
        out: gets a JSON object a line.
        k, retrieve_k: for lines that say nothing of them.
    """
    from recbole_llara.serving.loaded import as_json, recommend_each

    defaults = {"k": k, "retrieve_k": retrieve_k, "candidates": None}
    asked = (_asked(line, defaults) for line in lines if line.strip())
    while batch := list(islice(asked, BATCHES_AT_ONCE * run.batch_size)):
        for (user, _), answer in zip(batch, recommend_each(run, [question for _, question in batch]), strict=True):
            told = {"error": str(answer)} if isinstance(answer, UserError) else {"recommendations": as_json(answer)}
            told = {**user, **told}
            text = json.dumps(told, ensure_ascii=False)
            out.write((text if is_text(text) else json.dumps(told)) + "\n")
        out.flush()


def answer_part(run: "LoadedRun", part: str | Path, output: str | Path, k: int = 5, retrieve_k: int | None = None) -> bool:
    """Answer a file of JSON lines into the file of its name in a folder, which appears whole or not at all.

    So a part that was answered is left as it is, and whatever asks for parts may be cut off and started again with the same words.

    Args:
        run: a loaded run.
        part: JSON lines, see ``answer_lines``.
        output: a folder, made if need be.
        k, retrieve_k: for lines that say nothing of them.

    Returns:
        whether it was answered now; False where its answers were there already.

    Raises:
        UserError: there is no such part.
    """
    part, target = Path(part), Path(output) / Path(part).name
    if target.exists():
        return False
    if not part.is_file():
        raise UserError(f"input: found no file {part}, expected one of JSON lines")

    def write(place: Path) -> None:
        with open(part, encoding="utf-8", errors="surrogateescape") as lines, open(place, "x", encoding="utf-8") as answers:
            answer_lines(run, lines, answers, k, retrieve_k)

    write_file(target, write)
    return True


def unanswered(parts: Iterable[str | Path], output: str | Path) -> list[Path]:
    """Those of some parts whose answers are not in a folder; a UserError where two have one name."""
    paths = [Path(part) for part in parts]
    if len({path.name for path in paths}) < len(paths):
        raise UserError("input: found two files of one name, expected each name once: answers are named as their parts are")
    return [path for path in paths if not (Path(output) / path.name).exists()]


def _asked(line: str, defaults: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | UserError]:
    """The ``user`` that a line names, if any, and its question with defaults, or what is wrong with it."""
    if len(line) > LONGEST_LINE:
        return {}, UserError(f"line: found {len(line)} characters, expected at most {LONGEST_LINE}")
    if not is_text(line):
        return {}, UserError(f"line: found bytes that are no UTF-8 in {line[:60]!a}, expected UTF-8")
    try:
        question = json.loads(line.lstrip(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        return {}, UserError(f"line: found no JSON ({error}), expected an object with history")
    if not isinstance(question, dict) or not isinstance(question.get("history"), list):
        return {}, UserError('line: found no list history, expected an object such as {"history": ["Toy Story"]}')
    user = {"user": question["user"]} if "user" in question else {}
    unknown = sorted(question.keys() - KEYS)
    if unknown:
        return user, UserError(f"line: found {unknown[0]!r}, expected some of {', '.join(sorted(KEYS))}")
    if not isinstance(question.get("candidates"), list | None):
        return user, UserError("candidates: expected a list of titles or ids")
    return user, {**defaults, **{key: value for key, value in question.items() if value is not None}}


def export_main(argv: Sequence[str] | None = None) -> int:
    """Export a run; the exit status is that of ``exit_status``."""
    what = "Write a finished run as a folder that others can use; --key=value overrides the run's own keys."
    parser = run_parser("export", what)
    parser.add_argument("--output", required=True, help="the folder to create")
    parser.add_argument("--merge", action="store_true", help="fold LoRA's adapter into the LLM's weights")
    parser.add_argument(
        "--for",
        dest="engine",
        choices=["vllm"],
        help="write the LLM for a server of vLLM too, with the run's tokens in its vocabulary",
    )
    parser.add_argument(
        "--dtype", default="float32", help="type of the merged weights: float32, bfloat16 or float16 (default %(default)s)"
    )
    arguments, keys = parser.parse_known_args(argv)

    def export_run() -> None:
        from recbole_llara.config.yaml_files import parse_arguments
        from recbole_llara.serving.export import export

        asked = (arguments.run, arguments.output, arguments.merge, arguments.dtype, arguments.engine)
        written = export(*asked, **parse_arguments(keys))
        sys.stdout.write(f"written: {written}\n")
        if arguments.engine:
            from recbole_llara.model.engine_client import FOLDER, Served

            name = Served.read(written / FOLDER).name
            sys.stdout.write(f"serve its LLM: vllm serve {written / FOLDER} --served-model-name={name}\n")

    return exit_status("recbole-llara", export_run)
