"""Rules without a model over every protocol: chance, or explained; and each of them finds the leak that it is for."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from recbole_llara.data import leaks
from recbole_llara.data.candidates import CandidateSampler
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.data.rows import TrainingPart
from recbole_llara.recommender.command import leaks_main
from recbole_llara.recommender.proposals import propose
from recbole_llara.recommender.retriever import Retriever

LEAST_DRAWN = "training: least often the user's negative"
RATIO = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO", "mode": "full"}


@pytest.fixture(scope="module")
def windows(prepared, tmp_path_factory):
    """The rows of 300 users of ml-100k under leave_one_out as ready-made files, by user, for protocol windows."""
    folder = tmp_path_factory.mktemp("ready") / "rows"
    folder.mkdir()
    data = prepared["leave_one_out"]
    for name in ("train", "valid", "test"):
        feat = getattr(data, f"{name}_data").dataset.inter_feat
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        columns = (feat["user_id"], feat["item_id_list"], feat["item_length"], feat["item_id"])
        for user, history, length, item in zip(*(column.tolist() for column in columns), strict=True):
            if user <= 300:
                lines.append(f"u{user}\t{' '.join(f'i{number}' for number in history[:length])}\ti{item}")
        (folder / f"rows.{name}.inter").write_text("\n".join(lines) + "\n")
    return {"dataset": "rows", "data_path": str(folder.parent)}


@pytest.mark.parametrize("protocol", ["leave_one_out", "llara", "cold_items", "windows", "ratio"])
def test_no_rule_beats_chance_unless_the_data_explain_it(protocol, prepared, make_config, windows, tmp_path):
    if protocol in prepared:
        data = prepared[protocol]
    elif protocol == "ratio":
        data = prepare_data(make_config("leave_one_out", checkpoint_dir=str(tmp_path), eval_args=RATIO, max_eval_rows=3000))
    else:
        data = prepare_data(make_config(protocol, checkpoint_dir=str(tmp_path), **(windows if protocol == "windows" else {})))
    found = {(finding.split, finding.rule): finding for finding in leaks.find_leaks(data, epochs=5)}
    assert not [finding for finding in found.values() if finding.is_leak]
    of_held_out = 4 if protocol == "cold_items" else 0
    assert len(found) == 2 * len(leaks.RULES) + of_held_out
    if protocol == "leave_one_out":
        assert found["test", LEAST_DRAWN].share <= 0.07 and found["test", LEAST_DRAWN].n == 943
    if protocol == "cold_items":  # of held-out items nobody knows how popular they are
        assert all(finding.is_chance for (_, rule), finding in found.items() if not rule.startswith("item "))
        return
    # Popularity is there to be found, and is said to be that.
    popular = found["test", "training interactions: most"]
    assert popular.share > 0.15 and not popular.is_chance and popular.reason == leaks.POPULARITY
    if protocol == "ratio":
        together = found["test", "other rows of the user: in fewest"]
        assert together.is_chance or together.reason == leaks.TOGETHER


def test_training_draws_that_exclude_test_targets_are_found(prepared):
    """The draws of an implementation that excludes all of a user's interactions, before and after."""
    data = prepared["leave_one_out"]
    everything = data.dataset.knowledge.known["test"]
    leaking = CandidateSampler(everything, 20, seed=2020)
    found = leaks.find_leaks(dataclasses.replace(data, sampler=leaking), epochs=2)
    rule = next(finding for finding in found if finding.split == "test" and finding.rule == LEAST_DRAWN)
    assert rule.is_leak and rule.share > 0.3


class Commonest(torch.nn.Module):
    """Proposes to everybody the items of most training rows."""

    def __init__(self, data):
        super().__init__()
        self.counts = torch.bincount(data.dataset.inter_feat["item_id"], minlength=data.dataset.item_num).float()

    def full_sort_predict(self, interaction):
        return self.counts.repeat(len(interaction), 1)


def proposing(data, config, known, draw):
    """The data with a sampler that draws what is proposed among items that ``known`` does not have of the user."""
    sampler = dataclasses.replace(data.sampler, seen=known)
    feat = data.dataset.inter_feat
    numbers, rows = feat["row_id"].numpy(), data.dataset.rows_of(feat)
    table, _ = propose(Retriever(Commonest(data), config, sampler.n_items), sampler, numbers, rows, 100)
    return dataclasses.replace(data, sampler=dataclasses.replace(sampler, proposals=table, proposed_num=draw))


def test_proposed_negatives_tell_nothing_unless_they_avoid_later_items(prepared, make_config):
    data, config = prepared["leave_one_out"], make_config("leave_one_out")
    knowledge = data.dataset.knowledge
    honest = leaks.find_leaks(proposing(data, config, knowledge.known["train"], 10), epochs=1)
    assert not [finding for finding in honest if finding.is_leak]
    found = {(finding.split, finding.rule): finding for finding in honest}
    assert found["test", LEAST_DRAWN].reason == leaks.PROPOSED and found["test", leaks.MISSED].is_chance
    leaking = leaks.find_leaks(proposing(data, config, knowledge.known["test"], 19), epochs=1)
    rule = next(finding for finding in leaking if finding.split == "test" and finding.rule == leaks.MISSED)
    assert rule.is_leak and rule.share > 0.15


def test_a_recommender_that_learned_later_targets_is_found(make_config, prepared, tmp_path):
    """One row of each user too many is seen; the earlier rows are not."""
    everything = prepared["leave_one_out"].dataset
    rows = everything.rows_of(everything.inter_feat)
    later = TrainingPart(0.2, is_later=True)
    data = prepare_data(make_config("leave_one_out", checkpoint_dir=str(tmp_path)), part=later)
    assert len(data.dataset) == later.of(rows).sum() > 14000
    honest = rows.take(TrainingPart(0.2, is_later=False).of(rows))
    fresh, *_ = leaks.find_leaks(data, 1, honest)
    assert (fresh.rule, fresh.n, fresh.share, fresh.is_leak) == (leaks.LEARNED, len(data.dataset), 0.0, False)
    first_later = np.flatnonzero(later.of(rows) & (rows.users == rows.users[0]))[:1]
    leaking = rows.take(np.append(np.flatnonzero(~later.of(rows)), first_later))
    found, *_ = leaks.find_leaks(data, 1, leaking)
    assert found.is_leak and found.share == 1 / len(data.dataset)
    assert not [finding for finding in leaks.find_leaks(data, 5, honest) if finding.is_leak]


def test_learned_candidates_beside_held_out_targets_are_found(prepared):
    """Negatives out of all items, as an implementation that forgets the pool would draw them."""
    data = prepared["cold_items"]
    split = data.test_data.dataset
    feat = split.inter_feat
    before, rows = feat[CANDIDATE_FIELD].clone(), split.rows_of(feat)
    everywhere = CandidateSampler(data.dataset.knowledge.known["test"], 20, seed=2020)
    try:
        feat[CANDIDATE_FIELD][:] = torch.from_numpy(everywhere.draw(feat["row_id"].numpy(), rows, "test"))
        found = leaks.find_leaks(dataclasses.replace(data, sampler=everywhere), epochs=1)
    finally:
        feat[CANDIDATE_FIELD][:] = before
    rules = {(finding.split, finding.rule): finding for finding in found}
    assert rules["test", "held out from training"].is_leak and rules["test", "held out from training"].share > 0.2
    drawn = rules["train", leaks.HELD_OUT_LEARNED]
    assert drawn.is_leak and drawn.share > 0.9


def test_held_out_items_in_histories_and_counts_are_found(prepared):
    data = prepared["cold_items"]
    split, knowledge = data.test_data.dataset, data.dataset.knowledge
    feat, known = split.inter_feat, knowledge.known["train"]
    history, held_out = feat["item_id_list"], np.flatnonzero(split.is_held_out)
    before = history[0, 0].item()
    try:
        history[0, 0] = int(held_out[0])
        knowledge.known["train"] = knowledge.known["test"]
        found = {(finding.split, finding.rule): finding for finding in leaks.find_leaks(data, epochs=1)}
    finally:
        history[0, 0], knowledge.known["train"] = before, known
    assert found["test", leaks.HELD_OUT_SHOWN].is_leak and found["test", leaks.HELD_OUT_SHOWN].share == 1 / 923
    assert found["train", leaks.HELD_OUT_COUNTED].is_leak
    assert found["valid", leaks.HELD_OUT_SHOWN].share == 0


def test_a_column_that_tells_is_found(prepared):
    data = prepared["leave_one_out"]

    class SeededByTarget(CandidateSampler):
        """Stands the target at a column of its own."""

        def draw(self, row_ids, rows, *arguments):
            return _moved(super().draw(row_ids, rows, *arguments), rows.targets, rows.targets % 20)

    sampler = SeededByTarget(data.sampler.seen, 20, seed=1)
    feat = data.test_data.dataset.inter_feat
    before = feat[CANDIDATE_FIELD].clone()
    try:
        feat[CANDIDATE_FIELD][:] = feat[CANDIDATE_FIELD].new_tensor(
            _moved(before.numpy(), feat["item_id"].numpy(), feat["item_id"].numpy() % 20)
        )
        found = leaks.find_leaks(dataclasses.replace(data, sampler=sampler), epochs=1)
    finally:
        feat[CANDIDATE_FIELD][:] = before
    rule = next(f for f in found if f.split == "test" and f.rule == "column: where the item stood as a training target")
    assert rule.is_leak and rule.share > 0.3


def _moved(candidates, targets, columns):
    """Candidates with each target swapped into a column."""
    candidates, rows = candidates.copy(), np.arange(len(candidates))
    at = (candidates == targets[:, None]).argmax(axis=1)
    candidates[rows, at] = candidates[rows, columns]
    candidates[rows, columns] = targets
    return candidates


def test_ids_are_ranked_as_numbers_or_as_texts():
    assert leaks.rank_ids(["[PAD]", "10", "9", "110"]).tolist() == [0, 2, 1, 3]
    assert leaks.rank_ids(["[PAD]", "b10", "b9", "a"]).tolist() == [0, 2, 3, 1]


def test_histories_in_the_order_of_ids_are_found(make_config, tmp_path):
    """As in the released LastFM sequences: every history ascends, so the next id above is likelier the target."""
    folder = tmp_path / "sorted"
    folder.mkdir()
    rng = np.random.default_rng(1)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(200):
        lines += [f"u{user}\t{item}\t{second}" for second, item in enumerate(sorted(rng.permutation(500)[:15].tolist()))]
    (folder / "sorted.inter").write_text("\n".join(lines) + "\n")
    keys = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "checkpoint_dir": str(tmp_path / "saved")}
    data = prepare_data(make_config("leave_one_out", dataset="sorted", data_path=str(tmp_path), **keys))
    found = next(f for f in leaks.find_leaks(data, epochs=1) if f.split == "valid" and f.rule.startswith("item id"))
    assert found.share > 0.2 and not found.is_chance and found.reason == leaks.IDS


def test_credits_by_hand():
    scores = np.array([[3, 5, 5, 1], [3, 5, 5, 1], [0, 0, 0, 0], [9, 1, 1, 1]])
    candidates = np.array([[4, 5, 6, 7]] * 4)
    assert leaks.credits(scores, candidates, np.array([5, 4, 7, 4])).tolist() == [0.5, 0, 0.25, 1]


@pytest.fixture
def shop(tmp_path, capsys, caplog):
    """The keys of a shop whose users buy the same things again, and a function that runs the command on it."""
    folder = tmp_path / "shop"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(60):
        usual = rng.permutation(60)[:6]
        items = [*usual, *(int(rng.choice(usual)) if rng.random() < 0.9 else int(rng.integers(60)) for _ in range(8))]
        lines += [f"u{user}\ti{item}\t{second}" for second, item in enumerate(items)]
    (folder / "shop.inter").write_text("\n".join(lines) + "\n")

    def command(*keys, in_a_process=False):
        shown = ["--dataset=shop", f"--data_path={tmp_path}", "--protocol=leave_one_out", f"--checkpoint_dir={tmp_path}/saved"]
        shown += ["--load_col={inter: [user_id, item_id, timestamp]}", *keys]
        if in_a_process:
            words = [sys.executable, "-m", "recbole_llara", "leaks", *shown]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
            return done.returncode, done.stdout, done.stderr
        caplog.clear()
        status = leaks_main(shown)
        out, err = capsys.readouterr()
        return status, out, err + caplog.text

    return command


@pytest.mark.slow
def test_the_command_tells_of_repeat_purchases_and_of_both_mends(shop):
    def had_before(out):
        return next(line for line in out.splitlines() if line.startswith("test") and "history: had before" in line)

    status, out, err = shop(in_a_process=True)  # as a user sees it
    assert status == 0 and "repeated_targets: drop" in err and "explained: users take items again" in had_before(out)
    assert float(had_before(out).split()[4]) > 0.7
    status, out, err = shop("--repeated_targets=drop")
    assert status == 0 and not err and "chance" in had_before(out)
    status, out, err = shop("--repeated_targets=match")
    assert status == 0 and not err and float(had_before(out).split()[4]) < 0.3
    status, out, err = shop("--candidate_draw=mixed")
    assert status == 2 and "candidate_draw: found 'mixed' with model Popularity" in err and "--model=LLaRA" in err
    status, out, err = shop("--repeated_targets=often")
    assert status == 2 and "repeated_targets: found 'often', expected one of keep, drop, match" in err
