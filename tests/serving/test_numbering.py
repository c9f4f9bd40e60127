"""A trained model asked about the same items under other numbers: the same answers, or a refusal, never other items."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from toy_run import toy_keys

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import prepare_recommender
from recbole_llara.serving.export import export
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

STOCK = ("SASRec", "GRU4Rec", "Caser", "Popularity", "EASE", "MoRec", "SASRecF")
OURS = ("LLaRA", "RSLLM", "TALLRec")
# What a stock model needs of the keys of an LLM's run.
SHARED = (
    "data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress",
)  # fmt: skip
FEATURES = {
    "selected_features": ["title"],
    "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
}
OWN = {
    "SASRecF": FEATURES,
    "MoRec": {"text_encoder_path": "tiny"},
    "LLaRA": {},
    "RSLLM": {"representation": "text_id"},
}
HISTORY = ["i7", "i8", "i10"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_llm, make_tokenizer):
    """A run of each model over one file, and what each recommended; the folder is copied before it is touched."""
    folder, patch = tmp_path_factory.mktemp("numbering"), pytest.MonkeyPatch()
    patch.chdir(folder)
    keys = toy_keys(folder, make_llm, make_tokenizer)
    told = {}
    for model in (*STOCK, *OURS):
        own = (
            keys
            if model in OURS
            else {**{key: keys[key] for key in SHARED}, "epochs": 0 if model in ("Popularity", "EASE") else 3}
        )
        run = Path(run_recbole_llara(model, "toy", config_dict={**own, **OWN.get(model, {})})["run_dir"])
        told[model] = run, load(run).recommend(HISTORY, k=10)
    patch.undo()
    return folder, keys, told


@pytest.fixture
def moved(runs, tmp_path, monkeypatch):
    """The keys of the same runs in a folder of the test's own, a change of its interactions, and where a run lies."""
    folder, keys, told = runs
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    here = {key: value.replace(str(folder), str(copy)) if isinstance(value, str) else value for key, value in keys.items()}

    def change(lines):
        file = copy / "toy" / "toy.inter"
        head, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text(head + "".join(lines(rows)), encoding="utf-8")

    def place(model):
        return copy / told[model][0].relative_to(folder), told[model][1]

    return here, change, place


def backwards(rows):
    return rows[::-1]


def shuffled(rows):
    return random.Random(5).sample(rows, len(rows))


def told(items):
    return [(item.item_id, item.title, item.score, item.recommender_rank) for item in items]


@pytest.mark.parametrize("model", [*STOCK, *OURS])
def test_the_folder_of_a_run_is_all_that_answers_need(model, moved, tmp_path):
    """But for the LLM: data, cached recommenders, text features and candidates are gone, and so is the folder of all runs."""
    keys, _, place = moved
    run, before = place(model)
    alone = run.rename(tmp_path / "alone")
    shutil.move(keys["llm_path"], tmp_path / "llm")
    shutil.rmtree(tmp_path / "copy")
    assert told(load(alone, **({"llm_path": str(tmp_path / "llm")} if model in OURS else {})).recommend(HISTORY, k=10)) == told(
        before
    )


def measure(model, run, keys):
    own = keys if model in OURS else {key: keys[key] for key in SHARED}
    checkpoint = run / ("checkpoint" if model in OURS else "checkpoint.safetensors")
    given = {**own, **OWN.get(model, {}), "epochs": 3, "checkpoint": str(checkpoint)}
    return run_recbole_llara(model, "toy", config_dict=given)


@pytest.mark.parametrize("model", [*STOCK, *OURS])
def test_another_order_of_the_file_changes_no_measurement(model, moved):
    keys, change, place = moved
    run, _ = place(model)
    change(backwards)
    again = measure(model, run, keys)
    result, before = (json.loads(Path(path, "result.json").read_text()) for path in (again["run_dir"], run))
    assert result["metrics"]["test"] == before["metrics"]["test"] and result["candidate_sha256"] == before["candidate_sha256"]
    answers, others = (read_records(Path(path, "cases.jsonl")) for path in (again["run_dir"], run))
    assert answers == others


def test_a_recommender_under_an_llm_keeps_its_items(moved):
    """By ``rec_checkpoint``, a file of another run: each id has the embedding that it had."""
    keys, change, place = moved
    checkpoint = place("SASRec")[0] / "checkpoint.safetensors"

    def embeddings(**changes):
        config = RunConfig("LLaRA", "toy", config_dict={**keys, "rec_checkpoint": str(checkpoint), **changes})
        data = prepare_data(config)
        table = prepare_recommender(config, data).item_embeddings
        return dict(zip(map(str, data.dataset.field2id_token["item_id"]), table.tolist(), strict=True)), table

    before, table = embeddings()
    change(backwards)
    after, again = embeddings()
    assert after == before and torch.equal(again, table)


def test_an_exported_run_keeps_its_items(moved, tmp_path):
    keys, change, place = moved
    run, before = place("LLaRA")
    out = export(run, tmp_path / "out", merge=True, data_path=keys["data_path"], llm_path=keys["llm_path"])
    change(shuffled)
    found = load(out, data_path=keys["data_path"]).recommend(HISTORY, k=10)
    assert [(item.item_id, item.title) for item in found] == [(item.item_id, item.title) for item in before]


def test_a_checkpoint_and_a_recommender_of_other_numbers_do_not_go_together(moved):
    """The run's recommender is trained anew on the other order of the file; its digest is another one, too."""
    keys, change, place = moved
    run, _ = place("TALLRec")
    change(backwards)
    trained = run_recbole_llara("SASRec", "toy", config_dict={**{key: keys[key] for key in SHARED}, "epochs": 1})
    with pytest.raises(UserError, match="numbers its items otherwise than the data of this run"):
        load(run, data_path=keys["data_path"], llm_path=keys["llm_path"], rec_checkpoint=trained["checkpoint"])


@pytest.mark.parametrize("model", [*STOCK, *OURS])
def test_other_items_are_refused_by_name(model, moved):
    keys, change, place = moved
    run, _ = place(model)
    change(lambda rows: [row for row in rows if "\ti7\t" not in row] + ["u1\tnew\t99\n"])
    expected = r"checkpoint: .* knows 60 items, this run has 60: 1 unknown to it, such as 'new', 1 known to it and not here, such as 'i7'"
    if model == "SASRecF":  # its .item file is read too, where i7 stands still and the new one does not
        expected = r"other items had interactions: 0 had none, 1 have none here, such as 'i7'"
    with pytest.raises(UserError, match=expected):
        measure(model, run, keys)
