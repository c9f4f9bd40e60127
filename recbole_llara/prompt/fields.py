"""What prompts say of an item behind its title: its fields in brackets, as in "Toy Story (1995, Animation Comedy, very popular)".

A prompt holds some thirty items, so that a field has to cost few tokens: it stands without its name, and popularity is a word or two
that any LLM knows. Nothing is said of the lowest level, which most candidates have. RecBole-free.
"""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from recbole_llara.data.titles import POPULARITY
from recbole_llara.prompt.titles import TOKENISED_AT_ONCE
from recbole_llara.prompt.tokens import spell, tokenise_inside

# By the levels of ``data.titles.popularity_levels``. Items that nobody took in training are among the lowest, and may be known to all.
POPULARITY_WORDS = {"2": "known", "3": "well known", "4": "popular", "5": "very popular"}
_BROKEN = "\ufffd"  # what the beginning of a character is spelt as


def bracketed(
    fields: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase | None = None, most: int = 0
) -> list[str]:
    """The text behind each of N titles, "" where nothing is known of the item; none at all where there are no fields.

    Args:
        fields: as ``Catalogue`` has them, N texts each; empty ones are left out.
        tokenizer: of the LLM; None = every field as it stands.
        most: (tokens) longer cells are cut.
    """
    columns = []
    for name, texts in fields.items():
        if name == POPULARITY:
            columns.append([POPULARITY_WORDS.get(level, "") for level in texts])
        else:
            columns.append(texts if tokenizer is None else cut_fields(tokenizer, texts, most))
    told = [", ".join(filter(None, of_item)) for of_item in zip(*columns, strict=True)]
    return [f"({text})" if text else "" for text in told]


def cut_fields(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[str]:
    """Texts of at most so many tokens each; a longer one ends with the last word that is whole, where it has one.

    Example, most = 3, a word being a token: "Action Adventure Comedy Drama" is "Action Adventure Comedy".
    """
    distinct, cut = list(dict.fromkeys(texts)), {}
    for start in range(0, len(distinct), TOKENISED_AT_ONCE):
        some = distinct[start : start + TOKENISED_AT_ONCE]
        tokens = tokenise_inside(tokenizer, [f" {text}" if text else "" for text in some])
        long = [(text, of_text[:most]) for text, of_text in zip(some, tokens, strict=True) if len(of_text) > most]
        spelt = spell(tokenizer, [kept for _, kept in long])
        cut |= {text: _whole_words(text, kept.strip()) for (text, _), kept in zip(long, spelt, strict=True)}
    return [cut.get(text, text) for text in texts]


def _whole_words(text: str, kept: str) -> str:
    """The beginning of a text less a word or a character that is not whole."""
    kept = kept.rstrip(_BROKEN)
    return kept if text.startswith(f"{kept} ") or " " not in kept else kept.rpartition(" ")[0]
