"""The worked example of docs/pages/extend/converter.md, as it stands there, on a few reviews."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import write_files

from recbole_llara import cli
from recbole_llara.data import converters
from recbole_llara.utils.errors import UserError

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "pages" / "extend" / "converter.md").read_text(encoding="utf-8")
REVIEWS = [("ann", "p1", 10), ("ann", "p2", 20), ("bob", "p2", 15)]
PRODUCTS = {"p1": "A lamp", "p2": 'A "red" chair'}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The page's command; its file and the raw files lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    (tmp_path / "downloads").mkdir()
    lines = [json.dumps({"reviewer": user, "product": item, "time": time}) for user, item, time in REVIEWS]
    (tmp_path / "downloads" / "reviews.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [json.dumps({"product": item, "name": name}) for item, name in PRODUCTS.items()]
    (tmp_path / "downloads" / "products.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (found,) = re.findall(r"^recbole-llara (convert .*)$", PAGE, re.MULTILINE)
    return shlex.split(found)


def test_a_converter_of_one_s_own(command, capsys):
    assert cli.main(command) == 0
    assert "3 interactions" in capsys.readouterr().out
    written = [Path(f"dataset/shop/shop.{part}").read_text(encoding="utf-8").splitlines() for part in ("inter", "item")]
    assert written[0] == ["user_id:token\titem_id:token\ttimestamp:float", "ann\tp1\t10.0", "ann\tp2\t20.0", "bob\tp2\t15.0"]
    assert written[1] == ["item_id:token\ttitle:token_seq", "p1\tA lamp", 'p2\tA "red" chair']


def test_its_mistakes_are_told_as_any_others(command, capsys):
    Path("downloads/reviews.jsonl").write_text('{"reviewer": "ann"}\n', encoding="utf-8")
    assert cli.main(command) == 2
    assert "1 of 1 lines" in capsys.readouterr().err and not Path("dataset/shop").exists()
    assert cli.main([word for word in command if word not in ("--raw", "downloads")]) == 2
    assert "expected --raw DIR" in capsys.readouterr().err
    assert cli.main(["convert", "reviews", "--plugins=none.py", "--out=dataset"]) == 2
    assert "plugins: none.py" in capsys.readouterr().err


def test_the_names_of_the_package_are_kept():
    with pytest.raises(UserError, match="the name steam is taken"):
        converters.register_converter("steam", lambda options: ("steam", None))
