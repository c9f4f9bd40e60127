"""Counted random numbers: the published SplitMix64, and independence of what a stream's name says."""

import numpy as np
import pytest

from recbole_llara.utils.hashing import mix, numbers, row_keys, sample_rows


def test_numbers_are_splitmix64():
    # The first outputs of Vigna's splitmix64.c from state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert numbers(np.array([1234567], dtype=np.uint64), np.arange(5)).tolist() == expected


def finalised(state):
    """SplitMix64's finaliser of one number, by Python's own integers."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_keys_are_mixed_as_published():
    states = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2**40, 12345]  # with the sign bit of int64 and without
    assert mix(np.array(states, dtype=np.uint64)).tolist() == [finalised(state) for state in states]


def test_streams_differ_by_seed_purpose_epoch_and_row():
    rows = np.arange(100)
    keys = [row_keys(*name, rows) for name in ((0, "train", 0), (1, "train", 0), (0, "valid", 0), (0, "train", 1))]
    assert len(np.unique(np.concatenate(keys))) == 400


def test_a_row_has_the_same_key_alone_and_among_others():
    assert row_keys(3, "test", 2, np.array([41])) == row_keys(3, "test", 2, np.arange(100))[41]


@pytest.mark.parametrize("limit", [0, 50, 60])
def test_sample_rows_keeps_all_where_the_limit_does_not_bind(limit):
    assert sample_rows(50, limit, 1, "rows").tolist() == list(range(50))


def test_sample_rows_is_seeded_ascending_and_nested():
    small, large = sample_rows(1000, 30, 1, "rows"), sample_rows(1000, 300, 1, "rows")
    assert len(small) == 30 and (np.diff(small) > 0).all()
    assert set(small) < set(large)
    assert sample_rows(1000, 30, 1, "rows").tolist() == small.tolist() != sample_rows(1000, 30, 2, "rows").tolist()
