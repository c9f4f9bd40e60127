"""What the tiny Llama reads: catalogue text of ml-100k (titles, years, genres) out of the RecBole package, made-up titles, its tokenizer."""

import csv
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recbole_llara.config.yaml_files import PROPERTIES
from recbole_llara.data.titles import clean_title

TITLES_PER_THEME = 8
OPENERS = ("The", "The", "The", "The", "A", "My", "Super", "Dr.")
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


class CatalogueText(NamedTuple):
    """One film of the catalogue: no user and no rating is ever read."""

    title: str
    year: str
    genres: str

    @property
    def line(self) -> str:
        """The film as one line of text."""
        return f" {self.title} ({self.year}) {self.genres}"


def read_catalogue() -> list[CatalogueText]:
    """Read ``ml-100k.item`` of the installed RecBole package (found without importing it)."""
    package = Path(importlib.util.find_spec("recbole").origin).parent
    with open(package / "dataset_example" / "ml-100k" / "ml-100k.item", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [CatalogueText(clean_title(title, ("move_article",)), year, genres) for _, title, year, genres in rows]


def catalogue_batch(
    tokenizer: PreTrainedTokenizerBase, catalogue: list[CatalogueText], rows: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """[rows, length] token ids of catalogue lines in random order, for plain language modelling."""
    order = torch.randint(0, len(catalogue), (rows * length // 6,), generator=generator).tolist()
    text = ",".join(catalogue[number].line for number in order)
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][: rows * length]).reshape(rows, length)


def _made_up_words(generator: torch.Generator, count: int) -> list[str]:
    """Words of random syllables, so that copying does not depend on known words."""
    onsets = ["b", "br", "d", "f", "g", "gr", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z", "ch", "é", "ž"]
    rimes = ["a", "an", "ar", "e", "el", "en", "i", "in", "o", "on", "or", "u", "um", "y", "ax", "å"]
    lengths = torch.randint(1, 4, (count,), generator=generator).tolist()
    picks = torch.randint(0, len(onsets) * len(rimes), (count, 3), generator=generator).tolist()
    words = [
        "".join(onsets[p % len(onsets)] + rimes[p // len(onsets)] for p in pick[:n])
        for pick, n in zip(picks, lengths, strict=True)
    ]
    return [word.capitalize() for word in words]


def make_titles(
    catalogue: list[CatalogueText], themes: int, generator: torch.Generator, opener_share: float = 0.0
) -> list[str]:
    """Titles in groups of ``TITLES_PER_THEME`` that share a theme word; a quarter of the groups are real ones, which share none.

    Args:
        catalogue: real titles.
        themes: number of groups.
        generator: of every draw.
        opener_share: probability that a made-up title begins with one of ``OPENERS``.

    Returns:
        1 + themes * TITLES_PER_THEME titles, the first empty (the padding item).
    """
    words = [word for film in catalogue for word in film.title.split()]
    total = themes * TITLES_PER_THEME
    real = torch.randint(0, len(catalogue), (total,), generator=generator).tolist()
    made_up = _made_up_words(generator, total)
    picks = torch.randint(0, len(words), (total, 4), generator=generator).tolist()
    lengths = torch.randint(0, 4, (total,), generator=generator).tolist()
    places = torch.randint(0, 100, (total,), generator=generator).tolist()
    openers = [""] * total
    if opener_share:
        opened = torch.rand(total, generator=generator) < opener_share
        drawn = torch.randint(0, len(OPENERS), (total,), generator=generator).tolist()
        openers = [OPENERS[number] + " " if there else "" for number, there in zip(drawn, opened.tolist(), strict=True)]
    titles = [""]
    for number in range(total):
        theme, base = number // TITLES_PER_THEME, number - number % TITLES_PER_THEME
        if theme % 4 == 0:
            titles.append(catalogue[real[number]].title)
            continue
        parts = [words[p] for p in picks[number][: lengths[number]]]
        if places[number] < 10:
            parts.append(made_up[number])
        parts.insert(places[number] % (len(parts) + 1), made_up[base] if theme % 2 else words[picks[base][3]])
        titles.append(openers[number] + " ".join(parts))
    return titles


def train_tokenizer(catalogue: list[CatalogueText], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer that opens with BOS, as Llama's does.

    Args:
        catalogue: the films whose text it learns, beside the prompts' templates.
        vocab_size: pieces at most, the 256 bytes and three special tokens among them.
    """
    templates = [
        text
        for path in sorted(Path(PROPERTIES / "prompt").glob("*.yaml"))
        for text in yaml.safe_load(path.read_text(encoding="utf-8"))["templates"]
    ]
    corpus = [film.line for film in catalogue] + [f" {film.title}" for film in catalogue] + templates * 2
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
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left")
