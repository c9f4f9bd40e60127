"""Kill a run at 25 moments, letting it go on each time, and compare its end with that of an undisturbed one.

``make test-kill``: minutes. Both of RSLLM's stages, its contrastive losses, dropout and LoRA are in the run. The last line
says how many kills it went on from and whether weights, losses, metrics and cases are the same to the last bit.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from killing import kill_until_done, outcome, share_recommender, start
from synthetic_data import write_toy_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_llara.llm.source import TINY_LLAMA_DIR

STEPS = 12  # an epoch of 192 rows in steps of 16
KEYS = {
    "model": "RSLLM", "strategy": "two_stage", "epochs": 12, "stage_1_epochs": 6, "stopping_step": 99, "llm_tuning": "lora",
    "max_train_rows": 16 * STEPS, "max_eval_rows": 40, "train_batch_size": 16, "micro_batch_size": 8, "eval_batch_size": 4,
    "llm_dtype": "float32", "lora_dropout": 0.1, "learning_rate": 1e-3, "rec_epochs": 2, "save_steps": 1, "checkpoint_dir": "saved",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        keys = {**write_toy_dataset(root), **KEYS, "llm_path": str(_make_llm(root / "llm"))}
        folders = [root / name for name in ("undisturbed", "killed")]
        for folder in folders:
            folder.mkdir()
            (folder / "run.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
        if start(folders[0]).wait():
            sys.stderr.write((folders[0] / "printed.txt").read_text(encoding="utf-8"))
            return 1
        share_recommender(*folders)
        killed = kill_until_done(folders[1], arguments.kills, STEPS, arguments.seed)
        one, other = map(outcome, folders)
    differing = [key for key in one if one[key] != other[key]]
    sys.stdout.write(json.dumps({"weights": len(one["weights"]), "log": len(one["log"]), "cases": len(one["cases"])}) + "\n")
    during = ", ".join(f"{number} during a {moment}" for moment, number in sorted(killed.items()))
    verdict = f"differing: {', '.join(differing)}" if differing else "bitwise equal"
    sys.stdout.write(f"{killed.total()} of {arguments.kills} kills ({during}) resumed, {verdict}\n")
    return int(bool(differing) or killed.total() != arguments.kills)


def _make_llm(folder: Path) -> Path:
    """A Llama of two blocks with the embedded one's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA_DIR)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
