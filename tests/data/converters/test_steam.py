"""Steam: Python literals read fast and right, users of at least 20 reviews, a seeded third, errors that say what is wrong."""

import ast
import gzip

import numpy as np
import pytest

from recbole_llara.data.converters.published import parse_review
from recbole_llara.data.tables import Malformed
from recbole_llara.utils.errors import UserError


def _write(folder, reviews, games):
    folder.mkdir()
    for name, rows in (("steam_reviews.json.gz", reviews), ("steam_games.json.gz", games)):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in rows)
    return folder


@pytest.fixture
def raw(tmp_path):
    """60 users, half of them with 30 reviews and half with 5, over 40 games."""
    rng = np.random.default_rng(0)
    reviews = []
    for user in range(60):
        for game in rng.permutation(40)[: 30 if user % 2 else 5]:
            day = f"20{10 + int(rng.integers(8))}-0{1 + int(rng.integers(9))}-1{int(rng.integers(9))}"
            reviews.append({"username": f"user {user}", "hours": 1.5, "product_id": str(game), "date": day, "text": "fine"})
    games = [
        {"app_name": f"Game {game}", "id": str(game), "genres": ["Action", "RPG"], "release_date": "2015-03-01"}
        for game in range(40)
    ]
    return _write(tmp_path / "raw", reviews, [*games, {"app_name": "no id"}])


def test_frequent_users_and_a_seeded_third(raw, tmp_path, run, read):
    report = run("steam", "--raw", raw, "--out", tmp_path / "a")
    assert "10 sequences" in report and "another draw has other counts" in report
    _, rows = read(tmp_path / "a" / "steam" / "steam.inter")
    users, games = {row[0] for row in rows}, {row[1] for row in rows}
    assert len(users) == 10 and all(int(user.split()[1]) % 2 for user in users) and len(games) <= 13
    for user in users:
        times = [float(row[2]) for row in rows if row[0] == user]
        assert times == sorted(times)
    _, items = read(tmp_path / "a" / "steam" / "steam.item")
    assert {item[0] for item in items} == games
    assert all(item[1] == f"Game {item[0]}" and item[2:] == ["2015", "Action RPG"] for item in items)
    run("steam", "--raw", raw, "--out", tmp_path / "b")
    assert read(tmp_path / "b" / "steam" / "steam.inter")[1] == rows
    run("steam", "--raw", raw, "--out", tmp_path / "c", "--seed", "7")
    assert {row[0] for row in read(tmp_path / "c" / "steam" / "steam.inter")[1]} != users


@pytest.mark.parametrize(
    "review",
    [
        {"username": "plain", "product_id": "7", "date": "2017-01-02"},
        {
            "text": "he said 'username': 'forged', 'date': '1999-01-01',",
            "username": "it's",
            "product_id": "7",
            "date": "2017-01-02",
        },
        {
            "text": "quotes \" and ' and \\ and {brackets} [x], \n newline",
            "username": "a\"b'c\\d é 🎮",
            "product_id": "7",
            "date": "2017-01-02",
        },
        {
            "hours": 3.5,
            "early_access": False,
            "found_funny": None,
            "tags": ["a", "b, c"],
            "username": "x, 'y'",
            "product_id": "7",
            "date": "2017-01-02",
        },
    ],
)
def test_a_line_is_read_as_the_literal_it_is(review):
    user, game, day = parse_review(str(review))
    assert (user, game, day) == (ast.literal_eval(str(review))["username"], "7", 17_168)


@pytest.mark.parametrize(
    "line", ["", "{}", "[1, 2]", "{'username': 'a', 'product_id': '7'}", "{'username': 'a', 'product_id': '7', 'date': 'May'}"]
)
def test_other_lines_are_malformed(line):
    with pytest.raises(Malformed):
        parse_review(line)


def test_a_truncated_file_and_a_foreign_one_are_refused(raw, tmp_path, run):
    whole = (raw / "steam_reviews.json.gz").read_bytes()
    (raw / "steam_reviews.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="steam_reviews.json.gz breaks off"):
        run("steam", "--raw", raw, "--out", tmp_path / "out")
    (raw / "steam_reviews.json.gz").write_bytes(b"no gzip at all")
    with pytest.raises(UserError, match="breaks off or is damaged"):
        run("steam", "--raw", raw, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_literals_of_python_2_are_read_too():
    assert parse_review("{u'username': u'caf\\xe9', u'product_id': u'7', u'date': u'2017-01-02'}") == ("café", "7", 17_168)
