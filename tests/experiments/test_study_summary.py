"""Statistics of studies: a planted null is no difference, a planted effect is one, the best baseline is chosen unseen."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from recbole_llara.experiments.study_arms import Arm, FailedArm
from recbole_llara.experiments.study_definition import Published
from recbole_llara.experiments.study_summary import summarise
from recbole_llara.utils.errors import UserError

N = 943


def answers(generator, share, seeds=1, n=N):
    return generator.random((seeds, n)) < share


def verdict(study, outcomes):
    (summary,) = summarise(study, outcomes)
    (comparison,) = summary.comparisons
    return comparison


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_planted_null_is_no_difference(make_study, outcomes_of, seeds):
    """Two identical arms with other seeds."""
    study = make_study(compare=(("A", "B"),), seeds=tuple(range(2020, 2020 + seeds)))
    generator = np.random.default_rng(0)
    found = verdict(study, outcomes_of({name: answers(generator, 0.48, seeds) for name in "AB"}))
    assert "no difference beyond the noise" in found["verdict"]


def test_planted_nulls_are_called_differences_as_rarely_as_promised(make_study, outcomes_of):
    """Of 60 identical pairs under test at once, Holm's correction leaves none; uncorrected a few would be left."""
    generator = np.random.default_rng(1)
    names = [f"S{number}" for number in range(61)]
    study = make_study(names, compare=tuple(("S0", name) for name in names[1:]))
    (summary,) = summarise(study, outcomes_of({name: answers(generator, 0.48) for name in names}))
    assert {comparison["verdict"] for comparison in summary.comparisons} == {"no difference beyond the noise"}
    assert any(comparison["mcnemar_p"] < 0.05 for comparison in summary.comparisons)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_planted_effect_is_a_difference(make_study, outcomes_of, seeds):
    study = make_study(compare=(("A", "B"),), seeds=tuple(range(2020, 2020 + seeds)))
    generator = np.random.default_rng(2)
    found = verdict(study, outcomes_of({"A": answers(generator, 0.55, seeds), "B": answers(generator, 0.42, seeds)}))
    # One seed says nothing of the systems themselves.
    assert found["verdict"] == ("these two models differ" if seeds == 1 else "a difference")
    assert found["difference"] == pytest.approx(0.13, abs=0.04)


def test_equal_differences_of_all_seeds_are_no_test_of_the_systems(make_study, outcomes_of):
    """Three seeds in which A has one row more than B, each time: the spread is unknown, not nought."""
    study = make_study(("A", "B", "C"), compare=(("A", "B"), ("A", "C")), seeds=(2020, 2021, 2022))
    b = np.array([[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    a = b.copy()
    a[:, 7] = 1
    c = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    (summary,) = summarise(study, outcomes_of({"A": a, "B": b, "C": c}))
    without, tested = summary.comparisons
    assert without["difference"] == pytest.approx(1 / 8) and not {"t_p", "t_holm"} & without.keys()
    assert without["verdict"] == "no difference beyond the noise"  # what one row of eight says
    assert tested["t_holm"] == tested["t_p"] and tested["rows_holm"] == tested["rows_p"]  # of families of one test
    means = a.mean(0) - c.mean(0)  # [rows]
    t = means.mean() / (means.std(ddof=1) / len(means) ** 0.5)
    assert tested["rows_p"] == pytest.approx(2 * student_t.sf(abs(t), len(means) - 1))


def test_a_difference_holds_over_seeds_and_over_rows(make_study, outcomes_of):
    """A has three or four rows of 943 more than B with every seed: steady over seeds, but not what other rows need show."""
    study = make_study(compare=(("A", "B"),), seeds=(2020, 2021, 2022))
    b = np.tile(np.arange(N) < 450, (3, 1))
    a = b.copy()
    a[:, 460:463] = True
    a[0, 463] = True
    found = verdict(study, outcomes_of({"A": a, "B": b}))
    assert found["t_p"] < 0.05 < found["rows_p"] and found["verdict"] == "no difference beyond the noise"


def test_numbers_by_hand(make_study, outcomes_of, make_entry):
    study = make_study(seeds=(2020, 2021), candidate_seeds=(7,))
    a = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    outcomes = outcomes_of({"A": a, "B": np.array([[1, 0, 0, 0], [1, 0, 0, 0]])})
    outcomes[Arm("A", "ml-100k", 2020, 7, True)] = make_entry([1, 0, 0, 0], candidates="other")
    (summary,) = summarise(study, outcomes)
    system = summary.systems.loc["A"]
    assert system["HitRatio@1"] == 0.625 and system["spread"] == pytest.approx(0.125 * 2**0.5)  # .5 and .75
    assert system["draw_spread"] == pytest.approx(0.125 * 2**0.5)  # .5 and .25
    assert summary.n == 4 and summary.comparisons == []


def test_the_best_baseline_is_chosen_on_the_validation_rows(make_study, outcomes_of):
    study = make_study(("A", "B", "C"), baselines=("A", "B"))
    outcomes = outcomes_of({"A": [[1, 1, 1, 1]]}, valid_hit=0.2)  # the better on the test rows
    outcomes |= outcomes_of({"B": [[0, 0, 0, 1]]}, valid_hit=0.4) | outcomes_of({"C": [[0, 1, 0, 1]]})
    (summary,) = summarise(study, outcomes)
    assert summary.best_baseline == "B"
    assert [(c["one"], c["other"]) for c in summary.comparisons] == [("C", "B")]


def test_a_failed_system_is_told_and_left_out(make_study, outcomes_of):
    study = make_study(compare=(("A", "B"),))
    outcomes = {**outcomes_of({"A": [[1, 0]]}), Arm("B", "ml-100k", 2020, 2020): FailedArm("RuntimeError: broken")}
    (summary,) = summarise(study, outcomes)
    assert list(summary.systems.index) == ["A"]
    assert "broken" in summary.failures["B"] and summary.comparisons == []


def test_other_questions_are_refused(make_study, outcomes_of):
    outcomes = outcomes_of({"A": [[1, 0]]}) | outcomes_of({"B": [[1, 0]]}, candidates="other")
    with pytest.raises(UserError, match="did not answer the same questions"):
        summarise(make_study(), outcomes)


def test_how_a_papers_setting_differs(make_study, outcomes_of):
    column = Published("a table", "llara", "Llama-2-7B", {"ml-100k": {"A": 0.4}})
    study = make_study(published=(column,))
    (summary,) = summarise(study, outcomes_of({"A": [[1, 0]], "B": [[1, 0]]}))
    (reported,) = summary.published["published"].values()  # of A alone
    assert reported["hit"] == 0.4
    assert reported["differences"] == [
        "protocol llara there, leave_one_out here",
        "Llama-2-7B there, tiny here",
        "decoding generate there, score here, by which every answer is valid",
    ]


@pytest.mark.parametrize(
    ("decoding", "differs"), [("generate", False), ("chat", False), ("score", True), ("constrained", True), (None, False)]
)
def test_the_decoding_is_part_of_the_setting(make_study, outcomes_of, decoding, differs):
    """A recommender has none, a chat model is as free as an LLM that generates."""
    study = make_study(published=(Published("a table", "llara", "Llama-2-7B", {"ml-100k": {"A": 0.4}}),))
    same = {"llm": "/models/Llama-2-7b", "protocol": "llara", "decoding": decoding}
    differences = summarise(study, outcomes_of({"A": [[1, 0]]}, **same))[0].published["published"]["A"]["differences"]
    assert [f"decoding generate there, {decoding} here" in text for text in differences] == [True] * differs
