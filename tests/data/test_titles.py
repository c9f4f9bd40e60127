"""Titles: real ones of MovieLens, and text that RecBole's own reader would change."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_data import write_toy_dataset

from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.titles import clean_title, load_catalogue, popularity_levels
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


FILMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:float\tclass:token_seq\tscore:float\n"
    "1\tToy Story\t1995.0\tAnimation Children's Comedy\t8.30\n"
    "2\tGoldenEye\t\t Action\x07Thriller \t7\n"
    "3\tFour Rooms\tnan\t\u200b\t.0\n"
    "4\tHeat\t1995.00\tNone\t8.05\n"
)


def test_columns_are_read_as_they_stand_and_empty_cells_say_nothing(tmp_path):
    keys = {"title_field": "movie_title", "item_fields": ("class", "release_year", "score")}
    catalogue = load_catalogue(fake_dataset(tmp_path, FILMS, ["2", "1", "3", "4"]), config_of(**keys))
    assert list(catalogue.fields) == ["class", "release_year", "score"]
    assert catalogue.fields["class"] == ("", "Action Thriller", "Animation Children's Comedy", "", "None")
    assert catalogue.fields["release_year"] == ("", "", "1995", "", "1995")
    assert catalogue.fields["score"] == ("", "7", "8.30", ".0", "8.05")


def test_a_column_of_the_item_file_that_is_not_there_is_named_with_those_that_are(tmp_path):
    keys = {"title_field": "movie_title", "item_fields": ("genre",)}
    with pytest.raises(UserError, match="item_id, movie_title, release_year, class, score, expected 'genre': see item_fields"):
        load_catalogue(fake_dataset(tmp_path, FILMS, ["1"]), config_of(**keys))


def test_texts_are_dealt_to_other_items_together(make_config, tmp_path):
    keys = {"checkpoint_dir": str(tmp_path), "item_fields": ["release_year", "class", "popularity"]}
    plain, dealt, again, other = (
        prepare_data(make_config("leave_one_out", **keys, **changes)).catalogue
        for changes in ({}, {"shuffle_titles": True}, {"shuffle_titles": True}, {"shuffle_titles": True, "seed": 7})
    )
    assert dealt == again != other and dealt.titles[0] == ""
    assert dealt.item_tokens == plain.item_tokens and dealt.fields["popularity"] == plain.fields["popularity"]
    rows = [sorted(zip(one.titles, one.fields["release_year"], one.fields["class"], strict=True)) for one in (plain, dealt)]
    assert rows[0] == rows[1]  # what belongs together stays so
    assert np.mean([a == b for a, b in zip(plain.titles[1:], dealt.titles[1:], strict=True)]) < 0.05


def test_half_a_character_of_a_field_is_refused(tmp_path):
    dataset = fake_dataset(tmp_path, "item_id:token\ttitle:token_seq\tclass:token\n1\tA\tB \\ud83d\n", ["1"])
    with pytest.raises(UserError, match=r"1 of 1 items have half of a surrogate pair in 'class' .*item_fields.*encoding"):
        load_catalogue(dataset, config_of(encoding="raw_unicode_escape", item_fields=("class",)))


def test_fields_of_movielens(make_config, tmp_path):
    keys = {"checkpoint_dir": str(tmp_path), "item_fields": ["release_year", "class", "popularity"]}
    catalogue = prepare_data(make_config("leave_one_out", **keys)).catalogue
    of_film = {token: fields for token, *fields in zip(catalogue.item_tokens, *catalogue.fields.values(), strict=True)}
    assert of_film["1"] == ["1995", "Animation Children's Comedy", "5"]
    assert of_film["50"] == ["1977", "Action Adventure Romance Sci-Fi War", "5"]  # Star Wars
    assert of_film["[PAD]"] == ["", "", ""]


def test_levels_of_popularity_are_fifths_of_the_interactions():
    assert popularity_levels(np.array([0, 1, 1, 2, 6])).tolist() == [1, 1, 1, 2, 3]
    assert popularity_levels(np.zeros(4, np.int64)).tolist() == [1, 1, 1, 1]
    counts = np.random.default_rng(0).lognormal(2, 1.2, 5000).astype(np.int64)
    levels = popularity_levels(counts)
    for count, level in zip(counts.tolist(), levels.tolist(), strict=True):
        assert level == 1 + int(5 * sum(other for other in counts[counts < count].tolist()) // counts.sum())
    shares = np.bincount(levels, counts, 6)[1:] / counts.sum()
    assert np.abs(shares - 0.2).max() < 0.05


@pytest.mark.parametrize("protocol", ["llara", "leave_one_out"])
def test_popularity_is_that_of_the_training_interactions_and_a_row_s_own_rarely_shows(protocol, prepared):
    """Counted in a plain loop; without its own interaction the target of a training row of ml-100k has the same level."""
    data = prepared[protocol].dataset
    train = data.inter_feat
    users, targets, history = (train[name].numpy() for name in ("user_id", "item_id", "item_id_list"))
    pairs = {(user, item) for user, items in zip(users.tolist(), history.tolist(), strict=True) for item in items if item}
    pairs |= set(zip(users.tolist(), targets.tolist(), strict=True))
    counted = Counter(item for _, item in pairs)
    counts = data.knowledge.known["train"].counts(data.item_num)
    # Rows of fewer than three before the target are left out under the papers' protocol, and with them none of the items.
    assert counts.tolist() == [counted[item] for item in range(data.item_num)]
    levels = popularity_levels(counts)
    assert set(levels[counts == 0].tolist()) == {1} and (levels[(counts > 0) & (counts < 20)] == 1).all()
    betrayed = []
    for item in np.unique(targets):
        without = counts.copy()
        without[item] -= 1
        betrayed.append(popularity_levels(without)[item] != levels[item])
    share = np.array(betrayed)[np.searchsorted(np.unique(targets), targets)].mean()
    assert share == pytest.approx({"llara": 0.0199, "leave_one_out": 0.0155}[protocol], abs=1e-4)


@pytest.mark.parametrize("protocol", ["llara", "leave_one_out"])
def test_validation_and_test_interactions_change_no_level(protocol, make_config, tmp_path):
    """The rows that are not for training get other items; then those that are."""

    def levels(is_changed):
        path = tmp_path / "toy" / "toy.inter"
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        for number, row in enumerate(rows):
            if is_changed(int(row[0][1:]), number % 12):
                row[1] = "i7"
        path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
        catalogue = prepare_data(make_config(protocol, "toy", **keys)).catalogue
        return dict(zip(catalogue.item_tokens, catalogue.fields["popularity"], strict=True))

    keys = {**write_toy_dataset(tmp_path), "item_fields": ["popularity"], "val_interval": None}
    del keys["protocol"]
    split = {"llara": lambda user, place: user >= 32, "leave_one_out": lambda user, place: place >= 10}[protocol]
    before = levels(lambda user, place: False)
    assert len(set(before.values())) > 3
    assert levels(split) == before
    assert levels(lambda user, place: user % 2) != before


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("Tom &amp; Vera&#39;s &quot;Best&quot; Soap", 'Tom & Vera\'s "Best" Soap'),
        ("Salt &amp;amp; Pepper &#xe9;", "Salt & Pepper é"),
        ("<b>Bold</b> and <I class='x'>italic</I><br/>line", "Bold and italic line"),
        ("&lt;i&gt;Escaped&lt;/i&gt;", "Escaped"),
        ("AT&T, R&not a D, I <3 you, <Untitled>, a < b > c", "AT&T, R&not a D, I <3 you, <Untitled>, a < b > c"),
        ("two  blanks stay", "two  blanks stay"),
        ("&unknown; stays", "&unknown; stays"),
    ],
)
def test_html_becomes_text(raw, title):
    assert clean_title(raw, ["unescape_html"]) == title
    assert clean_title(raw, []) == raw
