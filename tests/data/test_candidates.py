"""Candidate sets: what may stand in them, and that their form tells nothing about the target."""

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from recbole_llara.data.candidates import CandidateSampler, Proposals
from recbole_llara.data.rows import Rows, SeenItems
from recbole_llara.utils.errors import UserError

N_ITEMS, N_USERS, C = 300, 400, 20


def seen_items(users, items, n_items):
    return SeenItems(np.unique(users * n_items + items), n_items)


def rows_of(users, targets, history=None):
    """Rows whose place nothing reads, and whose history neither, unless it is given."""
    return Rows(users, targets, np.zeros((len(users), 1), np.int64) if history is None else history, np.zeros_like(users))


@pytest.fixture(scope="module")
def world():
    """Skewed interactions as in real data, and one row for each: users, targets, and the set of each user's items."""
    rng = np.random.default_rng(5)
    popularity = 1.0 / np.arange(1, N_ITEMS)
    users = rng.integers(1, N_USERS, 12_000)
    items = rng.choice(np.arange(1, N_ITEMS), size=12_000, p=popularity / popularity.sum())
    seen = seen_items(users, items, N_ITEMS)
    by_user = {user: set(items[users == user].tolist()) for user in range(N_USERS)}
    return seen, users, items, by_user


def sampler_of(world, **keys):
    return CandidateSampler(world[0], **({"candidate_num": C, "seed": 1} | keys))


@pytest.fixture(scope="module")
def drawn(world):
    _, users, targets, _ = world
    return sampler_of(world).draw(np.arange(len(users)), rows_of(users, targets), "test")


def test_seen_items_answers_as_sets_do(world):
    seen, _, _, by_user = world
    grid = np.arange(N_USERS)[:, None], np.arange(N_ITEMS)[None]
    expected = [[item in by_user[user] for item in range(N_ITEMS)] for user in range(N_USERS)]
    assert (seen.contains(*grid) == np.array(expected)).all()
    position, place = seen.places(np.array([7, 3, 7]))
    item = seen.keys[place] % N_ITEMS
    assert [set(item[position == place]) for place in range(3)] == [by_user[7], by_user[3], by_user[7]]


def test_a_set_is_the_target_and_distinct_items_the_user_never_saw(world, drawn):
    _, users, targets, by_user = world
    assert drawn.shape == (len(users), C) and drawn.dtype == np.int64
    for user, target, candidates in zip(users, targets, drawn.tolist(), strict=True):
        assert len(set(candidates)) == C
        assert set(candidates) & (by_user[user] | {0}) == {target}
    assert drawn.max() < N_ITEMS


def test_a_row_does_not_depend_on_its_batch_or_order(world, drawn):
    _, users, targets, _ = world
    rows = np.random.default_rng(0).permutation(len(users))[:500]
    again = sampler_of(world).draw(rows, rows_of(users[rows], targets[rows]), "test")
    assert (again == drawn[rows]).all()
    alone = sampler_of(world).draw(rows[:1], rows_of(users[rows[:1]], targets[rows[:1]]), "test")
    assert (alone == drawn[rows[:1]]).all()


def test_a_row_does_not_depend_on_its_target(world):
    """Another target of the same user takes the column of the first; the negatives stay."""
    _, users, targets, by_user = world
    rows = np.arange(len(users))
    others = np.array([max(by_user[user]) for user in users])
    first, second = (sampler_of(world).draw(rows, rows_of(users, chosen), "test") for chosen in (targets, others))
    column = (first == targets[:, None]).argmax(axis=1)
    assert (second[rows, column] == others).all()
    first[rows, column] = second[rows, column] = 0
    assert (first == second).all()


def test_draws_differ_by_epoch_purpose_and_seed(world, drawn):
    _, users, targets, _ = world
    rows = np.arange(len(users))
    draws = [
        sampler_of(world).draw(rows, rows_of(users, targets), "test", epoch=1),
        sampler_of(world).draw(rows, rows_of(users, targets), "valid"),
        sampler_of(world, seed=2).draw(rows, rows_of(users, targets), "test"),
    ]
    for other in draws:
        assert (np.sort(other) == np.sort(drawn)).all(axis=1).mean() < 0.001
        same_column = ((other == targets[:, None]) & (drawn == targets[:, None])).any(axis=1).sum()
        assert binomtest(int(same_column), len(rows), 1 / C).pvalue > 1e-3


def test_the_column_of_the_target_is_uniform(world, drawn):
    _, _, targets, _ = world
    columns = (drawn == targets[:, None]).argmax(axis=1)
    assert chisquare(np.bincount(columns, minlength=C)).pvalue > 1e-3


def test_equal_targets_and_equal_users_do_not_share_columns(world, drawn):
    _, users, targets, _ = world
    columns = (drawn == targets[:, None]).argmax(axis=1)
    for group in (targets, users):
        order = np.argsort(group, kind="stable")
        neighbours = group[order[1:]] == group[order[:-1]]
        equal = (columns[order[1:]] == columns[order[:-1]])[neighbours].sum()
        assert binomtest(int(equal), int(neighbours.sum()), 1 / C).pvalue > 1e-3


def _hits(choice, rows, drawn, targets):
    return binomtest(int((drawn[rows, choice] == targets[rows]).sum()), len(rows), 1 / C)


def test_rules_that_see_only_candidates_and_columns_score_chance(world):
    """Targets are uniform here, so an item's own popularity tells nothing and only a leak of the draw could."""
    _, users, _, _ = world
    rng = np.random.default_rng(6)
    targets = rng.integers(1, N_ITEMS, len(users))
    seen = seen_items(users, targets, N_ITEMS)
    rows = np.arange(len(users))
    drawn = CandidateSampler(seen, C, seed=1).draw(rows, rows_of(users, targets), "test")
    known, asked = rows[: len(rows) // 2], rows[len(rows) // 2 :]

    columns = (drawn[known] == targets[known, None]).argmax(axis=1)
    best_column = np.full(len(asked), np.bincount(columns).argmax())
    assert _hits(best_column, asked, drawn, targets).pvalue > 1e-3

    # One half shows how often an item is a candidate at each column: the commonest and the rarest are no clue.
    shown = np.bincount(drawn[known].ravel(), minlength=N_ITEMS)
    assert _hits(shown[drawn[asked]].argmax(axis=1), asked, drawn, targets).pvalue > 1e-3
    assert _hits(shown[drawn[asked]].argmin(axis=1), asked, drawn, targets).pvalue > 1e-3

    # The column where this very item stood when it was last a target, else column 0 (the leak of a target-seeded draw).
    last_column = np.zeros(N_ITEMS, dtype=np.int64)
    last_column[targets[known]] = columns
    agrees = last_column[drawn[asked]] == np.arange(C)[None]
    assert _hits(agrees.argmax(axis=1), asked, drawn, targets).pvalue > 1e-3

    # Sums over a set: the largest id, the smallest, and the neighbour of the set's mean.
    mean = drawn[asked].mean(axis=1, keepdims=True)
    for choice in (drawn[asked].argmax(axis=1), drawn[asked].argmin(axis=1), np.abs(drawn[asked] - mean).argmin(axis=1)):
        assert _hits(choice, asked, drawn, targets).pvalue > 1e-3


@pytest.mark.parametrize("n_seen", [2, 24])  # redrawn slots; exact draws, where 5 of 29 items are left
def test_negatives_are_uniform_over_the_eligible_items(n_seen):
    sampler = CandidateSampler(seen_items(1, np.arange(1, n_seen + 1), 30), 5, seed=3)
    rows = np.arange(20_000)
    ones = np.ones_like(rows)
    drawn = sampler.draw(rows, rows_of(ones, ones), "test")
    negatives = drawn[drawn != 1].reshape(len(rows), 4)
    counts = np.bincount(negatives.ravel(), minlength=30)
    assert counts[: n_seen + 1].sum() == 0
    # Drawn without replacement, counts vary less than a multinomial's: the test can only be too lenient upwards.
    assert chisquare(counts[n_seen + 1 :]).pvalue > 1e-3
    assert chisquare(np.bincount(negatives[:, 0], minlength=30)[n_seen + 1 :]).pvalue > 1e-3
    pairs = np.bincount(negatives[:, 0] * 30 + negatives[:, 3], minlength=900).reshape(30, 30)[n_seen + 1 :, n_seen + 1 :]
    assert chisquare(pairs[~np.eye(29 - n_seen, dtype=bool)]).pvalue > 1e-3


def test_the_last_eligible_items_are_all_taken():
    sampler = CandidateSampler(seen_items(1, np.arange(1, 12), 31), 20, seed=3)
    drawn = sampler.draw(np.arange(50), rows_of(np.ones(50, np.int64), np.full(50, 4)), "test")
    assert (np.sort(drawn) == [4, *range(12, 31)]).all()
    assert len(np.unique(drawn, axis=0)) == 50


def test_too_few_eligible_items_name_the_user_and_the_keys():
    sampler = CandidateSampler(seen_items(7, np.arange(1, 13), 31), 20, seed=3)
    with pytest.raises(UserError, match=r"Only 18 of 30 .* user 7 .* at least 19.*candidate_num.*candidate_exclude"):
        sampler.draw(np.arange(2), rows_of(np.array([7, 1]), np.array([4, 4])), "test")


def test_window_excludes_the_history_and_not_the_rest(world):
    _, users, targets, by_user = world
    rows = np.arange(len(users))
    history = np.array([(sorted(by_user[user]) + [0] * 10)[:10] for user in users])
    drawn = sampler_of(world, exclude="window").draw(rows, rows_of(users, targets, history), "test")
    for target, before, candidates in zip(targets, history, drawn.tolist(), strict=True):
        assert len(set(candidates)) == C and target in candidates
        assert set(candidates) & (set(before.tolist()) | {0}) <= {target}
    was_seen = world[0].contains(users[:, None], drawn) & (drawn != targets[:, None])
    assert was_seen.any()


K = 40


@pytest.fixture(scope="module")
def proposals(world):
    """What a recommender may have put first for the rows of the world: items that their users never had; at times few or none."""
    _, users, _targets, by_user = world
    rng = np.random.default_rng(8)
    items = np.zeros((len(users), K), np.int32)
    for row, user in enumerate(users):
        eligible = rng.permutation(sorted(set(range(1, N_ITEMS)) - by_user[user]))[: (K, K, 5, 0)[row % 4]]
        items[row, : len(eligible)] = eligible
    return Proposals(np.arange(len(users)), items)


@pytest.mark.parametrize("proposed_num", [C - 1, C // 2])
def test_negatives_come_from_what_is_proposed(world, drawn, proposals, proposed_num):
    _, users, targets, by_user = world
    rows = np.arange(len(users))
    sampler = sampler_of(world, proposals=proposals, proposed_num=proposed_num)
    found = sampler.draw(rows, rows_of(users, targets), "test")
    assert ((found == targets[:, None]) == (drawn == targets[:, None])).all()  # the target's place is that of a uniform draw
    inside = (found[:, :, None] == proposals.items[:, None, :]) & (found > 0)[:, :, None]
    taken = inside.any(axis=2).sum(axis=1)
    there = (proposals.items > 0).sum(axis=1)
    assert (taken >= np.minimum(proposed_num, there)).all()
    if proposed_num == C - 1:
        assert (taken[there == K] == C - 1).all()
    for user, target, candidates in zip(users, targets, found.tolist(), strict=True):
        assert len(set(candidates)) == C
        assert set(candidates) & (by_user[user] | {0}) == {target}
    empty = there == 0
    assert (np.sort(found[empty]) == np.sort(drawn[empty])).all()  # uniform negatives take the places of those that lack


def test_each_proposed_item_is_drawn_as_often(world, proposals):
    _, users, targets, _ = world
    sampler = sampler_of(world, proposals=proposals, proposed_num=C // 2)
    row = np.array([8])
    one = rows_of(users[row], targets[row])
    draws = np.concatenate([sampler.draw(row, one, "train", epoch) for epoch in range(4000)])
    negatives = draws[draws != targets[8]].reshape(len(draws), C - 1)
    counts = np.bincount(negatives.ravel(), minlength=N_ITEMS)[proposals.items[8]]
    assert chisquare(counts).pvalue > 1e-3
    is_proposed = np.isin(negatives, proposals.items[8])
    assert is_proposed.sum(axis=1).min() == C // 2  # uniform ones may be proposed too
    assert chisquare(is_proposed.sum(axis=0)).pvalue > 1e-3  # no slot tells which they are


def test_proposed_draws_depend_on_no_batch_and_on_no_target(world, proposals):
    _, users, targets, by_user = world
    sampler = sampler_of(world, proposals=proposals, proposed_num=C - 1)
    rows = np.arange(len(users))
    whole = sampler.draw(rows, rows_of(users, targets), "train", 3)
    some = np.random.default_rng(0).permutation(len(users))[:300]
    assert (sampler.draw(some, rows_of(users[some], targets[some]), "train", 3) == whole[some]).all()
    assert (sampler.draw(some[:1], rows_of(users[some[:1]], targets[some[:1]]), "train", 3) == whole[some[:1]]).all()
    assert not (sampler.draw(rows, rows_of(users, targets), "train", 4) == whole).all(axis=1).any()
    others = np.array([max(by_user[user]) for user in users])
    again, column = sampler.draw(rows, rows_of(users, others), "train", 3), (whole == targets[:, None]).argmax(axis=1)
    assert (again[rows, column] == others).all()
    again[rows, column] = targets
    assert (again == whole).all()


def test_proposals_of_other_rows_are_refused():
    proposals = Proposals(np.array([2, 5]), np.ones((2, 3), np.int32))
    assert proposals.of(np.array([5, 2, 5])).shape == (3, 3)
    for unknown in (3, 9):
        with pytest.raises(ValueError, match="proposed for"):
            proposals.of(np.array([2, unknown]))
    assert proposals.sha256 != Proposals(np.array([2, 6]), np.ones((2, 3), np.int32)).sha256
