"""Rows of ml-100k under both protocols: the papers' counts, RecBole's own rows, and candidates beside them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from scipy.stats import binomtest, chisquare

from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD, CandidateDataset, prepare_data
from recbole_llara.utils.errors import UserError

PROTOCOLS = ("llara", "leave_one_out")


def splits_of(data):
    return {name: getattr(data, f"{name}_data").dataset.inter_feat for name in ("train", "valid", "test")}


@pytest.fixture(scope="module")
def ratings(make_config):
    """The raw table, sorted by user and time; what the tests count on their own."""
    path = f"{make_config('llara')['data_path']}/ml-100k.inter"
    table = pd.read_csv(path, sep="\t")
    table.columns = ["user", "item", "rating", "time"]
    return table.sort_values(["user", "time"], kind="stable")


def test_counts_of_the_papers_protocol(prepared, ratings):
    splits = splits_of(prepared["llara"])
    kept = ratings[ratings.rating >= 3]
    assert len(kept) == 82_520 == len(prepared["llara"].dataset.knowledge.known["test"].keys)
    assert [len(set(rows["user_id"].tolist())) for rows in splits.values()] == [754, 94, 95]
    assert [len(rows) for rows in splits.values()][1:] == [94, 95]
    # By hand: users by first time, all but the first three positions of the first 754.
    first_time = kept.groupby("user").time.min()
    sizes = kept.groupby("user").size()[first_time.sort_values(kind="stable").index]
    assert first_time.nunique() == len(first_time)  # so that the order of users is certain
    assert len(splits["train"]) == (sizes[:754] - 3).clip(lower=0).sum() == 66_127
    assert splits["train"]["item_length"].min() == 3


def test_counts_of_leave_one_out(prepared):
    splits = splits_of(prepared["leave_one_out"])
    assert [len(rows) for rows in splits.values()] == [100_000 - 3 * 943, 943, 943]
    assert prepared["leave_one_out"].dataset.item_num == 1683


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_test_rows_are_the_last_items_of_their_users(prepared, ratings, protocol):
    data = prepared[protocol]
    rows = splits_of(data)["test"]
    kept = ratings[ratings.rating >= 3] if protocol == "llara" else ratings
    sequences = kept.groupby("user").item.agg(list)
    users = data.dataset.id2token("user_id", rows["user_id"]).astype(int)
    for user, target, history, length in zip(users, rows["item_id"], rows["item_id_list"], rows["item_length"], strict=True):
        items = data.dataset.id2token("item_id", torch.cat([history[:length], target[None]])).astype(int)
        assert items.tolist() == sequences[user][-11:]
        assert (history[length:] == 0).all()


def test_users_of_valid_and_test_never_train_under_the_papers_protocol(prepared):
    users = [set(rows["user_id"].tolist()) for rows in splits_of(prepared["llara"]).values()]
    assert not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])


def test_rows_are_those_of_recboles_own_augmentation(make_config):
    config = make_config("leave_one_out", MAX_ITEM_LIST_LENGTH=7, load_col={"inter": ["user_id", "item_id", "timestamp"]})
    ours, stock = CandidateDataset(config), SequentialDataset(config)
    # RecBole reads time as float32, which mixes up neighbours; from the same exact order both must give the same.
    stock.inter_feat = stock.inter_feat.sort_values("timestamp", kind="stable", ignore_index=True)
    splits = zip(ours.build(), stock.build(), strict=True)
    for our, theirs in splits:
        assert set(theirs.inter_feat.columns) <= set(our.inter_feat.columns)
        for field in theirs.inter_feat.columns:
            assert our.inter_feat[field].dtype == theirs.inter_feat[field].dtype
            assert torch.equal(our.inter_feat[field], theirs.inter_feat[field]), field


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_candidates_ride_along_in_the_loaders(prepared, protocol):
    data = prepared[protocol]
    for name, loader in (("valid", data.valid_data), ("test", data.test_data)):
        start, stored = 0, loader.dataset.inter_feat
        for interaction, _, positive_u, positive_i in loader:
            end = start + len(interaction)
            assert torch.equal(interaction[CANDIDATE_FIELD], stored[CANDIDATE_FIELD][start:end])
            assert torch.equal(interaction[ROW_FIELD], stored[ROW_FIELD][start:end])
            assert (interaction[CANDIDATE_FIELD] == positive_i[:, None]).sum() == len(positive_u) == len(interaction)
            start = end
        assert start == len(stored), name
        assert torch.equal(stored[ROW_FIELD].sort().values, torch.arange(start))  # every row once
        titles = data.catalogue.titles
        shown = [
            sum(len(titles[item]) for item in [*history, *candidates])
            for history, candidates in zip(stored["item_id_list"].tolist(), stored[CANDIDATE_FIELD].tolist(), strict=True)
        ]
        assert shown == sorted(shown)  # so that the prompts of a batch are of like length
    batch = next(iter(data.train_data))
    assert batch[ROW_FIELD].dtype == torch.int64 and CANDIDATE_FIELD not in batch
    stored = data.dataset.inter_feat
    assert torch.equal(stored["item_id"][batch[ROW_FIELD]], batch["item_id"])
    assert torch.equal(stored["item_id_list"][batch[ROW_FIELD]], batch["item_id_list"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_candidates_hold_nothing_that_the_user_had_but_the_target(prepared, ratings, protocol):
    """Those of test rows exclude all that the user ever had; those of validation rows all but the test target."""
    data = prepared[protocol]
    kept = ratings[ratings.rating >= 3] if protocol == "llara" else ratings
    sequences = kept.groupby("user").item.agg(list)
    for name, rows in list(splits_of(data).items())[1:]:
        end = -1 if (protocol, name) == ("leave_one_out", "valid") else None
        users = data.dataset.id2token("user_id", rows["user_id"]).astype(int)
        items = data.dataset.id2token("item_id", rows[CANDIDATE_FIELD]).astype(int)
        targets = data.dataset.id2token("item_id", rows["item_id"]).astype(int)
        for user, candidates, target in zip(users, items, targets, strict=True):
            assert len(set(candidates)) == 20 and set(candidates) & set(sequences[user][:end]) == {target}


def test_positions_of_real_targets_are_uniform_and_tell_nothing(prepared):
    columns, answers = {}, {}
    for name, rows in list(splits_of(prepared["leave_one_out"]).items())[1:]:
        is_target = rows[CANDIDATE_FIELD] == rows["item_id"][:, None]
        columns[name] = is_target.int().argmax(dim=1).numpy()
        answers[name] = is_target.numpy()
        assert chisquare(np.bincount(columns[name], minlength=20)).pvalue > 1e-3
    best = np.bincount(columns["valid"]).argmax()
    assert binomtest(int(answers["test"][:, best].sum()), 943, 1 / 20).pvalue > 1e-3
    same_user = (columns["valid"] == columns["test"]).sum()
    assert binomtest(int(same_user), 943, 1 / 20).pvalue > 1e-3
    # The item that the valid sets show most often as a negative is no better. (The one they show least often is: what
    # many users have seen can be a negative of few. That is popularity, which any recommender may know; against targets
    # without popularity the same rules score chance, see test_candidates.)
    valid, test = splits_of(prepared["leave_one_out"])["valid"], splits_of(prepared["leave_one_out"])["test"]
    negatives = valid[CANDIDATE_FIELD][torch.from_numpy(~answers["valid"])].numpy()
    shown = np.bincount(negatives, minlength=1683)[test[CANDIDATE_FIELD].numpy()]
    hits = answers["test"][np.arange(943), shown.argmax(axis=1)].sum()
    assert binomtest(int(hits), 943, 1 / 20, alternative="greater").pvalue > 1e-3


def test_training_draws_are_valid_and_change_with_the_epoch(prepared):
    data = prepared["llara"]
    rows = data.dataset.inter_feat[:2000]
    asked = data.dataset.rows_of(rows)
    draws = [data.sampler.draw(rows[ROW_FIELD].numpy(), asked, "train", epoch) for epoch in range(2)]
    for drawn in draws:
        is_seen = data.dataset.knowledge.known["test"].contains(asked.users[:, None], drawn)
        assert (is_seen.sum(axis=1) == 1).all() and ((drawn == asked.targets[:, None]) == is_seen).all()
    shared = [len(set(one) & set(two)) - 1 for one, two in zip(*(drawn.tolist() for drawn in draws), strict=True)]
    assert np.mean(shared) < 1  # 19 of about 1,400 meet 19 others: 0.26 expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_candidates_are_the_same_for_every_model_and_seed_of_their_own(make_config, prepared, protocol, tmp_path):
    for model in ("GRU4Rec", "Caser"):
        again = prepare_data(make_config(protocol, model=model, checkpoint_dir=str(tmp_path), train_batch_size=32))
        assert again.candidate_sha256 == prepared[protocol].candidate_sha256
    assert len(list((tmp_path / "candidates").iterdir())) == 2
    other = prepare_data(make_config(protocol, checkpoint_dir=str(tmp_path), seed=1))
    assert other.candidate_sha256 != prepared[protocol].candidate_sha256
    fixed = prepare_data(make_config(protocol, checkpoint_dir=str(tmp_path), seed=1, candidate_seed=2020))
    assert fixed.candidate_sha256 == prepared[protocol].candidate_sha256


def test_samples_of_rows_keep_their_candidates(make_config, prepared, tmp_path):
    keys = {"checkpoint_dir": str(tmp_path), "max_train_rows": 300, "max_eval_rows": 40}
    full, small = splits_of(prepared["leave_one_out"]), splits_of(prepare_data(make_config("leave_one_out", **keys)))
    assert [len(rows) for rows in small.values()] == [300, 40, 40]
    for name, rows in small.items():
        for field in rows.columns:
            assert torch.equal(rows[field], full[name][field][full[name][ROW_FIELD].argsort()][rows[ROW_FIELD]]), (name, field)


def test_own_candidate_file_replaces_the_draw(make_config, prepared, tmp_path):
    folder, sha256 = (
        Path(prepared["leave_one_out"].dataset.config["checkpoint_dir"]),
        prepared["leave_one_out"].candidate_sha256,
    )
    valid, test = (next((folder / "candidates").glob(f"*-{sha256[name][:16]}.tsv")).read_bytes() for name in ("valid", "test"))
    own = tmp_path / "own.tsv"
    own.write_bytes(valid + test)
    keys = {"checkpoint_dir": str(tmp_path), "candidate_file": str(own), "seed": 99}
    again = prepare_data(make_config("leave_one_out", **keys))
    assert again.candidate_sha256 == prepared["leave_one_out"].candidate_sha256
    own.write_bytes(valid)
    with pytest.raises(UserError, match="lacks 943 of the 943 test rows"):
        prepare_data(make_config("leave_one_out", **keys))


def test_window_rule_reaches_the_draw(make_config, prepared, tmp_path):
    keys = {"checkpoint_dir": str(tmp_path), "candidate_exclude": "window"}
    rows = splits_of(prepare_data(make_config("leave_one_out", **keys)))["test"]
    negatives = rows[CANDIDATE_FIELD].numpy()
    in_history = (negatives[:, :, None] == rows["item_id_list"].numpy()[:, None]).any(axis=2)
    assert not in_history.any()  # no item repeats in ml-100k, so the target is not in the history either
    seen = prepared["leave_one_out"].dataset.knowledge.known["test"].contains(rows["user_id"].numpy()[:, None], negatives)
    assert (seen.sum(axis=1) > 1).any()


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("SASRec", {}),
        ("GRU4Rec", {}),
        ("Caser", {}),
        ("SASRec", {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stock_models_take_the_loaders(make_config, tmp_path, protocol, model, keys):
    from recbole.utils import get_model

    sample = {"checkpoint_dir": str(tmp_path), "max_train_rows": 64, "max_eval_rows": 16}
    data = prepare_data(make_config(protocol, model=model, **sample, **keys))
    stock = get_model(model)(data.train_data.config, data.dataset)
    assert torch.isfinite(stock.calculate_loss(next(iter(data.train_data))))
    interaction = next(iter(data.test_data))[0]
    scores = stock.full_sort_predict(interaction).view(len(interaction), -1)
    assert scores.gather(1, interaction[CANDIDATE_FIELD]).shape == (16, 20)


@pytest.fixture()
def toy(tmp_path, make_config):
    """A function that writes a dataset of sequences and gives its Config."""

    def make(sequences, protocol="leave_one_out", **keys):
        folder = tmp_path / "toy"
        folder.mkdir()
        lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        for user, sequence in sequences.items():
            lines += [f"{user}\t{item}\t5\t{1_700_000_000 + second}" for second, item in sequence]
        (folder / "toy.inter").write_text("\n".join(lines) + "\n")
        columns = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
        keys = {"candidate_num": 3, "load_col": columns, "checkpoint_dir": str(tmp_path / "saved")} | keys
        return make_config(protocol, dataset="toy", data_path=str(tmp_path), **keys)

    return make


@pytest.mark.parametrize(
    ("least", "train", "evaluated"),
    [
        ((3, 1), [("a", 3), ("a", 4)], {"valid": [("c", 2)], "test": [("d", 3)]}),
        ((1, 2), [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1)], {"valid": [("c", 2)], "test": [("d", 3)]}),
        ((1, 3), None, None),
    ],
)
def test_rows_of_the_papers_protocol_by_hand(toy, least, train, evaluated):
    lengths = {"a": 5, "b": 2, "c": 3, "d": 4}  # users in the order of time
    sequences = {
        user: [(10 * place + second, f"i{second + place}") for second in range(length)]
        for place, (user, length) in enumerate(lengths.items())
    }
    keys = {"split_ratio": [2, 1, 1], "min_train_history": least[0], "min_eval_history": least[1], "topk": [1]}
    config = toy(sequences, "llara", **keys)
    if train is None:
        with pytest.raises(UserError, match="valid split has no rows: 4 users .* min_eval_history 3"):
            prepare_data(config)
        return
    data = prepare_data(config)
    for name, rows in splits_of(data).items():
        users = data.dataset.id2token("user_id", rows["user_id"]).tolist()
        found = sorted(zip(users, rows["item_length"].tolist(), strict=True))
        assert found == {"train": train, **evaluated}[name]


def test_seconds_decide_the_order_and_shared_titles_are_optional(toy):
    """float32 cannot tell these seconds apart; the file's order is the reverse of time's."""
    sequences = {user: [(9 - place, f"i{(place + user) % 12}") for place in range(10)] for user in range(4)}
    data = prepare_data(toy(sequences))
    rows = splits_of(data)["test"]
    for user, target in zip(data.dataset.id2token("user_id", rows["user_id"]), rows["item_id"], strict=True):
        assert data.dataset.id2token("item_id", target) == f"i{int(user) % 12}"
    assert data.catalogue is None


def test_items_without_interactions_are_never_candidates(toy, tmp_path):
    sequences = {user: [(place, f"i{(place + user) % 12}") for place in range(6)] for user in range(12)}
    columns = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "name"]}
    config = toy(sequences, load_col=columns)
    names = "".join(f"i{number}\tname {number}\n" for number in range(50))
    (tmp_path / "toy" / "toy.item").write_text("item_id:token\tname:token_seq\n" + names)
    data = prepare_data(config)
    assert data.dataset.item_num == 51
    shown = Counter(splits_of(data)["test"][CANDIDATE_FIELD].flatten().tolist())
    assert {data.dataset.id2token("item_id", item) for item in shown} <= {f"i{number}" for number in range(12)}


@pytest.mark.parametrize(
    ("protocol", "sequences", "message"),
    [
        ("llara", {user: range(8) for user in range(5)}, "valid split has no rows: 5 users"),
        ("leave_one_out", {user: range(2) for user in range(5)}, "valid split has no rows"),
        ("leave_one_out", {user: [user] for user in range(5)}, "train split has no rows"),
        ("leave_one_out", {user: range(8) for user in range(5)}, "Only 1 of 8 items.*candidate_num"),
    ],
)
def test_data_too_small_for_the_protocol_are_refused(toy, protocol, sequences, message):
    config = toy(
        {user: [(second, f"i{item}") for second, item in enumerate(items)] for user, items in sequences.items()}, protocol
    )
    with pytest.raises(UserError, match=message):
        prepare_data(config)


def test_interactions_without_time_are_refused(toy):
    config = toy({1: [(1, "a"), (2, "b")]}, load_col={"inter": ["user_id", "item_id"]})
    with pytest.raises(UserError, match=r"TIME_FIELD.*load_col"):
        prepare_data(config)


def test_models_of_other_kinds_are_refused(make_config, tmp_path):
    keys = {"checkpoint_dir": str(tmp_path), "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    with pytest.raises(UserError, match="model is BPR"):
        prepare_data(make_config("leave_one_out", model="BPR", **keys))
