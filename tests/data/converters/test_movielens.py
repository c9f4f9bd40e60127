"""MovieLens' three raw formats come out as RecBole's own copy of ml-100k is."""

import csv
from pathlib import Path

import pytest
import recbole

from recbole_llara.data.converters.published import GENRES_100K
from recbole_llara.utils.errors import UserError

PACKAGED = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"


def _packaged(part):
    with open(PACKAGED / f"ml-100k.{part}", encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


@pytest.fixture
def raw_100k(tmp_path):
    """u.data and u.item in GroupLens' form, written out of RecBole's copy."""
    folder = tmp_path / "raw"
    folder.mkdir()
    ratings = ["\t".join(row) for row in _packaged("inter")[1:]]
    (folder / "u.data").write_text("\n".join(ratings) + "\n", encoding="latin-1")
    films = []
    for item, title, year, genres in _packaged("item")[1:]:
        flags = ["1" if genre in genres.split() else "0" for genre in GENRES_100K]
        films.append("|".join([item, f"{title} ({year})" if year else title, "", "", "", *flags]))
    (folder / "u.item").write_text("\n".join(films) + "\n", encoding="latin-1", errors="replace")
    return folder


def test_ml_100k_is_recbole_s_own_copy(raw_100k, tmp_path, run, read):
    report = run("ml-100k", "--raw", raw_100k, "--out", tmp_path / "out")
    assert "943 sequences  (papers: 943)" in report and "100,000 interactions" in report and "82,520" in report
    assert "times from 1997-09-20 03:05:10 to 1998-04-22 23:10:38" in report and "title Kolya" in report
    header, rows = read(tmp_path / "out" / "ml-100k" / "ml-100k.inter")
    assert [header, *rows] == _packaged("inter")
    _, films = read(tmp_path / "out" / "ml-100k" / "ml-100k.item")
    wanted = _packaged("item")[1:]
    assert len(films) == 1682
    alike = [
        film
        for film, other in zip(films, wanted, strict=True)
        if film[:3] == other[:3] and set(film[3].split()) == set(other[3].split())
    ]
    assert len(alike) >= 1675  # a few titles hold characters that latin-1 does not


def test_the_other_two_formats(tmp_path, run, read):
    (tmp_path / "1m").mkdir(), (tmp_path / "latest").mkdir()
    (tmp_path / "1m" / "ratings.dat").write_text("1::10::5::978300760\n1::11::3::978302109\n", encoding="latin-1")
    (tmp_path / "1m" / "movies.dat").write_text(
        "10::GoldenEye (1995)::Action|Thriller\n11::Cité, La (1995)::Drama\n", encoding="latin-1"
    )
    (tmp_path / "latest" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,978300760\n", encoding="utf-8")
    (tmp_path / "latest" / "movies.csv").write_text(
        'movieId,title,genres\n10,"American President, The (1995)",Comedy|Drama\n12,"Nameless",(no genres listed)\n',
        encoding="utf-8",
    )
    run("ml-1m", "--raw", tmp_path / "1m", "--out", tmp_path / "out")
    run("ml-latest", "--raw", tmp_path / "latest", "--out", tmp_path / "out")
    assert read(tmp_path / "out" / "ml-1m" / "ml-1m.item")[1][1] == ["11", "Cité, La", "1995", "Drama"]
    assert read(tmp_path / "out" / "ml-latest" / "ml-latest.item")[1] == [
        ["10", "American President, The", "1995", "Comedy Drama"],
        ["12", "Nameless", "", ""],
    ]
    assert read(tmp_path / "out" / "ml-latest" / "ml-latest.inter")[1] == [["1", "10", "4.5", "978300760"]]


def test_malformed_lines_are_counted_shown_and_too_many_refused(tmp_path, run, read, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [f"1::{item}::5::{item}" for item in range(1, 100)]
    (raw / "ratings.dat").write_text("\n".join([*lines, "1::100::five::7"]) + "\n", encoding="latin-1")
    (raw / "movies.dat").write_text(
        "".join(f"{item}::Film {item} (1995)::Drama\n" for item in range(1, 101)), encoding="latin-1"
    )
    with pytest.raises(
        UserError, match="1 of 100 lines .* malformed, expected at most 0.100% .*line 100: found '1::100::five::7'"
    ):
        run("ml-1m", "--raw", raw, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # nothing half-written
    run("ml-1m", "--raw", raw, "--out", tmp_path / "out", "--max_malformed", "0.02")
    assert "ratings.dat: 1 of 100 lines left out" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / "ml-1m" / "ml-1m.inter")[1]) == 99


def test_a_byte_order_mark_changes_nothing(tmp_path, run, read):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "ratings.dat").write_text("1::1193::5::978300760\n", encoding="utf-8-sig")
    (raw / "movies.dat").write_text("1193::One Flew (1975)::Drama\n", encoding="utf-8")
    with pytest.raises(UserError, match="byte order mark"):  # the encoding of these files is latin-1, which has none
        run("ml-1m", "--raw", raw, "--out", tmp_path / "out")
    (raw / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1193,5,978300760\n", encoding="utf-8-sig")
    (raw / "movies.csv").write_text('movieId,title,genres\n1193,"One Flew, ""Nest"" (1975)",Drama\n', encoding="utf-8-sig")
    run("ml-latest", "--raw", raw, "--out", tmp_path / "out")
    assert read(tmp_path / "out" / "ml-latest" / "ml-latest.item")[1] == [["1193", 'One Flew, "Nest"', "1975", "Drama"]]
