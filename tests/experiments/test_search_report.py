"""What a search leaves: a best.yaml that is the best trial, tables of all trials, a figure of them."""

import csv
from dataclasses import replace

import pytest

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import read_yaml
from recbole_llara.experiments.search_trials import SearchTrials
from recbole_llara.utils.errors import Diverged

pytestmark = pytest.mark.usefixtures("no_pngs")
MIXED = (
    "hidden_size choice [8, 16]\nlearning_rate loguniform -7,-1\nhidden_dropout_prob uniform 0.1,0.5\n"
    "n_layers quniform 1,3,1\nloss_type choice [CE, BPR]\n"
)


@pytest.fixture
def make_finished(make_search, runs, finished):
    """A search of six trials, the third of which diverged, and its trials."""

    def make(parameters=MIXED, **keys):
        def fail(keys):
            if len(runs.keys) == 3:
                raise Diverged("the loss is | nan")

        runs.before = fail
        search = make_search(parameters, "random", max_evals=6, **keys)
        return search, finished(search)

    return make


def test_best_yaml_is_the_best_trial_and_a_config_file(make_finished):
    search, _ = make_finished(argv=["--epochs=3", "--show_progress=True", "--checkpoint_dir=elsewhere"])
    best = SearchTrials(search).best()
    content = read_yaml(search.folder / "best.yaml")
    assert {key: content[key] for key in best.values} == best.values
    assert (content["model"], content["dataset"], content["epochs"]) == ("SASRec", "toy", 3)
    assert not {"show_progress", "checkpoint_dir", "use_gpu"} & content.keys()  # they change no result
    config = RunConfig(config_file_list=[search.folder / "best.yaml"])
    assert {key: config[key] for key in best.values} == best.values
    assert config["epochs"] == 3 and config["candidate_num"] == 10


def test_best_yaml_and_the_table_stand_after_every_trial(make_search, runs, finished):
    search = make_search(MIXED, "random", max_evals=4)
    found = []

    def look(keys):
        if len(runs.keys) > 1:
            found.append(len((search.folder / "trials.csv").read_text().splitlines()) - 1)
            assert read_yaml(search.folder / "best.yaml")["model"] == "SASRec"

    runs.before = look
    finished(search)
    assert found == [1, 2, 3]


def test_secrets_stay_out(make_search, runs, finished):
    search = make_search("learning_rate choice [0.1]", argv=["--hidden_size=8", "--hidden_dropout_prob=0"])
    finished(replace(search, fixed={**search.fixed, "hf_token": "of-the-user"}))
    assert "of-the-user" not in (search.folder / "best.yaml").read_text()


def test_the_tables_have_every_trial(make_finished):
    search, trials = make_finished()
    text = SearchTrials(search).report()
    with open(search.folder / "trials.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(6))
    for row, trial in zip(rows, trials, strict=True):
        assert float(row["learning_rate"]) == trial.values["learning_rate"] and row["loss_type"] == trial.values["loss_type"]
        assert (float(row["score"]) if row["score"] else None) == trial.score
        assert int(row["n_layers"]) == trial.values["n_layers"]
    assert rows[2]["error"] == "the loss is | nan" and rows[2]["run_dir"] == ""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    order = sorted((trial for trial in trials if trial.score is not None), key=lambda trial: -trial.score)
    assert [line.split("|")[1].strip() for line in lines] == [*(str(trial.number) for trial in order), "2"]
    assert r"failed: the loss is \| nan" in lines[-1]
    assert f"Best: trial {order[0].number}" in text
    assert {path.name for path in search.folder.iterdir() if not path.name.startswith(".")} == {
        *("best.yaml", "trials.csv", "report.md", "search.html", "trials.sqlite")
    }


def test_the_figures_have_the_history_and_a_panel_for_each_key(make_finished):
    search, trials = make_finished()
    history, keys = SearchTrials(search).draw().values()
    scored = [trial for trial in trials if trial.score is not None]
    points, best = (next(trace for trace in history.data if trace.mode == mode) for mode in ("markers", "lines"))
    assert list(points.x) == [0, 1, 3, 4, 5] and list(points.y) == [trial.score for trial in scored]
    so_far = dict(zip(best.x, best.y, strict=True))
    assert all(so_far[one.number] == max(other.score for other in scored if other.number <= one.number) for one in scored)
    failed = next(trace for trace in history.data if trace.name == "failed")
    assert list(failed.x) == [2] and "the loss is" in failed.text[0]
    panels = [trace for trace in keys.data if trace.x]
    axes = [keys.layout[f"xaxis{number}"] for number in ("", 2, 3, 4, 5)]
    assert sorted(axis.title.text for axis in axes) == sorted(parameter.key for parameter in search.parameters)
    for panel, axis in zip(panels, axes, strict=True):
        by_number = {trial.number: trial for trial in scored}
        found = [by_number[number] for number in panel.marker.color]
        assert list(panel.y) == [trial.score for trial in found] and len(found) == 5
        assert [str(x).strip('"') for x in panel.x] == [str(trial.values[axis.title.text]) for trial in found]
        assert [text.split("<br>")[0] for text in panel.text] == [f"trial {trial.number}" for trial in found]
    types = {axis.title.text: axis.type for axis in axes}
    assert types["loss_type"] == types["hidden_size"] == "category" and types["learning_rate"] == "log"


def test_a_figure_of_failures_alone(make_search, runs, finished):
    search = make_search("learning_rate choice [0.1]", argv=["--hidden_size=8", "--hidden_dropout_prob=0"])
    runs.before = lambda keys: (_ for _ in ()).throw(Diverged("nan"))
    finished(search)
    history, _ = SearchTrials(search).draw().values()
    assert [trace.name for trace in history.data] == ["failed"]
