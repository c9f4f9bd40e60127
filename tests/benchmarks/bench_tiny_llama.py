"""What a tiny Llama can do of the tasks that it is made by: the table of its model card.

``python tests/benchmarks/bench_tiny_llama.py DIR``, a folder that ``recbole_llara.tiny_llama.pretrain`` wrote. All folders are asked the same
fresh questions, of the last stage of the pretraining, with up to 20 candidates.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.tiny_llama.pretrain import FRESH, opener_stage, probe
from recbole_llara.tiny_llama.tasks import TaskMaker
from recbole_llara.tiny_llama.texts import read_catalogue

SEED = 7


def main() -> None:
    """Print the accuracies of every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[TINY_LLAMA_DIR], help="of weights and tokenizer")
    parser.add_argument("--batches", type=int, default=400, help="of questions, of about 35 rows each")
    given = parser.parse_args()
    told = {}
    for folder in given.folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        maker = TaskMaker(AutoTokenizer.from_pretrained(folder), read_catalogue(), SEED)
        told[str(folder)] = probe(model, maker, opener_stage(1.0), range(2 * FRESH, 2 * FRESH + given.batches))
    sys.stdout.write(f"{pd.DataFrame(told).round(4).to_string()}\n")


if __name__ == "__main__":
    main()
