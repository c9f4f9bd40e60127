"""Windows and user splits against plain loops and hand counts."""

import numpy as np

from recbole_llara.data.windows import rows_by_user_split, sliding_windows, split_users


def test_sliding_windows_equal_a_loop():
    users = np.repeat([4, 2, 9, 7], [1, 5, 12, 2])
    windows = sliding_windows(users, 3)
    expected = []
    for place, user in enumerate(users):
        history = [before for before in range(place) if users[before] == user][-3:]
        if history:
            expected.append((place, history))
    found = [
        (target, history[:length].tolist())
        for target, history, length in zip(windows.target, windows.history, windows.length, strict=True)
    ]
    assert found == expected


def test_sliding_windows_of_users_with_one_interaction_are_none():
    assert len(sliding_windows(np.array([1, 2, 3]), 10).target) == 0


def test_split_users_gives_the_papers_counts():
    # PROTOCOL's table: MovieLens, Steam, LastFM.
    for n_users, counts in ((943, [754, 94, 95]), (11938, [9550, 1194, 1194]), (1220, [976, 122, 122])):
        assert [len(part) for part in split_users(np.arange(n_users), (0.8, 0.1, 0.1))] == counts
    assert [len(part) for part in split_users(np.arange(10), (0.3, 0.3, 0.4))] == [3, 3, 4]


def test_rows_by_user_split():
    users = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 4])
    length = np.array([1, 2, 3, 4, 1, 2, 3, 1, 2, 1])
    parts = (np.array([1, 3]), np.array([2]), np.array([4]))
    assert [rows.tolist() for rows in rows_by_user_split(users, length, parts, 3, 1)] == [[2, 3], [6], [9]]
    assert [rows.tolist() for rows in rows_by_user_split(users, length, parts, 1, 2)] == [[0, 1, 2, 3, 7, 8], [6], []]
