"""Protocol cold_items: nobody learns of a held-out item, nothing is learned from what came after a question, and what is too little is refused."""

import numpy as np
import pandas as pd
import pytest

from recbole_llara.data.dataset import CANDIDATE_FIELD, PLACE_FIELD, prepare_data
from recbole_llara.data.held_out import TEST, TRAIN, VALID, draw_homes, split_by_homes
from recbole_llara.utils.errors import UserError

NAMES = ["[PAD]", *(f"title {number}" for number in range(5000))]


def splits_of(data):
    return {name: getattr(data, f"{name}_data").dataset for name in ("train", "valid", "test")}


def test_homes_are_shares_of_the_items_and_follow_seed_and_name_alone():
    homes = draw_homes(NAMES, 0.1, 7)
    # 5,000 draws at .1: five standard deviations are .021.
    assert [(homes == home).mean() for home in (VALID, TEST)] == pytest.approx([0.1, 0.1], abs=0.021)
    assert homes[0] == TRAIN and (draw_homes(NAMES, 0.1, 8) != homes).any()
    order = np.random.default_rng(0).permutation(len(NAMES) - 1) + 1
    mixed = draw_homes(["[PAD]", *(NAMES[place] for place in order), "a further one"], 0.1, 7)
    assert (mixed[1:-1] == homes[order]).all()
    twice = draw_homes(["[PAD]", *NAMES[1:], *NAMES[1:]], 0.1, 7)
    assert (twice[1 : len(NAMES)] == twice[len(NAMES) :]).all()
    assert ((draw_homes(NAMES, 0.3, 7) == TEST) >= (homes == TEST)).all()  # a greater share keeps what is held out


def test_rows_by_hand():
    homes = np.array([TRAIN, VALID, TRAIN, TEST, TRAIN, VALID, *[TRAIN, VALID, TRAIN], *[TEST, TRAIN, TEST], TRAIN])
    users = np.array([1] * 6 + [2] * 3 + [4] * 3 + [5])
    is_new = np.ones(13, dtype=bool)
    train, valid, test = split_by_homes(users, homes, is_new)
    # User 2 has no test item, user 4 no validation item, user 5 neither.
    assert np.flatnonzero(train).tolist() == [0, 6, 10, 12]
    assert np.flatnonzero(valid).tolist() == [1, 7] and np.flatnonzero(test).tolist() == [3, 11]
    is_new[[3, 11]] = False  # had before: asked of nobody
    train, valid, test = split_by_homes(users, homes, is_new)
    assert np.flatnonzero(train).tolist() == [0, 2, 4, 6, 12]
    assert np.flatnonzero(valid).tolist() == [5, 7] and np.flatnonzero(test).tolist() == [9]


def test_every_split_knows_what_it_may_and_no_more(prepared):
    """Against plain loops over the raw interactions."""
    data = prepared["cold_items"]
    splits, homes = splits_of(data), data.dataset.homes
    users, items = (values.tolist() for values in data.dataset._interactions)
    places = {name: split.inter_feat[PLACE_FIELD].tolist() for name, split in splits.items()}
    asked = {name: {users[place]: place for place in places[name]} for name in ("valid", "test")}
    last_learned = {users[place]: place for place in sorted(places["train"])}
    for user, place in last_learned.items():
        assert place < asked["valid"].get(user, len(users)) and place < asked["test"].get(user, len(users))
    assert all(place < asked["test"].get(user, len(users)) for user, place in asked["valid"].items())
    first = [place == 0 or users[place] != users[place - 1] for place in range(len(users))]
    histories, learned = {}, []
    for place, user in enumerate(users):
        learned = [] if first[place] else learned
        histories[place] = learned[-10:]
        learned = [*learned, items[place]] if homes[items[place]] == TRAIN else learned
        # Each user's last held-out interactions that have a history are asked for.
        if histories[place] and homes[items[place]] == TEST:
            assert place <= asked["test"][user]
    for number, (name, split) in enumerate(splits.items()):
        rows = split.rows_of(split.inter_feat)
        assert (homes[rows.targets] == number).all()
        for place, history, target in zip(rows.places.tolist(), rows.history.tolist(), rows.targets.tolist(), strict=True):
            assert target == items[place] and history == histories[place] + [0] * (10 - len(histories[place]))
        known = data.dataset.knowledge.known[name]
        assert homes[known.keys % known.n_items].max() == number


def test_candidates_are_of_the_rows_own_kind(prepared):
    data = prepared["cold_items"]
    homes = data.dataset.homes
    for number, (name, split) in enumerate(splits_of(data).items()):
        feat = split.inter_feat
        rows = split.rows_of(feat)
        drawn = data.sampler.draw(feat["row_id"].numpy(), rows, "train") if name == "train" else feat[CANDIDATE_FIELD].numpy()
        assert (homes[drawn] == number).all()
        others = drawn[drawn != rows.targets[:, None]].reshape(len(drawn), 19)
        assert not data.dataset.knowledge.known[name].contains(rows.users[:, None], others).any()
    assert (data.dataset.training_counts[homes != TRAIN] == 0).all()


def test_items_of_one_title_share_their_home(prepared):
    data = prepared["cold_items"]
    table = pd.DataFrame({"title": data.catalogue.titles[1:], "home": data.dataset.homes[1:]})
    assert table.title.duplicated().sum() > 20 and (table.groupby("title").home.nunique() == 1).all()


def test_other_training_seeds_share_held_out_items_by_candidate_seed(make_config, prepared, tmp_path):
    same = prepare_data(make_config("cold_items", checkpoint_dir=str(tmp_path), seed=1, candidate_seed=2020))
    assert same.candidate_sha256 == prepared["cold_items"].candidate_sha256
    assert (same.dataset.homes == prepared["cold_items"].dataset.homes).all()
    other = prepare_data(make_config("cold_items", checkpoint_dir=str(tmp_path), candidate_seed=1))
    assert (other.dataset.homes != same.dataset.homes).any()


def write_walks(folder, n_users, n_items, length):
    """A dataset ``walks`` in which each user goes along the items."""
    (folder / "walks").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        lines += [f"u{user}\ti{(7 * user + place) % n_items}\t{place}" for place in range(length)]
    (folder / "walks" / "walks.inter").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("sizes", "keys", "message"),
    [
        (
            (40, 60, 12),
            {},
            r"held out \d+ items for test and \d+ for validation of 60 by cold_item_share 0.1, expected .*\(20\)",
        ),
        ((40, 60, 12), {"candidate_num": 2, "cold_item_share": 0.2}, None),
        (
            (60, 400, 1),
            {"candidate_num": 2},
            "cold_items: 0 train, 0 valid, 0 test rows are left of walks, 60 interactions of 60 users",
        ),
        ((40, 60, 55), {"candidate_num": 5}, r"Only \d of \d items are left as negatives .* raise cold_item_share"),
    ],
)
def test_too_little_is_refused(make_config, tmp_path, sizes, keys, message):
    write_walks(tmp_path, *sizes)
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "data_path": str(tmp_path), "topk": [1]}
    config = make_config("cold_items", dataset="walks", checkpoint_dir=str(tmp_path / "saved"), **columns, **keys)
    if message is None:
        assert prepare_data(config).catalogue is None  # by ids where there are no titles
        return
    with pytest.raises(UserError, match=message):
        prepare_data(config)


def test_a_candidate_file_of_other_items_is_refused(make_config, prepared, tmp_path):
    """Learned items among the candidates would tell which one is the target."""
    data = prepared["cold_items"]
    folder = f"{data.dataset.config['checkpoint_dir']}/candidates"
    lines = []
    for name in ("valid", "test"):
        with open(f"{folder}/ml-100k-cold_items-{name}-{data.candidate_sha256[name][:16]}.tsv", encoding="utf-8") as file:
            lines.append(file.read().splitlines())
    own = tmp_path / "own.tsv"
    keys = {"checkpoint_dir": str(tmp_path), "candidate_file": str(own)}
    own.write_text("\n".join([*lines[0], *lines[1]]) + "\n")
    assert prepare_data(make_config("cold_items", **keys)).candidate_sha256 == data.candidate_sha256
    learned = data.dataset.id2token("item_id", int(np.flatnonzero(data.dataset.homes == TRAIN)[1]))
    cells = lines[1][1].split("\t")
    place = next(number for number in range(2, 22) if cells[number] != cells[1])
    cells[place] = str(learned)
    own.write_text("\n".join([*lines[0], lines[1][0], "\t".join(cells), *lines[1][2:]]) + "\n")
    with pytest.raises(UserError, match="candidate_file: 1 of 923 test rows have candidates that protocol cold_items does not"):
        prepare_data(make_config("cold_items", **keys))
