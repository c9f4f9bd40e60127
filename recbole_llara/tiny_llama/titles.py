"""Made-up titles out of catalogue words and random syllables, in groups that share a word."""

import torch

from recbole_llara.tiny_llama.catalogue import CatalogueText

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
