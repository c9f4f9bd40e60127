"""Items that came, were renamed or went after training: new ones are read as held-out ones are, and no other item's answer changes."""

import pytest
import torch

from recbole_llara.serving.items import read_items, write_items
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

COLD = {"protocol": "cold_items", "cold_item_share": 0.25, "candidate_num": 5, "topk": [1, 5], "rec_eval_step": 0}
CONCLUSIONS = {"user_token": True, "recommender_score_token": "rank", "candidate_order": "recommender"}
HISTORY = ["i7", "i8", "i10"]
NEW = [{"item_id": f"n{number}", "title": f"Unseen tale {number}"} for number in range(8)]


def scores_of(run, history, candidates):
    """Scores by id."""
    return {item.item_id: item.score for item in run.recommend(history, k=len(candidates), candidates=candidates)}


def ids_of(run, *items):
    return [str(run.names.ids[item]) for item in items]


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("LLaRA", {"new_item_token": "text"}),
        (
            "LLaRA",
            {"new_item_token": "neighbours", "new_item_neighbours": 3, "user_token": True, "recommender_score_token": "rank"},
        ),
        ("LLaRA", {"new_item_token": "placeholder", "item_token_dropout": 0.2}),
        ("TALLRec", {}),
    ],
)
def test_a_new_item_is_read_as_one_that_was_held_out(make_run, model, given):
    """An item of the same text as a held-out item, put in its place, has its score: what the evaluation gave held-out items."""
    run = load(make_run(model, **COLD, **given))
    held_out = [item for item in run.data.dataset.is_held_out.nonzero()[0].tolist() if item]
    history = ids_of(run, *[item for item in range(1, len(run.names.ids)) if item not in held_out][:3])
    (target,), others = ids_of(run, held_out[0]), ids_of(run, *held_out[1:4])
    before = scores_of(run, history, [*others, target])
    found = run.add_items([{"item_id": "new", "title": run.names.titles[held_out[0]]}])
    assert (found.added, found.renamed, found.removed, found.returned) == (1, 0, 0, 0)
    after = scores_of(run, history, [*others, "new"])
    assert after.pop("new") == pytest.approx(before.pop(target), abs=1e-5)
    assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("eval_dtype", ["bfloat16", "float16"])
def test_new_items_are_read_by_weights_that_are_held_smaller(make_run, eval_dtype):
    """Nearly as by whole ones: the vector made for an item has the direction of the one that training made."""
    run = load(make_run(**COLD, new_item_token="text", llm_dtype="float32"), eval_dtype=eval_dtype)
    tokens, held_out = run.model.item_tokens, run.data.dataset.is_held_out.nonzero()[0].tolist()[-1]
    run.add_items([{"item_id": "new", "title": run.names.titles[held_out]}])
    made = tokens.item_embeddings[[held_out, len(run.names.ids) - 1]]
    assert torch.cosine_similarity(*made, dim=0) > 0.95
    assert len(run.recommend(HISTORY, k=3)) == 3


@pytest.mark.parametrize("model", ["LLaRA", "RSLLM", "ZeroShotLLM"])
@pytest.mark.parametrize("rec_model", ["SASRec", "GRU4Rec", "Caser"])
def test_answers_about_others_stay(make_run, model, rec_model):
    given = {"LLaRA": CONCLUSIONS, "RSLLM": {"epochs": 2, "stage_1_epochs": 1}, "ZeroShotLLM": {"epochs": 0}}[model]
    run = load(make_run(model, rec_model=rec_model, **given))
    known = ids_of(run, *range(1, 6))
    before = scores_of(run, HISTORY, known)
    run.add_items(NEW)
    assert scores_of(run, HISTORY, known) == pytest.approx(before, abs=1e-5)
    assert set(scores_of(run, [*HISTORY, "n1"], ["n2", "n3", *known[:3]])) == {"n2", "n3", *known[:3]}


def test_new_items_are_proposed_and_removed_ones_are_not(run):
    plain = run.recommend(HISTORY, k=8, retrieve_k=8)
    assert not {item.item_id for item in plain} & {item["item_id"] for item in NEW}
    run.add_items(NEW)
    found = run.recommend(HISTORY, k=8, retrieve_k=8)
    new = [item for item in found if item.item_id.startswith("n")]
    assert len(new) >= 2 and len({item.item_id for item in found}) == 8  # a quarter at least
    assert all(item.title.startswith("Unseen tale") for item in new)
    gone = [{"item_id": item.item_id, "removed": True} for item in (new[0], *(one for one in found if one not in new))]
    assert run.add_items(gone).removed == len(gone)
    left = run.recommend(HISTORY, k=8, retrieve_k=8)
    assert not {item.item_id for item in left} & {item["item_id"] for item in gone} and len(left) == 8
    with pytest.raises(UserError, match=f"candidates: found '{new[0].item_id}', which was removed"):
        run.recommend(HISTORY, candidates=[new[0].item_id, "i1"])
    assert run.recommend([*HISTORY, new[0].item_id], k=1)  # a history may hold it
    assert run.add_items([{**gone[0], "removed": False}]).returned == 1
    assert new[0].item_id in {item.item_id for item in run.recommend(HISTORY, k=8, candidates=[new[0].item_id, "i1"])}
    seen = run.recommend([item["item_id"] for item in NEW], k=8, retrieve_k=8)
    assert not any(item.item_id.startswith("n") for item in seen)


def test_a_renamed_item_is_read_by_its_new_title(run):
    title = run.names.titles[run.names.find("i5")]
    before = scores_of(run, HISTORY, ["i5", "i1", "i2"])
    assert run.add_items([{"item_id": "i5", "title": "A better name"}]).renamed == 1
    assert run.names.find("a better NAME") == run.names.find("id:i5")
    with pytest.raises(UserError, match="no item is called"):
        run.names.find(title)
    assert scores_of(run, HISTORY, ["i5", "i1", "i2"])["i5"] != before["i5"]
    assert run.names.told(run.names.search("better", 3)[0]) == {"item_id": "i5", "title": "A better name"}
    assert run.add_items([{"item_id": "i5", "title": "A better name"}]).renamed == 0
    run.add_items([{"item_id": "i5", "title": title}])
    assert scores_of(run, HISTORY, ["i5", "i1", "i2"]) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("order", ["at once", "one by one"])
def test_a_file_brings_back_what_was_told(make_run, tmp_path, order):
    """A run that is loaded again and reads the file answers as the one that was told, in however many calls."""
    folder = make_run(new_item_token="text", **CONCLUSIONS)
    told, rows = (
        load(folder),
        [
            *NEW,
            {"item_id": "n1", "title": "Renamed tale"},
            {"item_id": "i9", "title": "Nine"},
            {"item_id": "n3", "removed": True},
        ],
    )
    for part in [rows[:8], rows[8:]] if order == "at once" else [[row] for row in rows]:
        told.add_items(part)
    write_items(tmp_path / "more.item", told.config, list(told.changing.changes.values()))
    again = load(folder)
    done = again.changing.change(read_items(tmp_path / "more.item", again.config))
    assert (done.added, done.renamed, done.removed) == (8, 1, 1)
    candidates = ["n1", "n2", "i9", "i1"]
    assert scores_of(again, [*HISTORY, "n5"], candidates) == pytest.approx(
        scores_of(told, [*HISTORY, "n5"], candidates), abs=1e-5
    )
    assert again.recommend(HISTORY, k=3, retrieve_k=8)[0].item_id == told.recommend(HISTORY, k=3, retrieve_k=8)[0].item_id
    assert (tmp_path / "more.item").read_text(encoding="utf-8").splitlines()[:3] == [
        "item_id:token\ttitle:token_seq\tremoved:token", "n0\tUnseen tale 0\t", "n1\tRenamed tale\t",
    ]  # fmt: skip


def test_fields_of_new_items_are_shown(make_run):
    run = load(make_run(item_fields=["popularity"]))
    run.add_items(NEW[:1])
    assert set(scores_of(run, [*HISTORY, "n0"], ["i1", "i2"])) == {"i1", "i2"}
    with pytest.raises(UserError, match="items: found the entry 'year', expected some of item_id, title, removed"):
        run.add_items([{**NEW[1], "year": 1990}])


def test_ten_thousand_at_once(run):
    many = [{"item_id": f"m{number}", "title": f"Tale {number} of many"} for number in range(10_000)]
    assert run.add_items(many).added == 10_000
    assert scores_of(run, HISTORY, ["m1", "m9999"]).keys() == {"m1", "m9999"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"item_id": "n1"}], "item 'n1' is not known and has no title"),
        ([{"item_id": "n1", "title": "\u200b "}], "title of item 'n1': found .* expected a text with a visible character"),
        ([{"item_id": "n1", "title": "a\ud800"}], "half of a surrogate pair"),
        ([{"title": "No id"}], "item_id: found None"),
        ([{"item_id": "[PAD]", "title": "x"}], "item_id: found"),
        ([{"item_id": True, "title": "x"}], "item_id: found True"),
        ([{"item_id": "n1", "title": "x"}, {"item_id": "n1", "title": "y"}], "found item 'n1' twice"),
        ([{"item_id": "n1", "removed": True}], "not known and has no title"),
        ([{"item_id": "i1", "removed": "perhaps"}], "removed of item 'i1': found 'perhaps', expected 1 or 0"),
        ([{"item_id": "n1", "titel": "x"}], "found the entry 'titel'"),
        (["n1"], "found 'n1', expected an object"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_changes(run, rows, expected):
    before = scores_of(run, HISTORY, ["i1", "i2", "i3"])
    with pytest.raises(UserError, match=expected):
        run.add_items([{"item_id": "good", "title": "Good"}, *rows])
    assert run.names.of_id("good") is None and not run.changing.changes
    assert scores_of(run, HISTORY, ["i1", "i2", "i3"]) == pytest.approx(before, abs=1e-5)


def test_two_items_of_one_title_are_told_apart_by_id(run):
    run.add_items([{"item_id": "twin", "title": run.names.titles[run.names.find("i5")]}])
    with pytest.raises(UserError, match="2 items are called"):
        run.names.find(run.names.titles[run.names.find("id:i5")])
    assert set(scores_of(run, HISTORY, ["id:twin", "id:i5"])) == {"twin", "i5"}


def test_a_recommender_alone_and_one_with_a_bias_for_each_item_are_refused(make_run):
    with pytest.raises(UserError, match="SASRec knows items by their interactions alone"):
        load(make_run("SASRec")).add_items(NEW)
    run = load(make_run(rec_model="BERT4Rec"))
    before = scores_of(run, HISTORY, ["i1", "i2", "i3"])
    with pytest.raises(UserError, match="BERT4Rec cannot score items that it has not learned from"):
        run.add_items(NEW)
    assert run.names.of_id("n1") is None and scores_of(run, HISTORY, ["i1", "i2", "i3"]) == before


def test_a_sum_ranks_new_items(make_run):
    run = load(make_run(fusion="validation", max_eval_rows=6))
    run.add_items(NEW)
    found = run.recommend(HISTORY, k=8, retrieve_k=8)
    assert any(item.item_id.startswith("n") for item in found) and run.name == "LLaRA + SASRec"
