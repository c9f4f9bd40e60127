"""A finished run that answers for new users: the evaluator's own rankings, unseen items, names that people use."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recbole_llara
from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.serving.catalogue import ItemNames
from recbole_llara.utils.errors import UserError


@pytest.mark.parametrize("model", ["LLaRA", "TALLRec", "SASRec", "Caser", "Popularity", "EASE"])
def test_the_ranking_is_the_evaluators(model, make_run):
    folder = Path(make_run(model))
    run = recbole_llara.load(folder)
    for case in read_records(folder / "cases.jsonl"):
        history = [f"id:{item}" for item in case["history"]]
        candidates = [f"id:{item}" for item in case["candidates"]]
        found = run.recommend(history, k=len(candidates), candidates=candidates)
        scores = dict(zip(case["candidates"], case["scores"], strict=True))
        if model == "Caser":  # it knows users, and this one is new to it
            assert {item.item_id for item in found} == set(case["candidates"])
            continue
        assert found[0].item_id == case["answer"]
        assert [item.item_id for item in found] == sorted(case["candidates"], key=lambda item: -scores[item]) or len(
            set(scores.values())
        ) < len(scores)
        assert [item.score for item in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
        for item in found:
            assert item.score == pytest.approx(scores[item.item_id], abs=1e-5)
        assert all(item.recommender_rank is None for item in found)


def test_a_recommender_reads_more_of_a_history_than_the_prompt_shows(make_run):
    """EASE reads all of it, training rows as test rows; a loaded run likewise, and an old item changes the answer."""
    keys = {"rec_model": "EASE", "MAX_ITEM_LIST_LENGTH": 40, "prompt_history": 2, "recommender_score_token": "log_prob"}
    folder = Path(make_run("LLaRA", **keys, user_token=True, recommender_rows="earlier"))
    run = recbole_llara.load(folder)
    cases = read_records(folder / "cases.jsonl")
    assert max(len(case["history"]) for case in cases) > 2
    for case in cases:
        history, candidates = ([f"id:{item}" for item in case[name]] for name in ("history", "candidates"))
        found = {item.item_id: item.score for item in run.recommend(history, k=len(candidates), candidates=candidates)}
        assert found == pytest.approx(dict(zip(case["candidates"], case["scores"], strict=True)), abs=1e-5)
    history, candidates = [f"i{item}" for item in range(20)], [f"i{item}" for item in range(30, 40)]
    whole = {item.item_id: item.score for item in run.recommend(history, k=10, candidates=candidates)}
    latest = {item.item_id: item.score for item in run.recommend(history[-2:], k=10, candidates=candidates)}
    assert whole != pytest.approx(latest, abs=1e-5)
    prompts = run.model.encoder.encode(
        *(torch.arange(1, 1 + count)[None] for count in (20, 10)), None, run.model.representation, torch.zeros(1).long()
    )
    assert prompts.slot_items[prompts.slot_items > 0].tolist()[:2] == [19, 20]


def test_the_recommender_proposes_unseen_items_and_the_llm_ranks_them(run):
    history = ["Title 3 é", "i4", "id:i5"]
    found = run.recommend(history, k=10, retrieve_k=10)
    assert [item.rank for item in found] == list(range(1, 11))
    assert sorted(item.recommender_rank for item in found) == list(range(1, 11))
    assert not {item.item_id for item in found} & {"i3", "i4", "i5"}
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    first = run.retriever.propose([[run.names.find(name) for name in history]], 10)[0].tolist()
    assert {run.names.ids[item] for item in first} == {item.item_id for item in found}
    by_rank = sorted(found, key=lambda item: item.recommender_rank)
    assert [item.item_id for item in by_rank] == [run.names.ids[item] for item in first]
    assert len(run.recommend(history)) == 5


def test_a_batch_is_its_users(run):
    histories = [["i1"], ["i2", "i3", "i4"], [f"i{item}" for item in range(30)]]
    together = run.recommend_batch(histories, k=3)
    for history, found in zip(histories, together, strict=True):
        alone = run.recommend(history, k=3)
        assert [item.item_id for item in alone] == [item.item_id for item in found]
        assert [item.score for item in alone] == pytest.approx([item.score for item in found], abs=1e-4)
    assert run.recommend_batch([]) == []


def test_a_user_who_has_seen_nearly_everything(run):
    items = list(range(1, run.retriever.n_known))
    found = run.recommend([f"id:{run.names.ids[item]}" for item in items[:-3]], k=10)
    assert {item.item_id for item in found} == {run.names.ids[item] for item in items[-3:]}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"history": ["Titel 3 é"]}, r"no item is called 'Titel 3 é'; did you mean 'Title 3"),
        ({"history": ["id:i999"]}, r"no item is called 'id:i999'; did you mean 'i"),
        ({"history": []}, "history: found \\[\\], expected a list of at least one"),
        ({"history": "i1"}, "history: found 'i1', expected a list"),
        ({"history": [None]}, "item: found None, expected a title or an id"),
        ({"history": ["i1"], "k": 0}, "k: found 0"),
        ({"history": ["i1"], "retrieve_k": 61}, "retrieve_k: found 61, but there are 60 items"),
        ({"history": ["i1"], "retrieve_k": "many"}, "retrieve_k: found 'many'"),
        ({"history": ["i1"], "candidates": ["i2", "i2"]}, "candidates: found 1 items twice"),
        ({"history": ["i1"], "candidates": []}, "candidates: found \\[\\], expected"),
    ],
)
def test_wrong_questions(question, message, run):
    with pytest.raises(UserError, match=message):
        run.recommend(**question)


def test_what_is_no_finished_run(make_run, tmp_path):
    with pytest.raises(UserError, match=r"run: found no request\.yaml"):
        recbole_llara.load(tmp_path)
    folder = Path(make_run())
    (folder / "result.json").rename(tmp_path / "result.json")
    with pytest.raises(UserError, match="is not finished.*--resume="):
        recbole_llara.load(folder)


def test_a_moved_run_and_another_decoding(make_run, tmp_path):
    """Runs may be measured by ``generate`` and still rank; the folder of all runs may have moved."""
    folder = Path(make_run(decoding="generate"))
    moved = tmp_path / "moved"
    folder.parent.rename(moved)
    assert len(recbole_llara.load(moved / folder.name).recommend(["i1"])) == 5


def test_the_recommender_lies_in_the_folder_of_the_run(make_run, tmp_path):
    folder = Path(make_run())
    before = told(recbole_llara.load(folder))
    cache = folder.parent / "recommenders"
    cache.rename(tmp_path / "away")
    assert told(recbole_llara.load(folder)) == before
    (folder / "recommender" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lacks the folder recommender with the recommender that it read"):
        recbole_llara.load(folder)
    (given,) = (tmp_path / "away").glob("SASRec-*")
    assert told(recbole_llara.load(folder, rec_checkpoint=str(given))) == before
    assert not cache.exists()


def test_another_recommender_in_its_place_is_refused(make_run):
    folder, other = Path(make_run()), Path(make_run(rec_epochs=2))
    shutil.copyfile(other / "recommender" / "model.safetensors", folder / "recommender" / "model.safetensors")
    with pytest.raises(UserError, match="is not the recommender that"):
        recbole_llara.load(folder)


def test_a_run_without_a_recommender_proposes_what_is_popular(make_run):
    folder = Path(make_run("TALLRec"))
    run = recbole_llara.load(folder)
    assert run.recommender is None
    found = run.recommend(["i3", "i4"], k=10, retrieve_k=10)
    counts = run.data.dataset.training_counts
    order = sorted(range(1, len(counts)), key=lambda item: -counts[item])
    least = counts[order[11]]  # two that the user has may be among them
    assert len(found) == 10 and all(counts[run.names.find(f"id:{item.item_id}")] >= least for item in found)
    assert not {item.item_id for item in found} & {"i3", "i4"}


def test_proposed_items_are_listed_in_an_order_of_the_history(run):
    """Neither by number nor by the recommender's rank, and not in the order of equal scores."""
    rows = [[run.names.find(name) for name in history] for history in (["i1"], ["i2"], ["i2", "i3"])]
    proposed = run.retriever.propose(rows, 10)
    listed = run.listed(rows, proposed)
    assert torch.equal(listed.sort(1).values, proposed.sort(1).values)
    assert all(row != sorted(row) for row in listed.tolist()) and not torch.equal(listed, proposed)
    same = run.listed(rows, proposed.flip(1))
    assert torch.equal(same, listed)
    one = torch.arange(1, 11).expand(3, 10)
    assert len({tuple(row) for row in run.listed(rows, one).tolist()}) == 3
    ties = rank_candidates(torch.zeros(3, 10), one, question_keys(run._history(rows)))
    assert not torch.equal(ties, run.listed(rows, one))
    assert run.listed(rows[:1], torch.tensor([[5, 0, 7, 0]]))[0, 2:].tolist() == [0, 0]


def told(run):
    return [(item.item_id, item.title, item.score, item.recommender_rank) for item in run.recommend(["i1", "i2"], k=10)]


def test_names():
    names = ItemNames(["[PAD]", "1", "2", "3", "4"], ["", "Alien", "ALIEN", "2", "Café"])
    assert names.find("Alien") == 1 and names.find("ALIEN") == 2  # in their own case they differ
    with pytest.raises(UserError, match="2 items are called 'alien', expected one: give id:1 or id:2"):
        names.find("alien")
    assert names.find("2") == 3 and names.find(2) == 2 and names.find("id:2") == 2 and names.find("1") == 1
    assert names.find("cafe\u0301") == 4
    with pytest.raises(UserError, match="no item is called"):
        names.find("id:[PAD]")
    assert names.search("al", 20) == [1, 2]
    assert names.search("", 20) == [] and names.search("fé", 20) == [4] and names.search("zzz", 20) == []


def test_json_holds_it(run):
    from recbole_llara.serving.loaded import as_json

    told = json.loads(json.dumps(as_json(run.recommend(["i1"], k=1))))
    assert set(told[0]) == {"item_id", "title", "score", "rank", "recommender_rank"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["LLaRA", "SASRec"])
def test_loading_changes_nothing_of_the_process(model, make_run):
    """In a process of its own, since runs of others have changed this one."""
    code = """
import os, random, sys, warnings
import numpy, torch
import recbole_llara
from recbole_llara.serving.loaded import load

def state():
    draws = [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    switches = [torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark]
    tiny = torch.tensor([1e-39]) * 0.5  # zero where denormal numbers are flushed
    return {"environ": dict(os.environ), "filters": list(warnings.filters), "draws": draws, "switches": switches,
            "tiny": tiny.item(), "threads": torch.get_num_threads(), "folder": os.getcwd()}

before = state()
load(sys.argv[1]).recommend(["i1", "i2"], k=3)
after = state()
print([name for name in before if before[name] != after[name]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, make_run(model)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
