"""Texts to tokens and back, as a prompt holds them: whatever a title spells, it is text. RecBole-free."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from recbole_llara.utils.errors import UserError

# A text inside a prompt is tokenised behind this anchor, which no tokenizer merges with what follows,
# so that a title has the same tokens wherever it stands.
ANCHOR = "\n"


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as they stand; a special token's name in them is spelt out."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def tokenise_inside(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand in the middle of a prompt.

    Raises:
        UserError: the tokenizer merges a line break with what follows it, or makes a special token of a text.
    """
    anchor, *encoded = tokenise(tokenizer, [ANCHOR, *(ANCHOR + text for text in texts)])
    # The token for what a tokenizer does not know is special as well, but says only that.
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    inside = [tokens[len(anchor) :] for tokens in encoded]
    for text, whole, tokens in zip(texts, encoded, inside, strict=True):
        if whole[: len(anchor)] != anchor:
            raise UserError(f"llm_path: its tokenizer merges a line break with {text[:80]!r}; expected them apart")
        if not special.isdisjoint(tokens):
            found = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special.intersection(tokens))))
            raise UserError(f"llm_path: its tokenizer makes the special token {found} of {text[:80]!r}; expected plain text")
    return inside


def spell(tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Texts of token sequences; special tokens inside them show, so that they match no title."""
    if not sequences:  # which transformers would take for one empty text
        return []
    return tokenizer.batch_decode(sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False)
