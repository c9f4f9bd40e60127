"""A table of vectors in the place of a recommender: whose rows reach the model, what is refused, and runs that rest on one."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import recbole_llara
from recbole_llara.config.run_config import RunConfig
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import NearestVectors, vectors_of_items
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

WIDTH = 8


def write_table(path: Path, ids: list[str], seed: int = 0) -> np.ndarray:
    """A random table of a format and its ids; returns the table."""
    table = np.random.default_rng(seed).standard_normal((len(ids), WIDTH)).astype(np.float32)
    np.save(path, table) if path.suffix == ".npy" else save_file({"features": table}, path)
    path.with_suffix(".ids.txt").write_text("\n".join(ids), encoding="utf-8")
    return table


@pytest.fixture
def table(keys, tmp_path):
    """Vectors of the toy's items in another order, and of one that the toy has not."""
    ids = ["other", *(f"i{item}" for item in reversed(range(60)))]
    return dict(zip(ids, write_table(tmp_path / "vectors.npy", ids), strict=True))


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.safetensors"])
def test_rows_are_found_by_their_ids(tmp_path, name):
    table = write_table(tmp_path / name, ["c", "a", "b"])
    rows = vectors_of_items(tmp_path / name, ["[PAD]", "a", "c"])
    assert rows.dtype is torch.float32 and torch.equal(
        rows, torch.from_numpy(np.stack([np.zeros(WIDTH), table[1], table[0]])).float()
    )


def test_missing_items_are_counted_and_named(tmp_path):
    write_table(tmp_path / "vectors.npy", ["a", "b"])
    with pytest.raises(UserError, match="lacks 6 of the 7 items of the dataset: 'c', 'd', 'e', 'f', 'g', ...;"):
        vectors_of_items(tmp_path / "vectors.npy", ["[PAD]", "a", *"cdefgh"])


@pytest.mark.parametrize(
    ("table", "ids", "message"),
    [
        (np.zeros((2, 3)), "ab", r"holds \[2, 3\] float64, expected a table \[n, d\] of float32"),
        (np.zeros(2, np.float32), "ab", r"holds \[2\] float32"),
        (np.zeros((2, 3), np.float32), "abc", "has 2 rows, but .*vectors.ids.txt 3 ids"),
        (np.zeros((2, 3), np.float32), "aa", "holds the id 'a' twice"),
        (np.full((2, 3), np.nan, np.float32), "ab", "vector of item 'a' holds NaN"),
        (np.array([{}, {}]), "ab", "cannot be read .*expected a .npy file of numbers"),
    ],
)
def test_another_form_is_refused(tmp_path, table, ids, message):
    np.save(tmp_path / "vectors.npy", table)
    (tmp_path / "vectors.ids.txt").write_text("\n".join(ids))
    with pytest.raises(UserError, match=f"item_embeddings: .*{message}"):
        vectors_of_items(tmp_path / "vectors.npy", ["[PAD]", *sorted(set(ids))])


def test_the_nearest_items_point_where_the_history_does():
    table = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [3, 1]])
    model = NearestVectors(table, "item_id_list")
    scores = model.full_sort_predict({"item_id_list": torch.tensor([[1, 1, 0], [3, 2, 0]])})
    centre = table - table[1:].mean(0)
    units = centre / centre.norm(dim=1, keepdim=True)
    assert torch.allclose(scores[0, 1:], units[1:] @ units[1])
    assert torch.allclose(scores[1, 1:], units[1:] @ (units[3] + units[2]) / 2)


@pytest.mark.parametrize(("value", "message"), [
    ("vectors.csv", "expected recommender, random or the path of a table"),
    ("randon", "did you mean 'random'"),
    ("absent.npy", "found no file 'absent.npy'"),
    ("alone.npy", "found no file 'alone.ids.txt'"),
])  # fmt: skip
def test_a_value_that_names_no_table_is_refused_with_the_configuration(keys, value, message):
    np.save("alone.npy", np.zeros((1, 2), np.float32))
    with pytest.raises(UserError, match=f"item_embeddings: .*{message}"):
        RunConfig("LLaRA", "toy", config_dict={**keys, "item_embeddings": value})


@pytest.mark.parametrize(("model", "further"), [("LLaRA", {}), ("RSLLM", {"representation": "hybrid_with_dsr", "epochs": 2})])
def test_the_projector_reads_the_table_and_nothing_is_trained(keys, make_trainer, table, model, further):
    trainer, data = make_trainer({**keys, "item_embeddings": "vectors.npy", **further}, model)
    found = trainer.model.item_tokens.item_vectors(torch.arange(1, data.dataset.item_num))
    expected = np.stack([table[item] for item in data.dataset.field2id_token["item_id"][1:]])
    expected = (expected - expected.mean(0)) / (expected - expected.mean(0)).std(ddof=1)
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert not Path(keys["checkpoint_dir"], "recommenders").exists()


def test_a_run_is_loaded_exported_and_refuses_another_table(keys, table, tmp_path, monkeypatch):
    written = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "item_embeddings": "vectors.npy", "full_rank": True})
    run = Path(written["run_dir"]).resolve()
    history = [f"i{item}" for item in range(3)]
    answer = recbole_llara.load(run).recommend(history)
    folder = export(run, tmp_path / "exported")
    assert not Path(keys["checkpoint_dir"], "recommenders").exists()

    write_table(tmp_path / "vectors.npy", list(table), seed=1)
    with pytest.raises(UserError, match="does not fit this LLaRA: recommender_sha256"):
        recbole_llara.load(run, item_embeddings="vectors.npy")
    own = run / "recommender" / "vectors.npy"
    before = own.read_bytes()
    shutil.copyfile(tmp_path / "vectors.npy", own)
    with pytest.raises(UserError, match="is not the recommender that"):
        recbole_llara.load(run)
    own.write_bytes(before)
    (tmp_path / "vectors.npy").unlink()
    assert recbole_llara.load(run).recommend(history) == answer
    monkeypatch.chdir(folder.rename(tmp_path / "moved").parent)
    assert [item.item_id for item in recbole_llara.load("moved").recommend(history)] == [item.item_id for item in answer]
    measured = run_recbole_llara("LLaRA", "toy", config_dict={
        **keys, "checkpoint": "moved/checkpoint", "item_embeddings": "moved/recommender/vectors.npy",
    })  # fmt: skip
    assert measured["test_result"] == written["test_result"]


def test_a_stopped_run_does_not_go_on_with_another_table(keys, table, tmp_path, monkeypatch):
    keys |= {"item_embeddings": "vectors.npy", "save_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llara.quick_start.build_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt) as stop:
            run_recbole_llara("LLaRA", "toy", config_dict=keys)
    (run,) = re.findall(r"--resume=(\S+)", str(stop.value))
    before = (tmp_path / "vectors.npy").read_bytes()
    write_table(tmp_path / "vectors.npy", list(table), seed=1)
    with pytest.raises(UserError, match="recommender_sha256"):
        run_recbole_llara(argv=[f"--resume={run}"])
    (tmp_path / "vectors.npy").write_bytes(before)
    assert run_recbole_llara(argv=[f"--resume={run}"])["run_dir"] == run
