"""The numbers of the pages are those of the stored result files, and those follow from the rows that were answered correctly."""

import json
from dataclasses import replace
from pathlib import Path

import make
import numpy as np
import pytest
import writers
from runs import load_runs, stored, study_of
from scipy.stats import binomtest

from recbole_llara.experiments.study_record import compared, pack, unpack

ROOT = Path(__file__).resolve().parent.parent
RUNS, STORED = load_runs(), stored()
CALLS = [
    (page, found["call"]) for page in make.PAGES for found in make.WRITTEN.finditer((ROOT / page).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_a_study_that_can_be_started(name):
    assert study_of(RUNS[name]).systems and RUNS[name]["budget"]


def test_every_stored_file_is_of_a_run():
    assert {path.stem for path in (ROOT / "docs" / "results" / "measured").glob("*.json")} == set(STORED)


@pytest.mark.parametrize("page", make.PAGES)
def test_pages_tell_what_is_stored(page):
    """``make results RUNS=...``, or ``python docs/results/make.py --write``, makes it so."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert make.written(text, STORED) == text


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_follows_from_the_rows(name):
    """Shares from the rows, McNemar's p from scipy's binomial test; systems and seeds are those of the study."""
    record, study = STORED[name], study_of(RUNS[name])
    assert (record["study"], tuple(record["seeds"]), record["candidate_seed"]) == (
        study.name,
        study.seeds,
        study.candidate_seed,
    )
    assert tuple(record["datasets"]) == study.datasets
    for of_dataset in record["datasets"].values():
        n = of_dataset["n"]
        assert len(of_dataset["target_users"]) == n and set(of_dataset["systems"]) | set(of_dataset["failures"]) == set(
            study.systems
        )
        right = {}
        for system, told in of_dataset["systems"].items():
            right[system] = np.array([unpack(seed["correct"], n) for seed in told["seeds"]])  # [seeds, n]
            assert len(right[system]) == len(study.seeds)
            hits = [seed["metrics"]["test"]["hit@1"] for seed in told["seeds"]]
            assert right[system].mean(1) == pytest.approx(hits, abs=5e-5)
            for metric, gain in told.get("gains", {}).items():
                of_seeds = [seed["full_rank"]["gain"][metric]["mean"] for seed in told["seeds"]]
                assert gain["mean"] == pytest.approx(np.mean(of_seeds))
        for row in of_dataset["comparisons"]:
            one, other = right[row["one"]][0], right[row["other"]][0]
            counts = int((one & ~other).sum()), int((other & ~one).sum())
            assert (row["only_one"], row["only_other"]) == counts
            expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
            assert row["mcnemar_p"] == pytest.approx(expected)


def _record(seeds, **systems):
    """A stored run by hand: system -> [seeds, n] rows."""
    n = len(next(iter(systems.values()))[0])
    test = {"hit@5": 0.75, "ndcg@10": 0.5, "validratio": 1.0}
    told = {
        name: {
            "seeds": [
                {"correct": pack(np.array(rows, dtype=bool)), "metrics": {"test": test}, "nll": 1.5, "ece": 0.05} for rows in of
            ]
        }
        for name, of in systems.items()
    }
    comparison = {
        "one": "A",
        "other": "B",
        "difference": 0.25,
        "only_one": 1,
        "only_other": 0,
        "mcnemar_p": 1.0,
        "mcnemar_holm": 0.04,
    }
    of_dataset = {"n": n, "target_users": [0, 5, 6, 30], "systems": told, "comparisons": [comparison]}
    return {"seeds": seeds, "datasets": {"ml-100k": of_dataset}, "commit": "abc"}


BY_HAND = {"quickstart": _record([1, 2], A=[[1, 0, 1, 0], [1, 1, 1, 0]], B=[[1, 0, 0, 0], [1, 0, 0, 0]])}


def test_tables_are_written_between_their_marks():
    text = 'x <!-- = hit("quickstart", "A") -->old<!-- / --> y <!-- = hits("quickstart", "B") --><!-- / -->'
    told = make.written(text, BY_HAND)
    assert (
        told
        == 'x <!-- = hit("quickstart", "A") -->.6250 [.150, .850]<!-- / --> y <!-- = hits("quickstart", "B") -->.2500<!-- / -->'
    )
    assert make.written(told, BY_HAND) == told
    assert writers.valid(BY_HAND, "quickstart", "A") == "1"
    block = '<!-- = seeds("quickstart", ["A", "B"]) -->\n\nold\n\n<!-- / -->'
    rows = make.written(block, BY_HAND).splitlines()
    assert rows[2:6] == [
        "| system | seed 1 | seed 2 | mean |",
        "| --- | --- | --- | --- |",
        "| A | .5000 | .7500 | .6250 |",
        "| B | .2500 | .2500 | .2500 |",
    ]
    assert (
        make.written('<!-- = p("quickstart", "A", "B") -->?<!-- / -->', BY_HAND)
        == '<!-- = p("quickstart", "A", "B") -->.04<!-- / -->'
    )


def test_a_p_value_is_the_greater_of_those_over_seeds_and_over_rows():
    record = _record([1, 2, 3], A=[[1, 0]] * 3, B=[[0, 0]] * 3)
    (comparison,) = record["datasets"]["ml-100k"]["comparisons"]
    comparison |= {"t_p": 0.001, "t_holm": 0.01, "low": -0.1, "high": 0.6, "rows_p": 0.002, "rows_holm": 0.02}
    assert writers.p({"quickstart": record}, "quickstart", "A", "B") == ".02"
    cells = writers.differences({"quickstart": record}, "quickstart", [["A", "B"]]).splitlines()[-1].strip("|").split("|")
    assert [cell.strip() for cell in cells][3:] == ["1", ".04", "-.1000 to +.6000", ".001", ".01", ".002", ".02"]


def test_a_pair_is_told_by_its_rows_and_its_corrected_p():
    record = _record([1], A=[[1, 0]], B=[[0, 0]])
    (comparison,) = record["datasets"]["ml-100k"]["comparisons"]
    for corrected, told in ((0.04, ".04"), (0.0012345, ".0012"), (1.04e-50, "1e-50"), (4.4e-4, "4e-4"), (1.0, "1")):
        comparison["mcnemar_holm"] = corrected
        assert writers.paired({"quickstart": record}, "quickstart", "A", "B") == f"1 / 0, p = {told}"
        assert writers.paired({"quickstart": record}, "quickstart", "B", "A") == f"0 / 1, p = {told}"


def test_cases_are_counted_by_the_patterns_of_the_study():
    rows = {"SASRec": [[1, 0, 0, 1, 0]], "TALLRec": [[1, 1, 0, 0, 0]], "LLaRA(SASRec)": [[0, 1, 1, 1, 1]]}
    _, _, *lines = writers.cases({"case_study": _record([1], **rows)}, "case_study").splitlines()
    assert [line.split(" | ")[-1] for line in lines] == ["1 |", "1 |", "2 |", "1 |"]
    assert lines[2] == "| Where only the hybrid prompt is right | LLaRA(SASRec) | SASRec, TALLRec | 2 |"


def test_what_re_ranking_gains():
    record = _record([1, 2], A=[[1, 0]] * 2, B=[[0, 0]] * 2)
    system = record["datasets"]["ml-100k"]["systems"]["A"]
    for seed, share in zip(system["seeds"], (0.25, 0.35), strict=True):
        places = {"hit@10": {"share": share}, "ndcg@10": {"share": share / 2}}
        seed["full_rank"] = {"target_proposed": {"share": 0.5}, "retriever": places, "reranker": places}
    system["gains"] = {"hit@10": {"mean": 0.01, "low": -0.02, "high": 0.04}, "ndcg@10": {"mean": 0, "low": None, "high": None}}
    (row,) = writers.re_ranked({"quickstart": record}, "quickstart").splitlines()[2:]
    assert row == "| A | .500 | .3000 to .3000 | +.0100 [-.0200, +.0400] | .1500 to .1500 | +.0000 |"


def test_what_an_oracle_could_add():
    rows = {"A": [[1, 0, 0, 0], [1, 0, 0, 0]], "B": [[0, 1, 1, 0], [0, 1, 0, 0]], "A + B": [[1, 1, 0, 0], [1, 0, 0, 0]]}
    (row,) = writers.oracle({"quickstart": _record([1, 2], **rows)}, "quickstart", "A", {"A + B": ["B"]}).splitlines()[2:]
    assert row == "| A + B | .3750 | .6250 | 33 % |"  # the base has .25


def test_draws_are_tested_over_the_rows_of_all():
    records = {"cold_items-lastfm": _record([1], A=[[1] * 6 + [0]], B=[[0] * 6 + [1]])}
    records["cold_items-lastfm-2021"] = _record([1], A=[[1, 1, 0, 0]], B=[[0, 1, 0, 0]])
    runs = {"2020": "cold_items-lastfm", "2021": "cold_items-lastfm-2021"}
    header, _, *rows = writers.draws(records, runs, [["A", "B"], ["B", "B"]]).splitlines()
    assert header == "| compared | 2020 | 2021 | difference, n = 11 | only the first / only the second | p | p (Holm) |"
    assert rows[0] == "| A against B | .1429 to .8571 | .2500 to .5000 | +.5455 | 7 / 1 | .07 | .14 |"  # 2 * (1 + 8) / 2**8
    assert rows[1].endswith("| +.0000 | 0 / 0 | 1 | 1 |")


def test_tables_by_popularity_and_of_papers():
    rows = writers.popularity(BY_HAND, "quickstart", ["A"]).splitlines()
    assert rows[0] == "| system | 0 to 5 users, n = 2 | 6 to 20 users, n = 1 | 21 or more, n = 1 |"
    assert [cell.strip().split(" ")[0] for cell in rows[2].strip("|").split("|")] == ["A", ".7500", "1", ".0000"]
    records = {"main_results": _record([1], LLaRA=[[1, 0, 1, 0]], TALLRec=[[0, 0, 0, 0]])}
    rows = writers.beside(records, {"here": "main_results"}, {"paper": ("main_results", 0, "ml-100k")}).splitlines()
    assert rows[-1] == "| TALLRec | .0000 [.000, .490] | .3895 (.9263) |"


def test_a_record_of_another_study_is_measured_again():
    study = study_of({"study": "quickstart", "arguments": ["--seeds=1,2"]})
    datasets = {"ml-100k": {"systems": dict.fromkeys(study.systems), "failures": {}}}
    record = {"seeds": [1, 2], **compared(study), "datasets": datasets}
    assert make.is_whole(record, study) and not make.is_whole(None, study)
    assert not make.is_whole({**record, "seeds": [1]}, study)
    other = study_of({"study": "quickstart", "arguments": ["--seeds=1,2", "--max_train_rows=7"]})
    assert not make.is_whole(record, other)
    assert not make.is_whole(record, replace(study, systems={**study.systems, "SASRec": {"model": "SASRec", "seed": 7}}))
    elsewhere = ["--seeds=1,2", "--checkpoint_dir=elsewhere", "--show_progress=False"]
    assert make.is_whole(record, study_of({"study": "quickstart", "arguments": elsewhere}))
    systems = dict.fromkeys(list(study.systems)[1:])
    assert not make.is_whole({**record, "datasets": {"ml-100k": {"systems": systems, "failures": {}}}}, study)


def test_what_was_not_measured_stays():
    text = '<!-- = hit("ahead", "SASRec") -->.526<!-- / -->'
    assert make.written(text, BY_HAND) == text
    with pytest.raises(ValueError, match="expected one of runs.yaml"):
        make.written('<!-- = hit("ahed", "SASRec") -->.526<!-- / -->', BY_HAND)


@pytest.mark.parametrize(("page", "call"), CALLS)
def test_calls_in_the_pages_name_runs_and_writers(page, call):
    assert call.partition("(")[0] in {function.__name__ for function in writers.WRITERS}
    make.written(f"<!-- = {call} -->?<!-- / -->", {})


@pytest.mark.parametrize("name", STORED)
def test_stored_files_are_of_the_studies_as_they_are(name):
    """Who changes a study measures it again, else the pages tell numbers of settings that no command has."""
    assert make.is_whole(STORED[name], study_of(RUNS[name]))


def test_stored_files_name_no_place():
    for name, record in STORED.items():
        text = json.dumps(record)
        assert not any(place in text for place in ("/home", "/root", "/tmp", "/work")), name
