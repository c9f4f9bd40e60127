"""Studies as they are written: shipped ones are configurations, mistakes are named, arguments change what they should."""

from pathlib import Path

import pytest

from recbole_llara.config.yaml_files import property_files
from recbole_llara.experiments.study_arms import arms_of
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.experiments.study_runs import StudyRuns
from recbole_llara.utils.errors import UserError


@pytest.mark.parametrize("name", property_files("study"))
def test_every_system_of_a_shipped_study_is_a_configuration(name, tmp_path, monkeypatch):
    """The keys of each are known and fit together, and what the papers report stands under names that the study has."""
    monkeypatch.chdir(tmp_path)
    study = load_study(name)
    StudyRuns(study)
    assert study.settings["protocol"] == ("cold_items" if name.startswith("cold_items") else "leave_one_out")
    assert study.datasets == ("ml-100k",)
    for column in study.published:
        for values in [*column.hit.values(), *column.valid.values(), column.llms]:
            assert set(values) <= set(study.systems)


def test_the_later_run_of_llaras_authors_stands_beside_the_papers_column():
    """A row for each recommender and dataset that the paper has too, under another column."""
    paper, later = load_study("main_results").published
    assert (paper.name, later.name) == ("published", "authors' later run") and paper.decoding == later.decoding == "generate"
    assert later.hit.keys() == paper.hit.keys()
    for dataset, values in later.hit.items():
        assert list(values) == [name for name in paper.hit[dataset] if name.startswith("LLaRA")]


def test_the_papers_six_studies_are_there():
    papers = {"main_results", "item_representation", "learning_strategy", "rsllm_ablation", "efficiency", "case_study"}
    assert papers <= property_files("study").keys()


def test_studies_of_one_budget_share_their_systems(tmp_path, monkeypatch):
    """What efficiency and case_study need is what main_results ran."""
    monkeypatch.chdir(tmp_path)
    main = StudyRuns(load_study("main_results"))
    done = set(main.places.values())
    for name in ("efficiency", "case_study"):
        other = StudyRuns(load_study(name))
        assert set(other.places.values()) <= done


def test_arguments():
    study = load_study("main_results").with_arguments(
        {"dataset": "ml-100k,toy", "seeds": [1, 2], "candidate_seeds": 7, "epochs": 3, "data_path": "there"}
    )
    assert (study.datasets, study.seeds, study.candidate_seeds) == (("ml-100k", "toy"), (1, 2), (7,))
    assert study.settings["epochs"] == 3 and "dataset" not in study.settings
    assert study.folder == Path("saved/studies/main_results-ml-100k-toy-leave_one_out")
    assert load_study("quickstart").with_arguments({"seed": 5}).seeds == (5,)
    for value in ("1,1", "x", "1.5", ""):
        with pytest.raises(UserError, match="seeds: found .* expected different whole numbers"):
            study.with_arguments({"seeds": value})


def test_the_questions_are_those_of_the_candidate_seed_or_the_first_seed():
    study = load_study("quickstart").with_arguments({"seeds": "3,4"})
    assert study.candidate_seed == 3 and study.with_arguments({"candidate_seed": 0}).candidate_seed == 0


def test_a_further_draw_trains_nothing_and_only_the_first_seed_has_some():
    arms = arms_of(load_study("quickstart").with_arguments({"seeds": "1,2", "candidate_seeds": "1,7"}))
    assert len(arms) == 4 * 2 + 4  # 1 is the study's own draw
    assert {(arm.seed, arm.candidate_seed) for arm in arms if arm.is_draw} == {(1, 7)}
    assert {arm.candidate_seed for arm in arms if not arm.is_draw} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("systems: [SASRec]", "systems: Input should be a valid dictionary"),
        ("systems: {}", "systems: .* at least 1 item"),
        ("systems: {A: {seed: 1}}", "the key model among them"),
        ("systems: {A: {evaluates: B}, B: {model: LLaRA}}", "evaluates 'B', expected a system above it"),
        ("systems: {A: {model: Popularity}}\ncompare: [[A, B]]", "compare: found 'B', expected one of A"),
        ("systems: {A: {model: Popularity}}\ncompare: [[A]]", "compare.0"),
        ("systems: {A: {model: Popularity}}\nradars: {all: A}", "radars.all"),
        ("systems: {A: {model: Popularity}}\nbaselines: [B]", "baselines: found 'B', expected one of A"),
        ("systems: {A: {model: Popularity}}\nradars: {all: [B]}", "radars: found 'B'"),
        ("systems: {A: {model: Popularity}}\nfigures: [pie]", "figures: found 'pie', expected one of bars"),
        ("systems: {A: {model: Popularity}}\nsistems: 1", "did you mean 'systems'"),
        ("systems: {A: {model: Popularity}}\npublished: [{sauce: 1}]", "published.0.s"),
        (
            "systems: {A: {model: Popularity}}\npublished: [{source: a, protocol: b, llm: c, hit: {}}, "
            "{source: d, protocol: b, llm: c, hit: {}}]",
            "published has columns named published, published, expected a different name for each",
        ),
        (
            "candidate_seeds: [7]\nsettings: {protocol: cold_items}\nsystems: {A: {model: Popularity}}",
            r"candidate_seeds: found \[7\] with protocol cold_items",
        ),
        ("systems: {A: {model: Popularity}}\ncases: [{title: x, right: [A], wrong: [C]}]", "cases: found 'C'"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, content, message):
    own = tmp_path / "own.yaml"
    own.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_study(str(own))


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_study("quikstart")
    assert "quickstart" in property_files("study")
