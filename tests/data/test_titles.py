"""Titles: real ones of MovieLens, and text that RecBole's own reader would change."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_llara.data.titles import clean_title, load_catalogue
from recbole_llara.utils.errors import UserError

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
        ("[ItemEmb]  two spaces", "[ItemEmb]  two spaces"),
        ("(1941)   (1942)", "(1941)"),
    ],
)
def test_clean_title(raw, clean):
    assert clean_title(raw, BOTH) == clean
    assert clean_title(clean, BOTH) == clean
    assert clean_title(raw, []) == raw


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("two\nlines", "two lines"),
        ("two\r\n\tlines\x00", "two lines"),
        ("a\u2028b\u2029c\x85d\x7fe", "a b c d e"),
        ("\u3000 at the ends \xa0\n", "at the ends"),
        # Text of right-to-left scripts needs format characters, and C1 codes are somebody's quotes.
        ("\u200fשלום\u202e \x99", "\u200fשלום\u202e \x99"),
        (" Matrix,\nThe\t(1999)\n", "The Matrix"),
    ],
)
def test_a_title_is_one_line(raw, clean):
    assert clean_title(raw, BOTH) == clean


def test_a_long_run_of_spaces_takes_no_longer_than_its_length():
    """Its square, 10^10 steps, would not end while anyone waits."""
    spaces = " " * 100_000
    assert clean_title(f"x{spaces}y", BOTH) == f"x{spaces}y"
    assert clean_title(f"x{spaces}(1999)", BOTH) == "x"


def test_titles_of_movielens(prepared):
    catalogue = prepared["leave_one_out"].catalogue
    assert len(catalogue.titles) == 1683 and catalogue.titles[0] == "" and catalogue.domain == "movie"
    by_token = dict(zip(catalogue.item_tokens, catalogue.titles, strict=True))
    assert by_token["1"] == "Toy Story" and by_token["543"] == "Les Misérables"
    assert by_token["267"] == "unkonwn"  # the title MovieLens does not know, as RecBole's file spells it
    # PROTOCOL: 22 groups of duplicate titles; one of them, "That Darn Cat!", has three items in this release.
    repeated = {title: count for title, count in Counter(catalogue.titles).items() if count > 1}
    assert len(repeated) == 22 and repeated["That Darn Cat!"] == 3
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
    quoted = ['"Weird', '12" record', '"Heroes"', '"', 'a "real" one']
    lines += [*(f"q{number}\t{title}" for number, title in enumerate(quoted)), "3\tsecond mention"]
    dataset = fake_dataset(
        tmp_path,
        "\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n",
        ["5", "0", "1", "2", "3", "4", "6", "7", *(f"q{number}" for number in range(5))],
    )
    catalogue = load_catalogue(dataset, config_of())
    assert catalogue.item_tokens[:3] == ("[PAD]", "5", "0")
    expected = ["[ItemEmb]", *titles[:5], *titles[6:], *quoted]
    assert list(catalogue.titles) == ["", *expected]


def test_missing_titles_are_counted_and_named(tmp_path):
    text = "item_id:token\ttitle:token_seq\n1\tA\n2\t \n3\t\n5\t\u200b\x07\n"
    dataset = fake_dataset(tmp_path, text, ["1", "2", "3", "4", "5"])
    with pytest.raises(UserError, match=r"4 of 5 items have no title .*toy.item.*title_field.*: 2, 3, 4, 5. Every"):
        load_catalogue(dataset, config_of())


def test_half_a_surrogate_pair_is_refused(tmp_path):
    dataset = fake_dataset(tmp_path, "item_id:token\ttitle:token_seq\n1\tA\n2\tB \\ud83d\n", ["1", "2"])
    with pytest.raises(UserError, match=r"1 of 2 items have half of a surrogate pair .*the first: 2.*encoding"):
        load_catalogue(dataset, config_of(encoding="raw_unicode_escape"))


def test_a_file_in_another_encoding_is_named(tmp_path):
    dataset = fake_dataset(tmp_path, "", ["1"])
    (tmp_path / "toy.item").write_bytes("item_id:token\ttitle:token_seq\n1\tLéon\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"toy.item: found the byte 0xe9 in line 2, expected utf-8 \(key encoding\)"):
        load_catalogue(dataset, config_of())
    assert load_catalogue(dataset, config_of(encoding="latin-1")).titles == ("", "Léon")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\tcut\there", "found 3 columns in line 3, expected the 2 of the first line"),
        ("2", "found 1 columns in line 3, expected the 2 of the first line"),
        ("\ufeff2\tB", r"found a byte order mark \(U\+FEFF\) before line 3, .*two files joined"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line, message):
    text = f"item_id:token\ttitle:token_seq\n1\tA\n{line}\n"
    with pytest.raises(UserError, match=f"toy.item: {message}"):
        load_catalogue(fake_dataset(tmp_path, text, ["1", "2"]), config_of())


def test_a_byte_order_mark_before_the_file_is_none_of_its_text_and_within_a_title_it_is(tmp_path):
    text = "\ufeffitem_id:token\ttitle:token_seq\n1\t\ufeffA\ufeffB\n"
    assert load_catalogue(fake_dataset(tmp_path, text, ["1"]), config_of()).titles == ("", "\ufeffA\ufeffB")


def test_titles_that_a_csv_writer_quoted_are_counted(tmp_path, caplog):
    text = 'item_id:token\ttitle:token_seq\n1\t"a ""real"" quote"\n2\t"Heroes"\n3\tplain\n'
    catalogue = load_catalogue(fake_dataset(tmp_path, text, ["1", "2", "3"]), config_of())
    assert catalogue.titles[1:] == ('"a ""real"" quote"', '"Heroes"', "plain")
    assert next(record.message for record in caplog.records if "stand in quotes" in record.message).startswith("1 titles")


@pytest.mark.parametrize(
    ("keys", "message"), [({"title_field": None}, "not set"), ({"title_field": "name"}, "expected 'name'")]
)
def test_a_wrong_title_field_is_named(tmp_path, keys, message):
    dataset = fake_dataset(tmp_path, "item_id:token\ttitle:token_seq\n1\tA\n", ["1"])
    with pytest.raises(UserError, match=f"{message}.*title"):
        load_catalogue(dataset, config_of(**keys))
