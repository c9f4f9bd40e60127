"""hetrec2011-lastfm-2k: the papers' sequences to the row, and our own by date."""

from collections import Counter
from pathlib import Path

import pytest

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.titles import load_catalogue
from recbole_llara.utils.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
RAW = SHARED / "lastfm_hetrec2k_raw"
needs_raw = pytest.mark.skipif(not RAW.is_dir(), reason="hetrec2011-lastfm-2k is not at ../shared/data/lastfm_hetrec2k_raw")


def _small(folder, taggings):
    """A raw folder: artists 1 to 9, and (user, artist, day, month, year)."""
    folder.mkdir()
    artists = ["id\tname\turl\tpictureURL", *(f"{artist}\tArtist {artist}\tu\tp" for artist in range(1, 10))]
    (folder / "artists.dat").write_text("\n".join(artists) + "\n", encoding="utf-8")
    rows = ["userID\tartistID\ttagID\tday\tmonth\tyear", *(f"{u}\t{a}\t13\t{d}\t{m}\t{y}" for u, a, d, m, y in taggings)]
    (folder / "user_taggedartists.dat").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_filters_orders_and_ties(tmp_path, run, read):
    """Four users of artists 1 to 5, one of whom has artist 9 alone; by date in one, by number in the other."""
    dates = {1: 2008, 2: 2007, 3: 2009, 4: 2007, 5: 2006}
    taggings = [(user, artist, 1, 4, dates[artist]) for user in (2, 3, 4, 5) for artist in range(5, 0, -1)]
    taggings += [(2, 1, 1, 4, 2005), (6, 9, 1, 1, 2004), (7, 1, 1, 1, 2004), (2, 99, 1, 1, 2004)]
    raw = _small(tmp_path / "raw", taggings)
    run("lastfm", "--raw", raw, "--out", tmp_path / "out")
    _, rows = read(tmp_path / "out" / "lastfm" / "lastfm.inter")
    assert {row[0] for row in rows} == {"2", "3", "4", "5"} and {row[1] for row in rows} == {"1", "2", "3", "4", "5"}
    assert [row[1] for row in rows if row[0] == "2"][:2] == ["1", "5"]  # the earlier of two dates of a pair counts
    of_user_3 = [row[1] for row in rows if row[0] == "3"]
    assert (of_user_3[0], of_user_3[-1]) == ("5", "3")
    tied = [tuple(row[1] for row in rows if row[0] == user and row[1] in "24") for user in "2345"]
    assert set(tied) == {("2", "4"), ("4", "2")}  # ties are no order of numbers
    times = [float(row[2]) for row in rows if row[0] == "3"]
    assert times == sorted(times) and len(set(times)) == 5
    report = run("lastfm-llara", "--raw", raw, "--out", tmp_path / "out")
    assert "WARNING" in report and "artist number" in report
    _, rows = read(tmp_path / "out" / "lastfm-llara" / "lastfm-llara.inter")
    assert [row[1] for row in rows if row[0] == "4"] == ["1", "2", "3", "4", "5"]


def test_what_is_no_raw_folder_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="found no artists.dat"):
        run("lastfm", "--raw", tmp_path, "--out", tmp_path / "out")
    raw = _small(tmp_path / "raw", [(1, 1, 1, 1, 2005)])
    with pytest.raises(UserError, match="no interaction is left"):
        run("lastfm", "--raw", raw, "--out", tmp_path / "out")
    (raw / "user_taggedartists.dat").write_text("userID\n" + "a,b\n" * 2000, encoding="utf-8")
    with pytest.raises(UserError, match="1,000 of 1,000 lines .* expected user, artist, tag, day, month, year"):
        run("lastfm", "--raw", raw, "--out", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").glob("*") if path.is_dir()]


def _windows(path):
    """The released windows as titles: history and next."""
    items = (path / "items.tsv").read_text(encoding="utf-8").splitlines()[1:]
    titles = {int(item): title for item, title in (line.split("\t") for line in items)}
    windows = Counter()
    for line in (path / "val.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        history, length, target = line.split("\t")
        shown = [int(item) for item in history.split()][: int(length)]
        windows[(*(titles[item] for item in shown), titles[int(target)])] += 1
    return windows


@needs_raw
def test_the_papers_sequences_to_the_row(tmp_path, run, monkeypatch):
    """1,220 users, 4,606 artists, 56,794 interactions; 47,872 / 122 / 122 rows; the released validation windows."""
    monkeypatch.chdir(tmp_path)
    for name in ("lastfm", "lastfm-llara"):
        report = run(name, "--raw", RAW, "--out", tmp_path)
        assert "1,220 sequences" in report and "4,606 items" in report and "56,794 interactions" in report
    config = RunConfig("SASRec", "lastfm-llara", config_dict={"data_path": str(tmp_path), "protocol": "llara"})
    assert (
        "filters rating, which dataset lastfm-llara has not" in config.notes[0] and "artist number" in config["dataset_warning"]
    )
    data = prepare_data(config)
    assert [len(loader.dataset) for loader in (data.train_data, data.valid_data, data.test_data)] == [47_872, 122, 122]
    titles = load_catalogue(data.dataset, config).titles
    rows = data.valid_data.dataset.inter_feat
    found = Counter(
        (*(titles[item] for item in history.tolist() if item), titles[target])
        for history, target in zip(rows["item_id_list"], rows["item_id"].tolist(), strict=True)
    )
    assert found == _windows(SHARED / "llara_lastfm")
