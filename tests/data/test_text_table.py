"""Texts in one buffer are the texts that were put in, and are found again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llara.data.text_table import TextIndex, TextTable
from recbole_llara.data.titles import is_visible, untitled

TEXTS = ["", "Heat", "Amélie", "千と千尋", "x", "", "🎬 a", "Heat"]
ANY = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=12)


@given(ANY)
def test_a_table_reads_as_the_list_it_was_made_of(texts):
    table = TextTable.of(texts)
    assert list(table) == texts == [table[place] for place in range(len(texts))] and table == texts
    again = TextTable.from_tensors(table.tensors("t"), "t")
    assert again == table and again.sha256 == table.sha256
    for first in range(len(texts)):
        part = table[first : first + 3]
        assert part == texts[first : first + 3] and part.sha256 == TextTable.of(texts[first : first + 3]).sha256
        assert TextTable.from_tensors(part.tensors("t"), "t") == part


def test_digests_tell_where_texts_begin():
    assert TextTable.of(["ab", "c"]).sha256 != TextTable.of(["a", "bc"]).sha256
    assert TextTable.of(["a", "b"]) != ["a"] and TextTable.of(["a"]) != "a"


def test_places_count_from_both_ends_and_end():
    table = TextTable.of(TEXTS)
    assert table[-1] == "Heat" and table[np.int64(3)] == "千と千尋"
    for beyond in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError):
            table[beyond]
    with pytest.raises(IndexError, match="steps of 2"):
        table[::2]


def test_halves_of_surrogate_pairs_come_back():
    table = TextTable.of(["\ud800", "a"])
    assert list(TextTable.from_tensors(table.tensors("t"), "t")) == ["\ud800", "a"]


@given(ANY)
def test_an_index_finds_every_place_of_a_text(texts):
    index = TextIndex.of(texts)
    kept = TextIndex.from_tensors(index.tensors("i"), "i", len(texts))
    for text in [*texts, "nothing of it"]:
        assert [place for place in kept.places(text) if texts[place] == text] == [
            n for n, one in enumerate(texts) if one == text
        ]


@given(ANY)
def test_titles_without_a_visible_character_are_found(texts):
    found = untitled(TextTable.of(texts))
    assert found.tolist() == [place for place, text in enumerate(texts) if not is_visible(text)]


@pytest.mark.parametrize(
    "texts", [[" ", "\u200b", "\u3000a", " x", "é", "\u200bé", "🎬", "a\u0301", "\u0301"], ["千"], [""], []], ids=str
)
def test_the_first_character_need_not_be_the_visible_one(texts):
    assert untitled(TextTable.of(texts)).tolist() == [place for place, text in enumerate(texts) if not is_visible(text)]


def test_a_title_with_half_of_a_surrogate_pair_is_no_text():
    with pytest.raises(UnicodeDecodeError):
        untitled(TextTable.of(["a\udfff"]))


def test_another_kind_of_tensor_is_refused():
    tensors = TextTable.of(TEXTS).tensors("t")
    with pytest.raises(TypeError, match="another kind"):
        TextTable.from_tensors({**tensors, "t/offsets": tensors["t/offsets"].int()}, "t")
    with pytest.raises(ValueError, match="other places"):
        TextTable.from_tensors({**tensors, "t/offsets": tensors["t/offsets"][:-1]}, "t")
    with pytest.raises(ValueError, match="within a character"):
        bounds = tensors["t/offsets"].clone()
        bounds[4] -= 1
        TextTable.from_tensors({**tensors, "t/offsets": bounds}, "t")
    index = TextIndex.of(TEXTS).tensors("i")
    with pytest.raises(ValueError, match="not there"):
        TextIndex.from_tensors({**index, "i/order": torch.full_like(index["i/order"], 99)}, "i", len(TEXTS))
