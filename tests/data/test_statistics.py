"""The figures of a dataset equal those counted by hand on four users, and its card tells them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from recbole_llara.cli import main
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.statistics import data_statistics, gini, top_share

# Four users, in order of time. Counts: a, b, c 4 each, d 2, e and f 1.
TAKEN = {"u1": "abcd", "u2": "abce", "u3": "acbf", "u4": "abdc"}
TITLES = {"a": "Same", "b": "Same", "c": "Other", "d": "Long title", "e": ""}  # f has no line
SMALL = {"protocol": "leave_one_out", "candidate_num": 2, "topk": [1], "use_gpu": False}


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keys of the dataset."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "four"
    folder.mkdir(parents=True)
    rows = [(user, item, 86400 * (20000 + time)) for user, items in TAKEN.items() for time, item in enumerate(items)]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "four.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    titles = ["item_id:token\ttitle:token_seq", *(f"{item}\t{title}" for item, title in TITLES.items())]
    (folder / "four.item").write_text("\n".join(titles) + "\n", encoding="utf-8")
    return {**SMALL, "data_path": str(tmp_path / "data")}


def test_the_figures_are_those_counted_by_hand(four: dict[str, Any]) -> None:
    config = RunConfig("Popularity", "four", config_dict={**four, "title_field": None})
    found = data_statistics(prepare_data(config))
    assert (found.users, found.items, found.interactions, found.pairs) == (4, 6, 16, 16)
    assert found.density == 16 / 24
    assert found.per_user == {"min": 4, "median": 4, "mean": 4, "max": 4}
    # Counts 1, 1, 2, 4, 4, 4: (-5 - 3 - 2 + 4 + 12 + 20) / (6 * 16); one item is the top tenth of six.
    assert found.gini == pytest.approx(26 / 96) and found.top_tenth == 4 / 16
    assert found.rows == {"train": 4, "valid": 4, "test": 4}
    # Training knows a (4), b (3) and c (1). Validation asks for c, c, b, d, the test for d, e, f, c.
    assert found.unlearned_targets == {"valid": 1, "test": 3}
    # The target d, e or f against another that nobody took: a tie; c against e or f: right.
    assert found.popularity_hit["test"] == (3 * 0.5 + 1) / 4
    assert found.held_out_items is None and found.candidates["candidate_num"] == 2


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([3, 1], 0.25)])
def test_gini(counts: list[int], expected: float) -> None:
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_gini_is_the_mean_difference_of_pairs() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 40)
    pairs = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(pairs / (2 * counts.mean()))


def test_top_share() -> None:
    assert top_share(np.array([5, 1, 1, 1, 1, 1]), 0.1) == 0.5
    assert top_share(np.arange(1, 31), 0.1) == (28 + 29 + 30) / 465  # three of thirty, not four


def test_ready_made_windows_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "win"
    folder.mkdir(parents=True)
    windows = {"train": [("u", "a b", "c"), ("u", "a b c", "d")], "valid": [("v", "a", "b")], "test": [("w", "b", "a")]}
    for split, rows in windows.items():
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token", *("\t".join(row) for row in rows)]
        (folder / f"win.{split}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys = {**SMALL, "protocol": "windows", "data_path": str(tmp_path / "data")}
    found = data_statistics(prepare_data(RunConfig("Popularity", "win", config_dict=keys)))
    assert (found.users, found.items, found.interactions) == (3, 4, 8)  # u: a b c d, v: a b, w: b a
    assert found.rows == {"train": 2, "valid": 1, "test": 1}


def test_the_data_card_tells_them(four: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inter = tmp_path / "data" / "four" / "four.inter"
    again = f"u1\ta\t{86400 * 20000}\n"  # a line twice
    inter.write_text(inter.read_text(encoding="utf-8") + again, encoding="utf-8")
    words = ["card", "--dataset=four", "--output=CARD.md", "--license=mit", f"--data_path={four['data_path']}"]
    words += ["--protocol=leave_one_out", "--candidate_num=2", "--topk=[1]", "--use_gpu=False"]
    assert main(words) == 0, capsys.readouterr().err
    card = DatasetCard.load(tmp_path / "CARD.md")
    assert card.data.license == "mit" and card.data.pretty_name == "four" and card.data.size_categories == "n<1K"
    for line in (
        "| users | 4 |",
        "| items with interactions | 6 |",
        "| lines in the files | 17 |",
        "| lines that repeat a user's item | 1 (5.88%) |",
        "| lines that repeat user, item and time | 1 |",
        "| lines that share user and time with another | 2 (11.76%): their order is that of the file |",
        "| times | 2024-10-04 to 2024-10-07 |",  # 20,000 days after 1970 and three more
        "| items with a title | 4 of 6 (66.67%) |",
    ):
        assert line in card.text, card.text
    assert "| titles that several items share | 1, of 2 items;" in card.text
    assert "the person who made this card says" in card.text and str(tmp_path) not in card.text
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_card_without_titles_or_licence_says_so(
    four: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(tmp_path / "data" / "four" / "four.item", tmp_path / "away")
    words = ["card", "--dataset=four", *(f"--{key}={value}" for key, value in four.items())]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "titles | none: title_field is not set" in told and "**To be filled in**" in told and "license:" not in told[:200]
    assert main(["card", "--dataset=nowhere"]) == 2 and "nowhere.inter" in capsys.readouterr().err
    assert main([*words, "--epochs=0"]) == 2 and "--epochs: found 0" in capsys.readouterr().err
