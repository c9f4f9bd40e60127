"""A loaded run reads a user's unchanged history once, answers as if it read it each time, and keeps it in memory alone."""

from pathlib import Path

import pytest
import torch

import recbole_llara
from recbole_llara.model.answering import Questions, candidate_scores
from recbole_llara.serving.explain import explain
from recbole_llara.utils.errors import UserError

QUESTIONS = [
    (["i1", "i2", "i3", "i4"], ["i10", "i11", "i12", "i13", "i14"]),
    (["i1", "i2", "i3", "i4"], ["i20", "i21", "i12", "i13", "i15"]),
    (["i1", "i2", "i3", "i4", "i5"], ["i10", "i11", "i12", "i13", "i14"]),
    (["i7", "i2"], ["i10", "i11", "i12", "i13", "i14"]),
]


@pytest.fixture
def folder(make_run):
    return Path(make_run(MAX_ITEM_LIST_LENGTH=8))


def ranked(found):
    return [item.item_id for item in found]


@pytest.mark.parametrize("changes", [{}, {"eval_template": "all"}])
def test_rankings_are_those_of_prompts_read_whole(changes, folder):
    whole, kept = (recbole_llara.load(folder, prefix_cache=megabytes, **changes) for megabytes in (0, 16))
    assert whole.model.prefixes is None
    store = kept.model.prefixes
    for history, candidates in QUESTIONS * 2:
        expected, found = (run.recommend(history, 5, candidates) for run in (whole, kept))
        assert ranked(found) == ranked(expected)
        assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-4)
    assert store.reused > store.read / 4 and len(store) >= 3
    histories, candidates = zip(*QUESTIONS, strict=True)
    expected, found = (run.recommend_batch(histories, 5, candidates) for run in (whole, kept))
    assert [ranked(each) for each in found] == [ranked(each) for each in expected]
    changes = [explain(run, histories[2], candidates=candidates[2]).removals for run in (whole, kept)]
    assert [one.answer.change for one in changes[1]] == pytest.approx([one.answer.change for one in changes[0]], abs=1e-4)


def test_histories_stay_in_memory_and_with_their_run(folder):
    def files():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = files()
    run, other = recbole_llara.load(folder), recbole_llara.load(folder)
    run.recommend(*QUESTIONS[0][:1], 5, QUESTIONS[0][1])
    assert len(run.model.prefixes) == 1 and len(other.model.prefixes) == 0
    assert files() == before


def test_a_row_that_is_settled_alone_is_read_whole(folder):
    """What stood beside a row when it was kept would else have a say in its near ties."""
    run = recbole_llara.load(folder)
    history, candidates = ([run.names.find(f"id:{item}") for item in items] for items in QUESTIONS[0])
    questions = Questions(torch.tensor([history]), torch.tensor([candidates]), torch.zeros(1, dtype=torch.int64))
    store = run.model.prefixes
    with torch.no_grad():
        candidate_scores(run.model, questions, is_anew=True)
        assert store.read == store.reused == len(store) == 0
        candidate_scores(run.model, questions)
    assert store.read > 0 and len(store) == 1


@pytest.mark.parametrize("value", [-1, "much"])
def test_a_size_that_is_none_is_refused(value, folder):
    with pytest.raises(UserError, match="prefix_cache"):
        recbole_llara.load(folder, prefix_cache=value)
