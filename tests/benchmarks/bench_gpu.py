"""The engine on one GPU at the size of Llama-2-7B, beside the plain recipe: ``make bench-gpu``, at most ten minutes.

    python tests/benchmarks/bench_gpu.py [--tokenizer FOLDER] [--titles FILE] [--out benchmark-gpu.json]

Weights are random, in the shape of Llama-2-7B (--shape=smollm2: of SmolLM2-135M); nothing is downloaded, and RecBole is not needed. Give the folder of the real
tokenizer and a file of titles, one a line, for prompts of their real length; without them the embedded LLM's tokenizer reads
made-up titles. Ours and the recipe (plain_recipe.py) take turns over the same rows. Training is counted as 4 N operations a
token, N the weights of the decoder's linears; the machine's rate is that of a large bf16 product in the same run. A last part
trains over 4-bit weights with gradient checkpointing, where bitsandbytes is installed, for its peak of memory.

Without a GPU ``--shape=small`` runs the same code.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import matrix_rate, seconds, titles_of
from plain_recipe import PlainRecipe, PlainRow
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_llara.llm.adapters import tune
from recbole_llara.llm.answer_tree import walk, with_mask_of_pairs
from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm, embedded_vocabulary, input_embeddings
from recbole_llara.llm.generation import decode_generate
from recbole_llara.llm.item_tokens import ItemTokens, merge_item_embeddings
from recbole_llara.llm.likelihood import answer_pass, score_candidates, trie_log_probs
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import load_templates

SHAPES = {  # hidden, intermediate, layers, heads, heads of keys and values
    "7b": (4096, 11008, 32, 32, 32),
    "smollm2": (576, 1536, 30, 9, 3),
    "small": (64, 128, 2, 2, 2),
}
HISTORY, CANDIDATES, D_REC = 10, 20, 64
LORA = {"lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": "auto"}


class Engine:
    """Random weights, prompts and what both recipes do with them.

    Args:
        shape: a key of ``SHAPES``.
        tokenizer: a Hugging Face tokenizer.
        titles: ``titles[0]`` the padding item's.
        device: where all of it lies.
        checkpointing: whether blocks are computed again on the way back.
        in_4_bits: whether the blocks' linears are held in NF4.
    """

    def __init__(
        self,
        shape: str,
        tokenizer: Any,
        titles: Sequence[str],
        device: str,
        checkpointing: bool = False,
        in_4_bits: bool = False,
    ) -> None:
        self.device, self.tokenizer = torch.device(device), tokenizer
        hidden, intermediate, layers, heads, pairs = SHAPES[shape]
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=pairs,
            max_position_embeddings=4096,
        )
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with torch.device(self.device):
            torch.set_default_dtype(self.dtype)
            llm = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
            torch.set_default_dtype(torch.float32)
        blocks = llm.model.layers
        self.weights = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear))
        if in_4_bits:
            quantise(blocks, self.dtype)
        if checkpointing:
            llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.llm = tune(llm, "lora", **LORA).to(self.device)
        self.representation = REPRESENTATIONS["hybrid"]
        templates = load_templates("movie", CANDIDATES)
        self.encoder = PromptEncoder(tokenizer, titles, templates, representations=[self.representation])
        table = torch.randn(len(titles), D_REC)
        self.tokens = ItemTokens(embedded_vocabulary(self.llm), len(titles), frozenset({Part.ITEM_EMBEDDING}), table)
        self.tokens.to(self.device)
        self.parameters = [p for module in (self.llm, self.tokens) for p in module.parameters() if p.requires_grad]
        self.plain = PlainRecipe(self.llm, tokenizer, self.tokens.projector, self.tokens.item_embeddings, titles)
        self.rng = torch.Generator().manual_seed(1)

    def rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Histories [B, L], candidates [B, C] and targets [B], drawn."""
        many = len(self.encoder.titles) - 1
        drawn = torch.stack([torch.randperm(many, generator=self.rng)[: HISTORY + CANDIDATES] + 1 for _ in range(count)])
        history, candidates = drawn[:, :HISTORY], drawn[:, HISTORY:]
        columns = torch.randint(0, CANDIDATES, (count, 1), generator=self.rng)
        return history, candidates, candidates.gather(1, columns)[:, 0]

    def prompts(self, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor | None) -> EncodedPrompts:
        """Ours, on the device."""
        first = torch.zeros(len(history), dtype=torch.int64)
        return self.encoder.encode(history, candidates, targets, self.representation, first).to(self.device)

    def embed(self, prompts: EncodedPrompts) -> EmbeddedPrompts:
        """What the decoder reads."""
        inputs = input_embeddings(self.llm)(prompts.input_ids)
        slots = self.tokens(prompts.slot_parts, prompts.slot_items)
        inputs = merge_item_embeddings(inputs, prompts.slot_rows, prompts.slot_columns, slots)
        return EmbeddedPrompts(inputs, prompts.attention_mask, prompts.position_ids)

    def plain_rows(self, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> list[PlainRow]:
        """The recipe's."""
        segments = self.encoder.templates[0].segments
        listed = zip(history.tolist(), candidates.tolist(), targets.tolist(), strict=True)
        return [PlainRow(past, shown, target, segments) for past, shown, target in listed]

    def autocast(self) -> torch.autocast:
        """As in training."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def our_loss(self, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over all answer tokens of a pass."""
        prompts = self.prompts(history, candidates, targets)
        with self.autocast():
            inputs = self.embed(prompts)
            inputs = with_mask_of_pairs(self.llm, inputs) if self.device.type == "cuda" else inputs  # as in training
            answers = answer_pass(self.llm, inputs, prompts.labels)
            return answers.sums.sum() / answers.counts.sum()

    def plain_loss(self, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same by the recipe."""
        rows = self.plain_rows(history, candidates, targets)
        with self.autocast():
            return self.plain.loss(rows, self.plain.step_tokens(rows))

    def step(self, loss: partial) -> float:
        """Forward and backward; the optimiser is the same for both and left out."""
        value = loss()
        value.backward()
        for parameter in self.parameters:
            parameter.grad = None
        return float(value.detach())

    def answers(self, decoding: str, history: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> object:
        """Answers to a batch by one of our decodings, or by the recipe."""
        with torch.no_grad(), self.autocast():
            if decoding == "plain":
                return self.plain.answers(self.plain_rows(history, candidates, targets))
            prompts = self.prompts(history, candidates, None)
            answer_ids = self.encoder.answer_ids(candidates, self.representation)
            inputs = self.embed(prompts)
            if decoding == "generate":
                lengths = (answer_ids != IGNORED_LABEL).sum(2).amax(1)
                end, pad = self.tokenizer.eos_token_id, self.encoder.pad_id
                return decode_generate(self.llm, inputs, lengths, end, pad)
            if decoding == "score":
                return score_candidates(self.llm, inputs, answer_ids)
            return walk(answer_ids, trie_log_probs(self.llm, inputs, answer_ids).cpu())


def quantise(blocks: nn.Module, compute_dtype: torch.dtype) -> None:
    """Every linear of the blocks into NF4, as ``llm_quantization: 4bit`` holds it."""
    import bitsandbytes as bnb

    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                held = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4"
                )
                device, weight = child.weight.device, child.weight.detach().cpu()
                held.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
                setattr(module, name, held.to(device))


def peak_gb(device: torch.device) -> float | None:
    """Memory of the GPU at the most since the last reset; None without one."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Count the peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def train(engine: Engine, size: int, rounds: int) -> dict[str, Any]:
    """Passes of both recipes in turn."""
    ways = {"ours": engine.our_loss, "plain": engine.plain_loss}
    engine.llm.eval()  # no dropout: the losses are compared
    with torch.no_grad():
        rows = engine.rows(size)
        losses = {name: float(way(*rows)) for name, way in ways.items()}
    engine.llm.train()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float | None] = {}
    tokens: list[float] = []
    for number in range(rounds + 1):
        rows = engine.rows(size)
        tokens.append(float(engine.prompts(*rows).attention_mask.sum()))
        for name, way in ways.items():
            reset_peak(engine.device)
            spent = seconds(partial(engine.step, partial(way, *rows)), engine.device)
            peaks[name] = peak_gb(engine.device)
            if number:  # the first warms up
                taken[name].append(spent)
    rate = matrix_rate(torch.bfloat16 if engine.dtype == torch.bfloat16 else torch.float32, engine.device)
    a_second = [count / spent for count, spent in zip(tokens[1:], taken["ours"], strict=True)]
    return {
        "tokens_per_second": median(a_second),
        "rows_per_second": size / median(taken["ours"]),
        "plain_rows_per_second": size / median(taken["plain"]),
        "ratio": median(other / own for own, other in zip(taken["ours"], taken["plain"], strict=True)),
        "of_matrix_rate": 4 * engine.weights * median(a_second) / rate,
        "matrix_operations_per_second": rate,
        "tokens_per_row": median(tokens) / size,
        "losses": losses,
        "peak_gb": peaks["ours"],
        "plain_peak_gb": peaks["plain"],
    }


def evaluate(engine: Engine, size: int, rounds: int) -> dict[str, float]:
    """Batches answered by each decoding and by the recipe, in turn."""
    engine.llm.eval()
    causal_lm(engine.llm).config.use_cache = True
    taken: dict[str, list[float]] = {"score": [], "constrained": [], "generate": [], "plain": []}
    for number in range(rounds + 1):
        rows = engine.rows(size)
        for name, spent in taken.items():
            one = seconds(partial(engine.answers, name, *rows), engine.device)
            if number:
                spent.append(one)
    found = {f"{name}_rows_per_second": size / median(spent) for name, spent in taken.items()}
    for name in ("score", "constrained", "generate"):
        found[f"{name}_ratio"] = median(other / own for own, other in zip(taken[name], taken["plain"], strict=True))
    return found


def low_memory(shape: str, tokenizer: Any, titles: Sequence[str], device: str, size: int) -> dict[str, Any]:
    """A step over 4-bit weights with gradient checkpointing, and its peak."""
    if find_spec("bitsandbytes") is None:
        return {"left_out": "bitsandbytes is not installed"}
    engine = Engine(shape, tokenizer, titles, device, checkpointing=True, in_4_bits=True)
    engine.llm.train()
    reset_peak(engine.device)
    rows = engine.rows(size)
    engine.step(partial(engine.our_loss, *rows))
    spent = seconds(partial(engine.step, partial(engine.our_loss, *rows)), engine.device)
    return {"rows_per_second": size / spent, "peak_gb": peak_gb(engine.device)}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tokenizer", type=Path, default=TINY_LLAMA_DIR)
    parser.add_argument("--titles", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmark-gpu.json"))
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.shape == "7b":
        parser.error("no GPU here: --shape=small runs the same code on the CPU")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    read = arguments.titles.read_text(encoding="utf-8").splitlines() if arguments.titles else None
    titles = titles_of(2000, words=4) if read is None else ["", *(line for line in read if line.strip())]
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "shape": arguments.shape}
    engine = Engine(arguments.shape, tokenizer, titles, device)
    found["train"] = train(engine, arguments.rows, arguments.rounds)
    found["evaluate"] = evaluate(engine, arguments.rows, arguments.rounds)
    del engine
    found["4bit"] = low_memory(arguments.shape, tokenizer, titles, device, arguments.rows)
    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + f"\nwritten: {arguments.out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
