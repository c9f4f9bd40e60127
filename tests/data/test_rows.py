"""Rows of sequences, and what each split knows of them, against plain loops and by hand."""

from dataclasses import replace

import numpy as np
import pytest

from recbole_llara.data.candidates import CandidateSampler
from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD, prepare_data
from recbole_llara.data.rows import SPLITS, Knowledge, Rows, SeenItems, TrainingPart, split_users
from recbole_llara.utils.errors import UserError


def test_split_users_gives_the_papers_counts():
    # PROTOCOL's table: MovieLens, Steam, LastFM.
    for n_users, counts in ((943, [754, 94, 95]), (11938, [9550, 1194, 1194]), (1220, [976, 122, 122])):
        assert [len(part) for part in split_users(np.arange(n_users), (0.8, 0.1, 0.1))] == counts
    assert [len(part) for part in split_users(np.arange(10), (0.3, 0.3, 0.4))] == [3, 3, 4]


def _part(share, users, places):
    """Which rows are later ones; the earlier ones are always the others."""
    users, places = np.array(users), np.array(places)
    rows = Rows(users, np.ones_like(users), np.ones((len(users), 2), dtype=np.int64), places)
    later = TrainingPart(share, is_later=True).of(rows)
    assert (TrainingPart(share, is_later=False).of(rows) == ~later).all()
    return later.astype(int).tolist()


def test_the_later_rows_of_each_user_by_hand():
    users, places = [5, 5, 5, 8, 8, 9], [3, 1, 2, 11, 14, 20]
    assert _part(0.01, users, places) == [1, 0, 0, 0, 1, 0]  # one of two or more, none of a single one
    assert _part(0.5, users, places) == [1, 0, 1, 0, 1, 0]  # 1.5 are 2
    assert _part(0.99, users, places) == [1, 0, 1, 0, 1, 0]  # but never all
    assert _part(0.2, [1] * 9 + [2] * 7, range(16)) == [0] * 7 + [1, 1] + [0] * 6 + [1]  # 1.8 and 1.4


# Users 1 and 2; items by time 3 4 5 6 3 and 7 8 9. The last row of each is for test, the one before for valid.
USERS, ITEMS = np.array([1, 1, 1, 1, 1, 2, 2, 2]), np.array([3, 4, 5, 6, 3, 7, 8, 9])


def _rows(*places):
    places = np.array(places, dtype=np.int64)
    history = np.zeros((len(places), 4), dtype=np.int64)
    for row, place in enumerate(places):
        before = ITEMS[:place][USERS[:place] == USERS[place]]
        history[row, : len(before)] = before
    return Rows(USERS[places], ITEMS[places], history, places)


def _known(knowledge):
    return {name: sorted((int(key) // 10, int(key) % 10) for key in knowledge.known[name].keys) for name in SPLITS}


@pytest.mark.parametrize("ready_made", [False, True])
def test_a_split_knows_its_own_rows_and_those_before_by_hand(ready_made):
    splits = [_rows(1, 2), _rows(3, 6), _rows(4, 7)]
    if ready_made:
        splits = [replace(rows, places=np.full_like(rows.places, number)) for number, rows in enumerate(splits)]
        knowledge = Knowledge.from_windows(splits)
    else:
        knowledge = Knowledge(USERS, ITEMS, np.arange(len(USERS)), splits)
    train = [(1, 3), (1, 4), (1, 5)]  # user 2 has no training row
    assert _known(knowledge) == {
        "train": train,
        "valid": [*train, (1, 6), (2, 7), (2, 8)],
        "test": [*train, (1, 6), (2, 7), (2, 8), (2, 9)],
    }
    assert list(zip(*(values.tolist() for values in knowledge.past(splits[2])), strict=True)) == [
        *((0, item) for item in (3, 4, 5, 6)),
        *((1, item) for item in (7, 8)),
    ]
    assert knowledge.is_repeat(splits[2]).tolist() == [True, False]
    assert not knowledge.is_repeat(splits[0]).any()


@pytest.fixture()
def repeats(make_config, tmp_path):
    """A function of keys that prepares 300 users, half of whose interactions repeat one of their last eight items."""

    def make(**keys):
        folder = tmp_path / "again"
        if not folder.exists():
            folder.mkdir()
            rng = np.random.default_rng(4)
            lines = ["user_id:token\titem_id:token\ttimestamp:float"]
            for user in range(300):
                items = rng.permutation(400)[:12].tolist()
                for _ in range(28):
                    items.append(int(rng.choice(items[-8:])) if rng.random() < 0.5 else int(rng.integers(400)))
                lines += [f"u{user}\ti{item}\t{second}" for second, item in enumerate(items)]
            (folder / "again.inter").write_text("\n".join(lines) + "\n")
        shared = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "candidate_num": 10, "eval_args": RATIO}
        shared |= {"dataset": "again", "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
        return prepare_data(make_config("leave_one_out", **shared | keys))

    return make


# RecBole's own ratio split: several validation and test rows a user.
RATIO = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user", "order": "TO", "mode": "full"}


def _loop(data):
    """Each user's items in order, by the loaders' own rows: split -> [(row, user, target, what came before)]."""
    sequences: dict[int, list[int]] = {}
    told = {}
    for name in SPLITS:
        feat = getattr(data, f"{name}_data").dataset.inter_feat
        columns = (feat["user_id"], feat["item_id"], feat["item_id_list"], feat["item_length"], feat[ROW_FIELD])
        told[name] = []
        for user, target, history, length, row in zip(*(column.tolist() for column in columns), strict=True):
            sequence = sequences.setdefault(user, history[:length])  # the first row shows all that was before it
            told[name].append((row, user, target, list(sequence)))
            sequence.append(target)
    return told, sequences


def test_negatives_exclude_what_the_split_knows_and_nothing_more(repeats):
    data = repeats()
    told, _ = _loop(data)
    train_rows = data.train_data.dataset.rows_of(data.train_data.dataset.inter_feat)
    numbers = data.dataset.inter_feat[ROW_FIELD].numpy()
    draws = {
        "train": [data.sampler.draw(numbers, train_rows, "train", epoch).tolist() for epoch in range(12)],
    }
    for name in ("valid", "test"):
        draws[name] = [getattr(data, f"{name}_data").dataset.inter_feat[CANDIDATE_FIELD].tolist()]
    known: dict[int, set[int]] = {}
    later: dict[int, set[int]] = {}
    for rows in told.values():
        for _, user, target, before in rows:
            later.setdefault(user, set()).update([target, *before])
    met = dict.fromkeys(SPLITS, 0)
    expected = dict.fromkeys(SPLITS, 0.0)
    for name in SPLITS:
        for _, user, target, before in told[name]:
            known.setdefault(user, set()).update([target, *before])
        for candidates in draws[name]:
            for (_, user, target, _), shown in zip(told[name], candidates, strict=True):
                negatives = set(shown) - {target}
                assert len(negatives) == 9 and not negatives & known[user]
                met[name] += len(negatives & later[user])
                unknown = 400 - len(known[user])
                expected[name] += 9 * len(later[user] - known[user]) / unknown
    # What comes later is drawn as often as any other item: within three standard errors of a Poisson count.
    assert expected["test"] == met["test"] == 0 and expected["train"] > 1000
    for name in ("train", "valid"):
        assert abs(met[name] - expected[name]) < 3 * expected[name] ** 0.5


def test_past_and_repeats_are_those_of_a_plain_loop(repeats):
    data = repeats(MAX_ITEM_LIST_LENGTH=50)
    told, _ = _loop(data)
    for name in SPLITS:
        dataset = getattr(data, f"{name}_data").dataset
        rows = dataset.rows_of(dataset.inter_feat)
        position, item = data.dataset.knowledge.past(rows)
        found = [[] for _ in told[name]]
        for row, number in zip(position.tolist(), item.tolist(), strict=True):
            found[row].append(number)
        assert found == [sorted(set(before)) for _, _, _, before in told[name]]
        is_repeat = [target in before for _, _, target, before in told[name]]
        assert data.dataset.knowledge.is_repeat(rows).tolist() == is_repeat
        assert dataset.repeat_share.get(name, data.dataset.repeat_share[name]) == pytest.approx(np.mean(is_repeat))


def test_repeated_targets_are_told_left_out_or_matched(repeats, caplog):
    kept = repeats()
    for name in ("valid", "test"):
        share = kept.dataset.repeat_share[name]
        assert f"{name}: in" in caplog.text and f"({share:.1%})" in caplog.text and 0.3 < share < 0.7
    caplog.clear()
    dropped = repeats(repeated_targets="drop")
    assert "the user had the target before" not in caplog.text
    for name in SPLITS:
        rows = getattr(dropped, f"{name}_data").dataset
        assert not dropped.dataset.knowledge.is_repeat(rows.rows_of(rows.inter_feat)).any()
        before = len(getattr(kept, f"{name}_data").dataset)
        assert len(rows) == pytest.approx(before * (1 - kept.dataset.repeat_share[name]))


def test_matched_negatives_come_from_the_past_as_often_as_targets_do(repeats):
    data = repeats(repeated_targets="match", MAX_ITEM_LIST_LENGTH=50)
    told, _ = _loop(data)
    train = data.dataset.rows_of(data.dataset.inter_feat)
    numbers = data.dataset.inter_feat[ROW_FIELD].numpy()
    drawn = {"train": data.sampler.draw(numbers, train, "train", 0)}
    for name in ("valid", "test"):
        drawn[name] = getattr(data, f"{name}_data").dataset.inter_feat[CANDIDATE_FIELD].numpy()
    for name in SPLITS:
        own = slots = 0
        for (_, _, target, before), shown in zip(told[name], drawn[name].tolist(), strict=True):
            assert len(set(shown)) == 10 and target in shown
            if len(set(before) - {target}) >= 9:  # long enough for any number of slots
                own += len(set(shown) & (set(before) - {target}))
                slots += 9
        share = data.dataset.repeat_share[name]
        assert abs(own / slots - share) < 4 * (share * (1 - share) / slots) ** 0.5
    # Rows are drawn for one by one: another company changes nothing.
    some = np.array([5, 900, 3])
    alone = data.sampler.draw(numbers[some], train.take(some), "train", 0)
    assert (alone == drawn["train"][some]).all()


def test_a_past_of_one_item_fills_one_slot():
    def past(rows):
        return np.arange(len(rows.users)), np.full(len(rows.users), 2)

    seen = SeenItems(np.array([31, 32]), 30)  # of user 1, items 1 and 2
    rows = np.arange(200)
    ones = np.ones_like(rows)
    sampler = CandidateSampler(seen, 6, seed=1, past=past, past_share=1.0)
    drawn = sampler.draw(rows, Rows(ones, ones, ones[:, None] * 2, ones), "test")
    assert ((drawn == 2).sum(axis=1) == 1).all() and ((drawn == 1).sum(axis=1) == 1).all()
    assert (np.sort(drawn)[:, 1:] != np.sort(drawn)[:, :-1]).all()


def test_match_needs_negatives_that_exclude_the_past(repeats):
    with pytest.raises(UserError, match="repeated_targets: found 'match' with candidate_exclude 'window'"):
        repeats(repeated_targets="match", candidate_exclude="window")
