"""Values are read as data, never run."""

from pathlib import Path
from typing import Any

import pytest

from recbole_llara.config.yaml_files import PROPERTIES, PlainText, parse_arguments, parse_value, read_yaml
from recbole_llara.utils.errors import UserError, nearest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("8", 8),
        ("-1", -1),
        ("True", True),
        ("false", False),
        ("None", None),
        ("~", None),
        ("", ""),
        ("  ", "  "),
        ("007", "007"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("[1, 5]", [1, 5]),
        ("['Hit','NDCG']", ["Hit", "NDCG"]),
        ("{'LS': 'valid_and_test'}", {"LS": "valid_and_test"}),
        ("[5,inf)", "[5,inf)"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("1+1", "1+1"),
        ("!!python/object/apply:os.getcwd []", "!!python/object/apply:os.getcwd []"),
        ("0,1", "0,1"),
    ],
)
def test_values_of_the_command_line(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_a_plain_text_stays_one() -> None:
    assert parse_value(PlainText("1")) == "1"


def test_arguments_are_cut_at_the_first_equals_sign() -> None:
    assert parse_arguments(["--a=b=c", "--n=2", "--n=2"]) == {"a": "b=c", "n": 2}


@pytest.mark.parametrize("argument", ["epochs=2", "--epochs", "-e=2", "2", "--=2", "---"])
def test_other_arguments_are_refused(argument: str) -> None:
    with pytest.raises(UserError, match="--key=value"):
        parse_arguments([argument])


def test_a_key_with_two_values_is_refused() -> None:
    with pytest.raises(UserError, match="epochs is given twice, as '1' and as '2'"):
        parse_arguments(["--epochs=1", "--epochs=2"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: [1\n", "line 3"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"just text", "holds a str"),
        (b"1: 2", "key 1 is a int"),
        (b"a: 1\na: 2\n", "line 2: key 'a' stands twice"),
        (b"a: !!python/object/apply:os.getcwd []", "python/object"),
        (b"a: \xff", "cannot be read"),
        (b"a: \x01", "no valid YAML"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        read_yaml(path)
    assert "bad.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")


def test_an_empty_file_and_merged_keys(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    (tmp_path / "merged.yaml").write_text("a: &a {x: 1e-3}\nb:\n  <<: *a\n  y: 2\n")
    assert read_yaml(tmp_path / "merged.yaml")["b"] == {"x": 0.001, "y": 2}


@pytest.mark.parametrize("path", sorted(PROPERTIES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(PROPERTIES)))
def test_every_yaml_of_properties_is_read(path: Path) -> None:
    assert read_yaml(path)


def test_near_names() -> None:
    assert nearest("sasrec", ["SASRec", "LLaRA"]) == "did you mean 'SASRec'?"
    assert nearest("zzz", ["a", "b"]) == "known: a, b"
    assert nearest("zzz", []) == "none is known"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_text("\ufeffseed: 3\n", encoding="utf-8")
    assert read_yaml(tmp_path / "marked.yaml") == {"seed": 3}
