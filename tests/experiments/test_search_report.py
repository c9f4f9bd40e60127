"""What a search leaves: a best.yaml that is the best trial, tables of all trials, a figure of them."""

import csv

import pytest

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import read_yaml
from recbole_llara.experiments.search_definition import best_of
from recbole_llara.experiments.search_report import draw, write_search_report
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
    search, trials = make_finished(argv=["--epochs=3", "--show_progress=True", "--checkpoint_dir=elsewhere"])
    best = best_of(search, trials)
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


def test_secrets_stay_out(make_search, runs):
    search = make_search("learning_rate choice [0.1]", argv=["--hidden_size=8", "--hidden_dropout_prob=0"])
    secret = {**search.fixed, "hf_token": "of-the-user"}
    assert "of-the-user" not in str(search.best_config({"learning_rate": 0.1, **secret}))


def test_the_tables_have_every_trial(make_finished):
    search, trials = make_finished()
    text = write_search_report(search, trials)
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


def test_the_figure_has_the_history_and_a_panel_for_each_key(make_finished):
    search, trials = make_finished()
    figure = draw(search, trials)
    scored = [trial for trial in trials if trial.score is not None]
    points, best, failed, *panels = figure.data
    assert list(points.x) == [0, 1, 3, 4, 5] and list(points.y) == [trial.score for trial in scored]
    assert list(best.y) == [max(trial.score for trial in scored[: number + 1]) for number in range(5)]
    assert list(failed.x) == [2] and "the loss is" in failed.text[0]
    assert len(panels) == 5
    for panel, parameter in zip(panels, search.parameters, strict=True):
        values = [trial.values[parameter.key] for trial in scored]
        assert list(panel.y) == list(points.y)
        assert [str(x).strip('"') for x in panel.x] == [str(value) for value in values]
    types = [figure.layout[f"xaxis{number}"].type for number in range(2, 7)]
    assert types == ["category", "log", "linear", "linear", "category"]


def test_a_figure_of_one_key_or_of_failures_alone(make_search, runs, finished):
    search = make_search("learning_rate choice [0.1]", argv=["--hidden_size=8", "--hidden_dropout_prob=0"])
    runs.before = lambda keys: (_ for _ in ()).throw(Diverged("nan"))
    assert [trace.name for trace in draw(search, finished(search)).data][2] == "failed"
