"""What stands behind a title: only what is known, popularity in words, long texts cut at a word."""

import pytest

from recbole_llara.prompt.fields import bracketed, cut_fields

FIELDS = {
    "release_year": ("", "1995", "", "1984", ""),
    "class": ("", "Animation Children's Comedy", "", "", "Drama"),
    "popularity": ("", "5", "1", "3", "2"),
}


def test_fields_stand_in_brackets_in_the_order_of_the_key():
    told = ["", "(1995, Animation Children's Comedy, very popular)", "", "(1984, well known)", "(Drama, known)"]
    assert bracketed(FIELDS) == told
    assert bracketed({name: FIELDS[name] for name in ("class", "release_year")}) == [
        "", "(Animation Children's Comedy, 1995)", "", "(1984)", "(Drama)",
    ]  # fmt: skip
    assert bracketed({}) == []


def test_a_column_that_holds_levels_of_its_own_is_no_popularity():
    assert bracketed({"stars": ("", "5", "1")}) == ["", "(5)", "(1)"]


@pytest.mark.parametrize("most", [1, 2, 5, 12])
def test_each_field_is_cut_by_itself_to_its_whole_words(make_tokenizer, most):
    texts = ["", "Drama", "word " * 11 + "end", "word " * 20 + "end", "naïve 霸王别姬", "x" * 40, "one, two and <three>"]
    tokenizer = make_tokenizer([*texts, "word end"], 300)
    cut = cut_fields(tokenizer, texts, most)
    for text, kept in zip(texts, cut, strict=True):
        lengths = [len(tokenizer(f" {each}", add_special_tokens=False)["input_ids"]) if each else 0 for each in (text, kept)]
        assert text.startswith(kept) and lengths[1] <= most and (kept == text) == (lengths[0] <= most)
        if kept not in ("", text) and " " in kept:
            assert text[len(kept)] == " "
    told = bracketed({"class": texts, "popularity": ["", *"12345", ""]}, tokenizer, most)
    words = ("", "known", "well known", "popular", "very popular")  # which are never cut
    joined = [", ".join(filter(None, each)) for each in zip(cut[1:6], words, strict=True)]
    assert told[1:6] == [f"({text})" if text else "" for text in joined]
