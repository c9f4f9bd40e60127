"""The tiny Llama's tokenizer: byte-level BPE over catalogue text and prompt templates; any Unicode title fits."""

from pathlib import Path

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recbole_llara.config.properties import PROPERTIES
from recbole_llara.tiny_llama.catalogue import CatalogueText

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def _corpus(catalogue: list[CatalogueText]) -> list[str]:
    templates = [
        text
        for path in sorted(Path(PROPERTIES / "prompt").glob("*.yaml"))
        for text in yaml.safe_load(path.read_text(encoding="utf-8"))["templates"]
    ]
    return [film.line for film in catalogue] + [f" {film.title}" for film in catalogue] + templates * 2


def train_tokenizer(catalogue: list[CatalogueText], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Args:
        catalogue: the films whose text it learns.
        vocab_size: pieces at most, the 256 bytes and three special tokens among them.

    Returns:
        a tokenizer that opens with BOS, as Llama's does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(catalogue), trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left")
