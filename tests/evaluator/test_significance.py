import numpy as np
import pytest

from recbole_llara.evaluator.significance import holm, mcnemar, paired_t, wilson_interval


def test_wilson_interval_equals_a_hand_computation():
    # p = .8, n = 10, z = 1.959964: centre (.8 + z^2/20) / (1 + z^2/10) = .716740, half width .226577.
    interval = wilson_interval(8, 10)
    assert interval.share == 0.8
    assert interval.low == pytest.approx(0.716740 - 0.226577, abs=2e-6)
    assert interval.high == pytest.approx(0.716740 + 0.226577, abs=2e-6)


def test_wilson_interval_at_the_edges_stays_inside_zero_and_one():
    # 0 of 20: [0, z^2 / (20 + z^2)].
    assert wilson_interval(0, 20).low == 0.0
    assert wilson_interval(0, 20).high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    assert wilson_interval(20, 20).high == 1.0


def test_wilson_interval_narrows_with_rows():
    few, many = wilson_interval(40, 100), wilson_interval(400, 1000)
    assert few.low < many.low < 0.4 < many.high < few.high


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson_interval(successes, n)


def test_mcnemar_equals_a_hand_computation():
    # 5 both, 8 only A, 2 only B, 3 neither: 2 * (1 + 10 + 45) / 2^10.
    a = np.array([1] * 5 + [1] * 8 + [0] * 2 + [0] * 3, dtype=bool)
    b = np.array([1] * 5 + [0] * 8 + [1] * 2 + [0] * 3, dtype=bool)
    test = mcnemar(a, b)
    assert (test.both, test.only_a, test.only_b, test.neither) == (5, 8, 2, 3)
    assert test.p_value == pytest.approx(112 / 1024)
    assert mcnemar(b, a).p_value == test.p_value


def test_mcnemar_of_equal_systems_is_no_difference():
    a = np.array([True, False, True])
    assert mcnemar(a, a).p_value == 1.0


def test_mcnemar_refuses_unpaired_rows():
    with pytest.raises(ValueError, match="same rows"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_holm_equals_a_hand_computation():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_paired_t_equals_a_hand_computation():
    # Differences .1, .2, .3: mean .2, sd .1, t = .2 / (.1 / sqrt 3) = 3.4641 with 2 degrees of freedom.
    found = paired_t(np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.5, 0.6]))
    assert found.mean == pytest.approx(0.2) and found.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, abs=1e-6)


def test_paired_t_without_a_spread():
    assert paired_t(np.array([0.5]), np.array([0.4])) is None
    assert paired_t(np.array([0.5, 0.5]), np.array([0.5, 0.5])) is None
    assert paired_t(np.array([0.5, 0.5]), np.array([0.25, 0.25])) is None
    assert paired_t(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.6])) is None  # the three differ by their rounding
    assert paired_t(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.601])) is not None
    with pytest.raises(ValueError, match="same rows or seeds"):
        paired_t(np.array([]), np.array([]))
