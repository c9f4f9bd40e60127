"""Recommendations for users in many files of JSON lines, on a cluster of Ray: each worker loads the run once and answers parts.

    python batch_ray.py --run=/shared/run --parts=/shared/parts --output=/shared/answers --workers=8 [--gpus=1] [--key=value ...]

Every place is one that all machines see. Start it again after whatever stopped it: parts that were answered stay.
"""

import argparse
import sys
from pathlib import Path

import ray

from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.serving.command import answer_part, unanswered
from recbole_llara.serving.loaded import load


class Answering:
    """A worker: a loaded run, which is asked about one part after the other."""

    def __init__(self, run: str, output: str, keys: dict) -> None:
        self.run, self.output = load(run, **keys), output

    def __call__(self, row: dict) -> dict:
        """Answer the part of a row."""
        answer_part(self.run, row["part"], self.output)
        return row


def main() -> None:
    """Answer every part that has no answers yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--run", "--parts", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes, each with the run in its memory")
    parser.add_argument("--gpus", type=float, default=0, help="of a worker")
    arguments, keys = parser.parse_known_args()
    parts = unanswered(sorted(Path(arguments.parts).glob("*.jsonl")), arguments.output)
    if not parts:
        sys.stdout.write("every part is answered\n")
        return
    rows = ray.data.from_items([{"part": str(part)} for part in parts], override_num_blocks=len(parts))
    told = {"run": arguments.run, "output": arguments.output, "keys": parse_arguments(keys)}
    pool = ray.data.ActorPoolStrategy(size=min(arguments.workers, len(parts)))
    answered = rows.map(Answering, fn_constructor_kwargs=told, compute=pool, num_gpus=arguments.gpus).take_all()
    sys.stdout.write(f"answered {len(answered)} parts\n")


if __name__ == "__main__":
    main()
