"""The embedded LLM: a small Llama that lets every path run with no GPU and no network. Not Llama-2."""

from pathlib import Path

TINY_LLAMA_DIR = Path(__file__).resolve().parent / "weights"
