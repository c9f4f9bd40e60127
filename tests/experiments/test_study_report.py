"""What a study writes: tables with every number, figures that are there, a page that holds any title and needs no network."""

import csv
import json
import math
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from recbole_llara.experiments.report import write_pngs
from recbole_llara.experiments.study_arms import Arm, FailedArm
from recbole_llara.experiments.study_definition import CasePattern, Published
from recbole_llara.experiments.study_report import comparisons_table, draw, latex, popularity_table, write_study_report
from recbole_llara.experiments.study_summary import find_cases, summarise
from recbole_llara.serving.full_rank import FullRanks, full_rank_records, full_rank_result

ANSWERS = {"A": np.array([[1, 1, 0, 0]] * 3), "B & C_1": np.array([[0, 1, 0, 0]] * 3)}


@pytest.fixture
def study(make_study):
    column = Published("a table", "llara", "Llama-2-7B", {"ml-100k": {"A": 0.4}}, {"ml-100k": {"A": 0.9}})
    later = Published("a page", "llara", "Llama-2-7B", {"ml-100k": {"A": 0.3}}, name="a later run")
    return make_study(
        ("A", "B & C_1"),
        seeds=(1, 2, 3),
        compare=(("A", "B & C_1"),),
        figures=("bars", "validity", "curves", "radar", "cases"),
        radars={"all": ["A", "B & C_1"]},
        published=(column, later),
        cases=(CasePattern("Only <A>", ("A",), ("B & C_1",)),),
    )


def read_csv(study, name):
    return list(csv.DictReader((study.folder / name).read_text(encoding="utf-8").splitlines()))


@pytest.mark.usefixtures("no_pngs")
def test_tables_hold_what_was_measured(study, outcomes_of):
    text = write_study_report(study, outcomes_of(ANSWERS))
    row = next(line for line in text.splitlines() if line.startswith("| A "))
    assert [cell.strip() for cell in row.split("|")][2:4] == ["0.5000", "0.0000"] and "0.4000 (valid 0.9000) [a] [b] [c]" in row
    assert row.rstrip(" |").endswith("0.3000 [a] [b] [c]") and "a later run" in text.splitlines()[4]
    assert "Of the papers, published: a table; a later run: a page. " in text
    other = next(line for line in text.splitlines() if line.startswith("| B & C_1 "))
    assert [cell.strip() for cell in other.split("|")][-3:-1] == ["—", "—"]
    assert "[a] protocol llara there, leave_one_out here." in text and "A against B & C_1" in text
    rows = read_csv(study, "runs.csv")
    assert len(rows) == 6 and rows[0]["system"] == "A" and float(rows[0]["test_hit@1"]) == 0.5
    (comparison,) = read_csv(study, "comparisons.csv")
    assert float(comparison["difference"]) == 0.25 and comparison["only_one"] == "1"


@pytest.mark.usefixtures("no_pngs")
def test_what_a_study_can_and_cannot_say_stands_last(make_study, outcomes_of):
    study = make_study(("A", "B & C_1"), notes=("It can say <this>.", "It cannot say that."))
    write_study_report(study, outcomes_of(ANSWERS))
    report = (study.folder / "report.md").read_text(encoding="utf-8")
    assert report.endswith("## What this says\n\n- It can say <this>.\n- It cannot say that.\n")
    assert "<li>It can say &lt;this&gt;.</li>" in (study.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_pngs")
def test_calibration_is_told_where_it_was_measured(study, outcomes_of):
    outcomes = outcomes_of(ANSWERS)
    assert "NLL" not in write_study_report(study, outcomes)
    for arm, outcome in outcomes.items():
        outcome.result.update({"nll": arm.seed / 1000, "ece": 0.125} if arm.system == "A" else {"nll": None, "ece": None})
    text = write_study_report(study, outcomes)
    header = next(line for line in text.splitlines() if line.startswith("| System"))
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    cells = {line[1].strip(): line for line in reversed(lines)}  # the first table has the last word
    place = [cell.strip() for cell in header.split("|")].index("NLL")
    assert [cell.strip() for cell in cells["A"][place : place + 2]] == ["2.0210", "0.1250"]
    assert cells["B & C_1"][place].strip() == "—" and "mean negative log-likelihood of the target" in text
    assert read_csv(study, "runs.csv")[0]["ece"] == "0.125"


def test_a_comparison_without_a_test_over_seeds_fills_its_columns(make_study, outcomes_of):
    """Beside one that has it: A is always one row ahead of B, and not always as far from C."""
    answers = {"A": [[1, 1, 0]] * 3, "B": [[0, 1, 0]] * 3, "C": [[0, 0, 0], [1, 0, 0], [0, 1, 1]]}
    study = make_study(("A", "B", "C"), seeds=(1, 2, 3), compare=(("A", "B"), ("A", "C")))
    (summary,) = summarise(study, outcomes_of(answers))
    table = comparisons_table(summary)
    first, second = table["t-test over seeds p"]
    assert first == "—" and float(second) > 0.05 and table.notna().all(axis=None)


def test_latex_has_a_line_a_system_and_no_bare_specials(study, outcomes_of):
    text = latex(study, summarise(study, outcomes_of(ANSWERS)))
    assert r"B \& C\_1 & 1.0000 & 0.2500 $\pm$ 0.0000 \\" in text and r"\textbf{0.5000}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {2}


@pytest.mark.usefixtures("no_pngs")
def test_a_failure_is_in_every_table(study, outcomes_of):
    failed = Arm("B & C_1", "ml-100k", 2020, 2020)
    outcomes = {**outcomes_of({"A": ANSWERS["A"]}), failed: FailedArm("RuntimeError: broken")}
    text = write_study_report(study, outcomes)
    assert "FAILED: B & C_1 on ml-100k, seed 2020: RuntimeError: broken" in text
    assert read_csv(study, "runs.csv")[-1]["failure"] == "RuntimeError: broken"
    assert r"B \& C\_1 & -- & -- \\" in latex(study, summarise(study, outcomes))


def test_rows_by_how_many_users_took_the_target(make_study, outcomes_of):
    (summary,) = summarise(make_study(("A", "B & C_1"), seeds=(1, 2, 3)), outcomes_of(ANSWERS))
    table = popularity_table(summary)  # targets of 0, 10, 20 and 30 users
    assert list(table.columns) == ["System", "0 to 5 users (n = 1)", "6 to 20 users (n = 2)", "21 or more users (n = 1)"]
    assert [cell[:5] for cell in table.iloc[0, 1:]] == ["1.000", "0.500", "0.000"]
    assert [cell[:5] for cell in table.iloc[1, 1:]] == ["0.000", "0.500", "0.000"]


@pytest.mark.usefixtures("no_pngs")
def test_what_re_ranking_gains_is_told(make_study, outcomes_of):
    """Means over two seeds; a row counts by its mean over them."""
    outcomes = outcomes_of({name: of_seeds[:2] for name, of_seeds in ANSWERS.items()})
    before = np.array([3, 12, 0, 1, 20])
    for seed, after in ((2020, np.array([1, 5, 0, 2, 20])), (2021, np.array([1, 5, 0, 2, 7]))):
        arm = outcomes[Arm("A", "ml-100k", seed, 2020)]
        ranks = FullRanks(np.arange(5), np.arange(1, 6), before, after, 20)
        arm.result["full_rank"] = full_rank_result(ranks, [1, 10])
        lines = [json.dumps(record) for record in reversed(full_rank_records(ranks, "?abcde"))]
        (Path(arm.paths["run_dir"]) / "full_rank.jsonl").write_text("\n".join(lines), encoding="utf-8")
    study = make_study(("A", "B & C_1"), seeds=(2020, 2021))
    text = write_study_report(study, outcomes)
    (row,) = [line for line in text.splitlines() if line.startswith("| A ") and "+0.3000" in line]
    cells = [cell.strip() for cell in row.split("|")][2:-1]
    by_rows = ttest_1samp([0, 1, 0, 0, 0.5], 0).confidence_interval()
    assert cells[:3] == ["0.8000", "0.4000", "0.7000"]
    assert cells[3] == f"+0.3000 ({by_rows.low:+.4f} to {by_rows.high:+.4f})"
    assert cells[4] == f"{(1 / np.log2(4) + 1) / 5:.4f}" and "NDCG@10 gained (95 %)" in text
    record = json.loads((study.folder / "study.json").read_text(encoding="utf-8"))["datasets"]["ml-100k"]["systems"]
    assert record["A"]["gains"]["hit@10"]["mean"] == pytest.approx(0.3) and "gains" not in record["B & C_1"]


def test_figures_show_every_system_and_leave_out_what_is_empty(study, outcomes_of):
    figures = draw(study, summarise(study, outcomes_of(ANSWERS)))
    assert set(figures) == {"bars-ml-100k", "validity-ml-100k", "radar-all"}  # nothing was trained: no curves
    assert list(figures["bars-ml-100k"].data[0].x) == [0.5, 0.25]
    assert [trace.name for trace in figures["radar-all"].data] == ["A", "B & C_1"]


def test_curves_are_the_first_seeds_log(study, outcomes_of):
    outcomes = outcomes_of(ANSWERS)
    folder = outcomes[Arm("A", "ml-100k", 2020, 2020)].paths["run_dir"]
    lines = ['{"step": 0, "loss": 4.0, "hard_probability": 0.0}', '{"step": 1, "loss": 2.0, "hard_probability": 0.5}']
    with open(f"{folder}/training.jsonl", "w") as file:
        file.write("\n".join([*lines, '{"step": 2, "valid": {"hit@1": 0.3}}']))
    loss, valid, hard = draw(study, summarise(study, outcomes))["curves-ml-100k"].data
    assert list(loss.y) == [4.0, 3.0] and list(valid.y) == [0.3] and list(hard.y) == [0.0, 0.5]


def test_reliability_shows_systems_that_rank(make_study, make_entry):
    study = make_study(figures=("reliability",))
    scores = [math.log(0.8), math.log(0.1), math.log(0.1)]
    entries = {"A": make_entry(ANSWERS["A"][0], scores=scores), "B": make_entry(ANSWERS["A"][0])}
    outcomes = {Arm(name, "ml-100k", 2020, 2020): entry for name, entry in entries.items()}
    own, diagonal = draw(study, summarise(study, outcomes))["reliability-ml-100k"].data
    assert own.name == "A" and list(own.x) == [pytest.approx(0.8)] and list(own.y) == [0.5] and diagonal.name == "calibrated"
    outcomes = {Arm("B", "ml-100k", 2020, 2020): entries["B"]}
    assert draw(study, summarise(study, outcomes)) == {}  # nothing that ranks


def test_cases_are_rows_of_the_pattern(study, outcomes_of):
    (summary,) = summarise(study, outcomes_of(ANSWERS))
    found = find_cases(summary, study.cases[0])
    (shown,) = found["shown"]
    assert found["count"] == 1 and found["n"] == 4 and shown["question"]["row"] == 0
    told = {name: (answer["answer_title"], answer["correct"]) for name, answer in shown["answers"].items()}
    assert told == {"A": ("Title 0", True), "B & C_1": ("Title 1", False)}
    assert find_cases(summary, CasePattern("", ("A",), ("gone",))) is None


@pytest.mark.usefixtures("no_pngs")
def test_the_page_escapes_titles_and_needs_no_network(study, outcomes_of):
    nasty = "</td><script>alert(1)</script>"
    write_study_report(study, outcomes_of(ANSWERS, title=nasty))
    text = (study.folder / "report.html").read_text(encoding="utf-8")
    assert nasty not in text and "&lt;script&gt;alert(1)" in text
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", text)
    assert "Only &lt;A&gt;" in text and "A right; B &amp; C_1 wrong: 1 of 4 rows." in text
    assert text.count('<li class="target">') == 1 and text.count('<tr class="right">') == text.count('<tr class="wrong">') == 1
    assert "Made &lt;by hand&gt;" in text and text.count("<figure ") == 3


def test_a_report_is_written_whole(study, outcomes_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recbole_llara.experiments.report.write_pngs", lambda figures, folder: "no PNG files: none")
    text = write_study_report(study, outcomes_of(ANSWERS))
    assert "no PNG files: none" in text
    files = {"report.md", "report.html", "table.tex", "runs.csv", "comparisons.csv", "study.json"}
    assert {path.name for path in study.folder.iterdir()} == files


def test_without_a_browser_the_missing_pictures_are_told(study, outcomes_of, tmp_path, monkeypatch):
    def no_kaleido(*arguments, **keys):
        raise ValueError("needs Kaleido")

    monkeypatch.setattr("plotly.io.write_images", no_kaleido)
    assert "pip install kaleido" in write_pngs(draw(study, summarise(study, outcomes_of(ANSWERS))), tmp_path)


@pytest.mark.skipif(
    find_spec("kaleido") is None or not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))),
    reason="PNG files need kaleido and a browser",
)
def test_pictures_are_drawn(study, outcomes_of, tmp_path):
    assert write_pngs(draw(study, summarise(study, outcomes_of(ANSWERS))), tmp_path) is None
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 3 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
