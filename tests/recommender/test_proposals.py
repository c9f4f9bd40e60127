"""Training candidates out of what the frozen recommender proposes."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import ROW_FIELD, prepare_data
from recbole_llara.recommender import proposals
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.recommender.proposals import with_proposals
from recbole_llara.recommender.retriever import Retriever

TOP = 12


@pytest.fixture(autouse=True)
def _work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_data(tmp_path):
    """A function of further keys that gives a run's config, its data, and the data with proposals."""
    toy = write_toy_dataset(tmp_path)

    def make(model="LLaRA", **keys):
        drawn = {"candidate_draw": "recommender", "candidate_draw_top": TOP, "rec_epochs": 2}
        config = RunConfig(model, "toy", config_dict={**toy, **drawn, **keys})
        data = prepare_data(config)
        return config, data, with_proposals(config, data)[0]

    return make


def rows_and_draws(data, epoch=0):
    feat = data.dataset.inter_feat
    numbers, rows = feat[ROW_FIELD].numpy(), data.dataset.rows_of(feat)
    return numbers, rows, data.sampler.draw(numbers, rows, "train", epoch)


@pytest.mark.parametrize("keys", [{}, {"candidate_exclude": "window"}, {"rec_model": "Caser"}])
def test_the_table_is_the_recommenders_ranking_row_by_row(make_data, keys):
    """Against each row's own list, by a plain loop: all scores sorted, what cannot be a negative left out."""
    config, data, proposing = make_data(**keys)
    _, model, rec_config = recommender_model(config, data)
    retriever, table = Retriever(model, rec_config, data.sampler.n_items), proposing.sampler.proposals
    numbers, rows, draws = rows_and_draws(proposing)
    known = data.dataset.knowledge.known["train"]
    of_user = {
        user: set((known.keys[known.keys // known.n_items == user] % known.n_items).tolist()) for user in set(rows.users)
    }
    for place in range(0, len(numbers), 17):
        history, user, target = rows.history[place], int(rows.users[place]), int(rows.targets[place])
        left_out = set(history.tolist()) if "candidate_exclude" in keys else of_user[user]
        scores = retriever.scores([[item for item in history.tolist() if item]], [user])[0].tolist()
        eligible = [item for item in range(1, known.n_items) if item not in left_out | {target}]
        expected = sorted(eligible, key=lambda item: -scores[item])[:TOP]
        found = table.of(numbers[place : place + 1])[0].tolist()
        assert len(set(found) & set(expected)) >= TOP - 1  # the scores of the last two may differ by rounding alone
        assert np.allclose([scores[item] for item in found], [scores[item] for item in expected], atol=1e-4)
        assert set(draws[place].tolist()) - {target} <= set(found)


def test_mixed_draws_half_of_them(make_data):
    _, _, proposing = make_data(candidate_draw="mixed", candidate_num=8)
    numbers, _, draws = rows_and_draws(proposing)
    table = proposing.sampler.proposals.of(numbers)
    inside = (draws[:, :, None] == table[:, None, :]).any(axis=2).sum(axis=1)
    assert proposing.sampler.proposed_num == 4 and inside.min() == 4 and inside.max() < 8


def test_draws_are_those_of_a_sample_and_of_the_cache(make_data, monkeypatch):
    _, _, proposing = make_data()
    numbers, _, draws = rows_and_draws(proposing)
    _, _, sampled = make_data(max_train_rows=48)
    some, _, of_some = rows_and_draws(sampled)
    assert len(some) == 48 and (draws[np.searchsorted(numbers, some)] == of_some).mean() > 0.99  # rounding aside
    monkeypatch.setattr(proposals, "propose", lambda *_: pytest.fail("made again"))
    _, _, again = make_data()
    assert again.sampler.proposals.sha256 == proposing.sampler.proposals.sha256
    assert (rows_and_draws(again)[2] == draws).all()


def test_what_the_table_depends_on_is_another_table(make_data):
    digests = {
        make_data(**keys)[2].sampler.proposals.sha256
        for keys in ({}, {"candidate_draw_top": 5}, {"rec_epochs": 1}, {"candidate_exclude": "window"}, {"max_train_rows": 9})
    }
    assert len(digests) == 5


def test_a_damaged_table_is_made_again(make_data, tmp_path, caplog):
    whole = make_data()[2].sampler.proposals
    (path,) = (tmp_path / "saved" / "proposals").glob("*.safetensors")
    for damage in (lambda: path.write_bytes(b"none"), lambda: save_file({"rows": whole.rows, "items": whole.items + 1}, path)):
        damage()
        caplog.clear()
        assert make_data()[2].sampler.proposals.sha256 == whole.sha256
        assert "damaged" in caplog.text


def test_validation_and_test_rows_say_nothing_to_the_draws(make_data, tmp_path):
    """The same training rows, recommender and seed, under other later items: the same draws, bit for bit."""
    _, data, proposing = make_data()
    _, _, draws = rows_and_draws(proposing)
    place = tmp_path / "toy" / "toy.inter"
    header, *lines = place.read_text().splitlines()
    lines = [line.split("\t") for line in lines]
    ends = [index for index, line in enumerate(lines) if index + 1 == len(lines) or lines[index + 1][0] != line[0]]
    for last in ends:  # the test item and the validation item of each user change places with those of nobody
        lines[last][1], lines[last - 1][1] = f"i{(7 * last) % 60}", f"i{(7 * last + 11) % 60}"
    place.write_text("\n".join([header, *map("\t".join, lines)]) + "\n")
    weights = next((tmp_path / "saved" / "recommenders").glob("SASRec-*"))
    _, other, others = make_data(rec_checkpoint=str(weights))
    assert not torch.equal(other.test_data.dataset.inter_feat["item_id"], data.test_data.dataset.inter_feat["item_id"])
    assert torch.equal(other.dataset.inter_feat["item_id_list"], data.dataset.inter_feat["item_id_list"])
    assert (rows_and_draws(others)[2] == draws).all()


def test_vectors_propose_what_lies_near_the_history(make_data, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    np.save(tmp_path / "own.npy", vectors)
    (tmp_path / "own.ids.txt").write_text("\n".join(f"i{item}" for item in range(60)))
    config, data, proposing = make_data(item_embeddings=str(tmp_path / "own.npy"))
    assert not (tmp_path / "saved" / "recommenders").exists()
    retriever = Retriever(*recommender_model(config, data)[1:], data.sampler.n_items)
    _, rows, _ = rows_and_draws(proposing)
    scores = retriever.scores([rows.history[0][rows.history[0] > 0].tolist()])[0]
    first = proposing.sampler.proposals.items[0]
    assert (scores[torch.from_numpy(first[:-1].astype(int))] >= scores[torch.from_numpy(first[1:].astype(int))]).all()


def test_uniform_draws_are_as_they_were(make_data):
    _, data, same = make_data(candidate_draw="uniform")
    assert same is data and data.sampler.proposals is None


def test_where_few_are_proposed_the_others_are_uniform(make_data):
    _, data, proposing = make_data(candidate_draw_top=3)
    numbers, rows, draws = rows_and_draws(proposing)
    uniform = data.sampler.draw(numbers, rows, "train")
    table = proposing.sampler.proposals.of(numbers)
    for row in range(0, len(numbers), 29):
        assert set(table[row]) <= set(draws[row]) and set(draws[row]) - set(table[row]) <= set(uniform[row])


def test_the_sampler_refuses_rows_it_has_no_proposals_for(make_data):
    _, _, proposing = make_data(max_train_rows=20)
    numbers, rows, _ = rows_and_draws(proposing)
    with pytest.raises(ValueError, match="proposed for"):
        proposing.sampler.draw(numbers + 1000, rows, "train")
