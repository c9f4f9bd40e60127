"""Ready-made windows: what the files say is what a run reads; LLaRA's released windows convert and run."""

from pathlib import Path

import pytest

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, prepare_data
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

RELEASED = Path(__file__).resolve().parents[4] / "shared" / "data" / "llara_steam"
TITLES = "item_id\ttitle\n" + "".join(f"{item}\tGame {item}\n" for item in range(40))
ROWS = ["0 1 2 40", "5 6 40 40", "7 40 40 40", "3 4 5 6 7 8 9 10 11 12 13 14"]
NEXT = [3, 7, 8, 15]


def _windows(folder, rows=ROWS, following=NEXT):
    lengths = [sum(item != "40" for item in row.split()) for row in rows]
    lines = [f"{row}\t{length}\t{after}" for row, length, after in zip(rows, lengths, following, strict=True)]
    (folder / "windows.tsv").write_text("seq_padded10\tlen_seq\tnext\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / "items.tsv").write_text(TITLES, encoding="utf-8")
    return [f"--{split}={folder / 'windows.tsv'}" for split in ("train", "valid", "test")] + [f"--item={folder / 'items.tsv'}"]


def _keys(folder, **keys):
    common = {
        "data_path": str(folder / "out"),
        "protocol": "windows",
        "title_field": "title",
        "checkpoint_dir": str(folder / "saved"),
    }
    return {**common, "candidate_num": 5, **keys}


def test_a_run_reads_the_very_windows(tmp_path, run, read):
    report = run("windows", *_windows(tmp_path), "--dataset", "made", "--out", tmp_path / "out")
    assert "12 interactions" in report and "a user of its own" in report
    assert report.endswith(f"recbole-llara --model=SASRec --dataset=made --data_path={tmp_path / 'out'} --protocol=windows\n")
    assert read(tmp_path / "out" / "made" / "made.valid.inter")[1][0] == ["valid-0", "0 1 2", "3"]
    data = prepare_data(RunConfig("SASRec", "made", config_dict=_keys(tmp_path)))
    rows = data.valid_data.dataset.inter_feat
    rows = rows[rows["row_id"].argsort()]
    names = data.dataset.field2id_token["item_id"]
    histories = [[names[item] for item in row if item] for row in rows["item_id_list"].tolist()]
    expected = [[item for item in row.split() if item != "40"][-10:] for row in ROWS]  # the last ten of twelve
    assert histories == expected and rows["item_length"].tolist() == [3, 2, 1, 10]
    assert [names[item] for item in rows["item_id"].tolist()] == [str(item) for item in NEXT]
    for history, target, candidates in zip(histories, NEXT, rows[CANDIDATE_FIELD].tolist(), strict=True):
        shown = {names[item] for item in candidates}
        assert str(target) in shown and not shown & set(history)


def test_short_histories_are_left_out_by_key(tmp_path, run, caplog):
    caplog.set_level("INFO")
    run("windows", *_windows(tmp_path), "--dataset", "made", "--out", tmp_path / "out")
    data = prepare_data(RunConfig("SASRec", "made", config_dict=_keys(tmp_path, min_eval_history=3, min_train_history=2)))
    counts = [len(loader.dataset) for loader in (data.train_data, data.valid_data, data.test_data)]
    assert counts == [3, 2, 2]
    for told in ("train: 1 of 4", "valid: 2 of 4", "test: 2 of 4"):
        assert f"{told} rows left out, their history is shorter than" in caplog.text


@pytest.mark.parametrize("model", ["Caser", "GRU4Rec", "LLaRA"])
def test_models_run_on_windows(tmp_path, run, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    run("windows", *_windows(tmp_path), "--dataset", "made", "--out", tmp_path / "out")
    small = {"epochs": 1, "train_batch_size": 4, "show_progress": False} | ({"rec_epochs": 1} if model == "LLaRA" else {})
    result = run_recbole_llara(model, "made", config_dict=_keys(tmp_path, **small))
    assert 0 <= result["test_result"]["hit@1"] <= 1


def test_what_are_no_windows_is_refused(tmp_path, run):
    words = _windows(tmp_path)
    with pytest.raises(UserError, match="found no --test, --dataset"):
        run("windows", *words[:2], words[3], "--out", tmp_path / "out")
    with pytest.raises(UserError, match="has the columns item_id, title, expected seq, len_seq, next"):
        run("windows", f"--train={tmp_path / 'items.tsv'}", *words[1:], "--dataset", "made", "--out", tmp_path / "out")
    _windows(tmp_path, ["0 1 77"], [3])
    with pytest.raises(UserError, match="found '77', expected an item with a title"):
        run("windows", *words, "--dataset", "made", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("made*"))
    _windows(tmp_path)
    run("windows", *words, "--dataset", "made", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="holds made.test.inter, .* expected made.inter; protocol windows reads"):
        RunConfig("SASRec", "made", config_dict=_keys(tmp_path, protocol="leave_one_out"))


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released windows are not at ../shared/data/llara_steam")
def test_the_released_steam_windows_convert_and_run(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"--train={RELEASED / 'train_sample1000.tsv'}", f"--item={RELEASED / 'items.tsv'}"]
    files += [f"--{split}={RELEASED / 'val.tsv'}" for split in ("valid", "test")]
    run("windows", *files, "--dataset", "llara-steam", "--out", tmp_path / "out")
    keys = {"data_path": str(tmp_path / "out"), "protocol": "windows", "min_eval_history": 3, "min_train_history": 3}
    data = prepare_data(RunConfig("SASRec", "llara-steam", config_dict={**keys, "checkpoint_dir": str(tmp_path / "saved")}))
    assert len(data.valid_data.dataset) == 1184  # of 1,194, as the papers have after the same filter
    titles = set(data.catalogue.titles)
    assert {"Half-Life", "Ironbound"} <= titles
    result = run_recbole_llara("SASRec", "llara-steam", config_dict={**keys, "epochs": 1, "show_progress": False})
    assert 0 <= result["test_result"]["hit@1"] <= 1
