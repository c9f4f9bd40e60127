"""Titles: real ones of MovieLens, and text that RecBole's own reader would change."""

from types import SimpleNamespace

import numpy as np
import pytest

from recbole_llara.data.titles import Catalogue, clean_title, load_catalogue
from recbole_llara.errors import UserError

BOTH = ["move_article", "strip_year"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Matrix, The", "The Matrix"),
        ("Postino, Il", "Il Postino"),
        ("Boot, Das", "Das Boot"),
        ("Misérables, Les", "Les Misérables"),
        ("Enfer, L'", "L'Enfer"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        (
            "Double vie de Véronique, La (Double Life of Veronique, The)",
            "La Double vie de Véronique (The Double Life of Veronique)",
        ),
        ("Fille seule, La (A Single Girl)", "La Fille seule (A Single Girl)"),
        ("Die xue shuang xiong (Killer, The)", "Die xue shuang xiong (The Killer)"),
        ("Star Maker, The (Uomo delle stelle, L')", "The Star Maker (L'Uomo delle stelle)"),
        ("Matrix, The (1999)", "The Matrix"),
        ("Land Before Time III: The Time of the Great Giving (1995)", "Land Before Time III: The Time of the Great Giving"),
        # What only looks like one of the above.
        ("Shall We Dance?", "Shall We Dance?"),
        ("Paris, Texas", "Paris, Texas"),
        ("Corrina, Corrina", "Corrina, Corrina"),
        ("Kiss Me, Guido", "Kiss Me, Guido"),
        ("Mrs. Brown (Her Majesty, Mrs. Brown)", "Mrs. Brown (Her Majesty, Mrs. Brown)"),
        ("2001: A Space Odyssey", "2001: A Space Odyssey"),
        ("Murder at 1600", "Murder at 1600"),
        ("Independence Day (ID4)", "Independence Day (ID4)"),
        ("(1941)", "(1941)"),
        ("unknown", "unknown"),
        ("M", "M"),
        ("[ItemEmb]  two spaces\nand a line", "[ItemEmb]  two spaces\nand a line"),
    ],
)
def test_clean_title(raw, clean):
    assert clean_title(raw, BOTH) == clean
    assert clean_title(clean, BOTH) == clean
    assert clean_title(raw, []) == raw


def test_an_unknown_rule_is_named():
    with pytest.raises(UserError, match=r"'strip_yaer'.*strip_year"):
        clean_title("M", ["strip_yaer"])


def test_titles_of_movielens(prepared):
    catalogue = prepared["leave_one_out"].catalogue
    assert len(catalogue.titles) == 1683 and catalogue.titles[0] == "" and catalogue.domain == "movie"
    by_token = dict(zip(catalogue.item_tokens, catalogue.titles, strict=True))
    assert by_token["1"] == "Toy Story" and by_token["543"] == "Les Misérables"
    assert by_token["267"] == "unkonwn"  # the title MovieLens does not know, as RecBole's file spells it
    # PROTOCOL: 22 groups of duplicate titles; one of them, "That Darn Cat!", has three items in this release.
    groups = catalogue.duplicate_groups()
    assert len(groups) == 22
    assert [len(group) for group in groups if catalogue.titles[group[0]] == "That Darn Cat!"] == [3]
    assert all(len({catalogue.titles[item] for item in group}) == 1 for group in groups)
    assert not [title for title in catalogue.titles if title.endswith((", The", ", A", ", An", ", Les", ", Il", ", L'"))]


def fake_dataset(folder, text, tokens):
    """Just enough of RecBole's Dataset to say which items it numbers and where its files lie."""
    (folder / "toy.item").write_text(text, encoding="utf-8")
    ids = np.array(["[PAD]", *tokens])
    return SimpleNamespace(
        dataset_path=str(folder),
        dataset_name="toy",
        iid_field="item_id",
        item_num=len(ids),
        id2token=lambda _, places: ids[places],
    )


class Keys(dict):
    """As RecBole's Config: None for a key that is not set."""

    def __missing__(self, key):
        return None


def config_of(**keys):
    values = {"title_field": "title", "title_rules": [], "domain": "game", "field_separator": "\t"} | keys
    return Keys(values)


def test_text_comes_through_intact(tmp_path):
    titles = ["two  spaces", "NA", "None", "Ürümqi 乌鲁木齐", "l'été, “quoted”", " [ItemEmb] ", "<s>", "™"]
    lines = [f"{number}\t{title}" for number, title in enumerate(titles)]
    lines += ['8\t"a ""real"" quote"', '9\t"two\nlines"', "3\tsecond mention"]
    dataset = fake_dataset(
        tmp_path,
        "\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n",
        ["5", "0", "1", "2", "3", "4", "6", "7", "8", "9"],
    )
    catalogue = load_catalogue(dataset, config_of())
    assert catalogue.item_tokens[:3] == ("[PAD]", "5", "0")
    expected = [titles[5], *titles[:5], *titles[6:], 'a "real" quote', "two\nlines"]
    assert list(catalogue.titles) == ["", *expected]


def test_missing_titles_are_counted_and_named(tmp_path):
    dataset = fake_dataset(tmp_path, "item_id:token\ttitle:token_seq\n1\tA\n2\t \n3\n", ["1", "2", "3", "4"])
    with pytest.raises(UserError, match=r"3 of 4 items have no title .*title_field.*2, 3, 4"):
        load_catalogue(dataset, config_of())


@pytest.mark.parametrize(
    ("keys", "message"), [({"title_field": None}, "not set"), ({"title_field": "name"}, "expected 'name'")]
)
def test_a_wrong_title_field_is_named(tmp_path, keys, message):
    dataset = fake_dataset(tmp_path, "item_id:token\ttitle:token_seq\n1\tA\n", ["1"])
    with pytest.raises(UserError, match=f"{message}.*title"):
        load_catalogue(dataset, config_of(**keys))


def test_duplicate_groups_leave_the_padding_out():
    catalogue = Catalogue(("", "b", "a", "b", "", ""), ("[PAD]", "1", "2", "3", "4", "5"), "item")
    assert catalogue.duplicate_groups() == [(1, 3), (4, 5)]
