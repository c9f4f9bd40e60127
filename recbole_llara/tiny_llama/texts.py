"""What the tiny Llama reads: catalogue text of ml-100k (titles, years, genres) out of the RecBole package, made-up titles, its tokenizer."""

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recbole_llara.config.yaml_files import PROPERTIES
from recbole_llara.data.titles import clean_title

TITLE_RULES = ("move_article",)


@dataclass(frozen=True)
class CatalogueText:
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
    path = package / "dataset_example" / "ml-100k" / "ml-100k.item"
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [CatalogueText(clean_title(title, TITLE_RULES), year, genres) for _, title, year, genres in rows]


TITLES_PER_THEME = 8
OPENERS = ("The", "The", "The", "The", "A", "My", "Super", "Dr.")


def _syllables(generator: torch.Generator, count: int) -> list[str]:
    """Made-up words, so that copying does not depend on known words."""
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
    """Titles in groups of ``TITLES_PER_THEME`` that share a theme word.

    Args:
        catalogue: real titles; a quarter of the groups hold real ones, without a shared word.
        themes: number of groups.
        generator: of every draw.
        opener_share: probability that a made-up title begins with one of ``OPENERS``.

    Returns:
        1 + themes * TITLES_PER_THEME titles, the first empty (the padding item).
    """
    words = [word for film in catalogue for word in film.title.split()]
    total = themes * TITLES_PER_THEME
    real = torch.randint(0, len(catalogue), (total,), generator=generator).tolist()
    made_up = _syllables(generator, total)
    picks = torch.randint(0, len(words), (total, 4), generator=generator).tolist()
    lengths = torch.randint(0, 4, (total,), generator=generator).tolist()
    places = torch.randint(0, 100, (total,), generator=generator).tolist()
    openers = [""] * total
    if opener_share:
        opened = torch.rand(total, generator=generator) < opener_share
        drawn = torch.randint(0, len(OPENERS), (total,), generator=generator).tolist()
        openers = [OPENERS[number] + " " if there else "" for number, there in zip(drawn, opened.tolist(), strict=True)]
    titles = [""]
    for theme in range(themes):
        base = theme * TITLES_PER_THEME
        theme_word = made_up[base] if theme % 2 else words[picks[base][3]]
        for number in range(base, base + TITLES_PER_THEME):
            if theme % 4 == 0:
                titles.append(catalogue[real[number]].title)
                continue
            parts = [words[p] for p in picks[number][: lengths[number]]]
            if places[number] < 10:
                parts.append(made_up[number])
            parts.insert(places[number] % (len(parts) + 1), theme_word)
            titles.append(openers[number] + " ".join(parts))
    return titles


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
