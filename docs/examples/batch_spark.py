"""Recommendations for users in many files of JSON lines, on a cluster of Spark: each task loads the run and answers its parts.

    spark-submit batch_spark.py --run=/shared/run --parts=/shared/parts --output=/shared/answers --tasks=64 [--key=value ...]

Every place is one that all machines see. Start it again after whatever stopped it: parts that were answered stay.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pyspark.sql import SparkSession

from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.serving.command import unanswered


def main() -> None:
    """Answer every part that has no answers yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--run", "--parts", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--tasks", type=int, default=2, help="each loads the run once")
    arguments, words = parser.parse_known_args()
    run, output, keys = arguments.run, arguments.output, parse_arguments(words)

    def answer(parts: Iterator[str]) -> None:
        from recbole_llara.serving.command import answer_part
        from recbole_llara.serving.loaded import load

        loaded = None
        for part in parts:
            loaded = loaded or load(run, **keys)
            answer_part(loaded, part, output)

    parts = [str(part) for part in unanswered(sorted(Path(arguments.parts).glob("*.jsonl")), output)]
    if parts:
        context = SparkSession.builder.appName("recbole-llara").getOrCreate().sparkContext
        context.parallelize(parts, min(arguments.tasks, len(parts))).foreachPartition(answer)
    sys.stdout.write(f"answered {len(parts)} parts\n")


if __name__ == "__main__":
    main()
