import pytest
import torch

from recbole_llara.evaluator.answer import CandidateAnswers, match_titles

TITLES = ["M", "The Matrix", "Alien", "Aliens", "Léon [ItemEmb]", "a\nb, c"]
ITEMS = torch.tensor([[11, 12, 13, 14, 15, 16]])


def named(text, titles=TITLES, items=ITEMS):
    return match_titles([text], [titles], items).item()


@pytest.mark.parametrize(("title", "item"), list(zip(TITLES, ITEMS[0].tolist(), strict=True)))
def test_an_exact_title_names_its_candidate(title, item):
    assert named(title) == item
    assert named(f"  {title}\n") == item


@pytest.mark.parametrize(
    "text", ["", "  ", "Matrix", "the matrix", "The Matrix.", '"Alien"', "Alien, Aliens", "Mat", "Solaris"]
)
def test_anything_else_is_invalid(text):
    assert named(text) == 0


def test_unicode_forms_of_one_title_are_the_same():
    assert named("Le\u0301on [ItemEmb]") == 15


def test_two_candidates_of_one_title_are_ambiguous_but_duplicates_elsewhere_are_not():
    titles = [["Hamlet", "Hamlet", "Alien"], ["Hamlet", "Solaris", "Alien"]]
    items = torch.tensor([[1, 2, 3], [2, 4, 3]])
    assert match_titles(["Hamlet", "Hamlet"], titles, items).tolist() == [0, 2]


def test_an_empty_title_is_never_named():
    assert named("", ["", "Alien"], torch.tensor([[5, 6]])) == 0


def test_numbers_are_matched_as_texts():
    assert named("12", ["1", "12", "112"], torch.tensor([[1, 12, 112]])) == 12


def test_each_row_has_its_own_candidates():
    titles = [["a", "b"], ["b", "c"], ["c", "a"]]
    items = torch.tensor([[1, 2], [2, 3], [3, 1]])
    assert match_titles(["a", "a", "a"], titles, items).tolist() == [1, 0, 1]
    assert match_titles([], [], torch.zeros(0, 2, dtype=torch.int64)).tolist() == []


def test_refuses_what_disagrees():
    for texts, titles in ((["a", "b"], [TITLES]), (["a", "b"], [TITLES, TITLES]), (["a"], [["a"]])):
        with pytest.raises(ValueError, match="argument"):
            match_titles(texts, titles, ITEMS)
    with pytest.raises(ValueError, match="3 rows"):
        CandidateAnswers(items=torch.zeros(3), scores=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="1 texts for 3 rows"):
        CandidateAnswers(items=torch.zeros(3), texts=["a"])
