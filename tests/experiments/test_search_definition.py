"""What cannot be searched is refused before anything runs; what a search is does not depend on where it lies."""

from pathlib import Path

import pytest

from recbole_llara.experiments.command import search_parser
from recbole_llara.experiments.search_definition import read_command
from recbole_llara.experiments.search_trials import SearchTrials
from recbole_llara.utils.errors import UserError


@pytest.mark.parametrize(
    ("parameters", "keys", "told"),
    [
        ("learnin_rate choice [1]", {}, "did you mean 'learning_rate'"),
        ("rec_learning_rate choice [1]", {}, "unknown key 'rec_learning_rate'"),  # SASRec has no recommender in it
        ("learning_rate choice [0.1, slow]", {}, "with learning_rate=slow: learning_rate: found 'slow'"),
        ("hidden_dropout_prob uniform 0.1,1.5", {"algo": "random"}, "hidden_dropout_prob: found 1.5"),
        ("hidden_size choice [64, 65]", {}, "with hidden_size=65: hidden_size: found 65, expected a multiple of 2"),
        ("hidden_size uniform 8,16", {"algo": "bayes"}, "hidden_size: found 8.0"),
        ("candidate_num choice [5, 10]", {}, "candidate_num says what is asked"),
        ("valid_metric choice [Hit@1, NDCG@5]", {}, "valid_metric says"),
        ("seed choice [1, 2]", {}, "seed says"),
        ("dataset choice [toy]", {}, "dataset says"),
        ("learning_rate choice [0.1]", {"argv": ["--learning_rate=1"]}, "searched and given on the command line"),
        ("learning_rate choice [0.1]", {"argv": ["--epoch=1"]}, r"unknown key 'epoch' \(command line\)"),
        ("learning_rate choice [0.1]", {"argv": ["--resume=auto"]}, "every trial has its own"),
        ("learning_rate choice [0.1]", {"algo": "bayesian"}, "did you mean 'bayes'"),
        ("learning_rate choice [0.1]", {"max_evals": 0}, "max_evals: found 0"),
        (
            "a choice [1]\nlearning_rate loguniform -8,0",
            {},
            "exhaustive goes through choices only, found learning_rate loguniform",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(make_search, runs, parameters, keys, told):
    with pytest.raises(UserError, match=told):
        make_search(parameters, **keys)
    assert not runs.keys and not Path("saved/search").exists()


def test_a_recommenders_keys_are_searched_with_their_prefix(make_search):
    search = make_search("rec_hidden_size choice [8, 16]\nlearning_rate loguniform -9,-5", "random", model="LLaRA")
    assert [parameter.key for parameter in search.parameters] == ["rec_hidden_size", "learning_rate"]
    with pytest.raises(UserError, match=r"with rec_hidden_size=9.*rec_hidden_size: found 9"):
        make_search("rec_hidden_size choice [8, 9]", model="LLaRA")


def test_trials_are_as_many_as_asked_and_no_more_than_there_are(make_search):
    assert make_search().max_evals == 12
    assert make_search(max_evals=5).max_evals == 5
    assert make_search(algo="random").max_evals == 10  # RecBole's
    assert make_search(algo="random", max_evals=50).max_evals == 12
    assert make_search("learning_rate uniform 0.1,0.2", "bayes", max_evals=50).max_evals == 50


def test_the_folder_is_that_of_the_facts(make_search):
    first = make_search().folder
    assert first.parent == Path("saved/search") and first.name.startswith("SASRec-toy-exhaustive-")
    assert make_search(argv=["--show_progress=True"], max_evals=3).folder == first
    assert make_search(argv=["--epochs=2"]).folder != first
    assert make_search("learning_rate choice [1]").folder != first
    assert make_search(algo="random").folder != first
    near = [make_search(f"learning_rate uniform 0.1,0.{end}", "random").folder for end in ("2", "20000001")]
    assert near[0] != near[1]
    assert make_search(output="here").folder == Path("here")


def test_other_data_is_another_search(make_search, runs):
    """Trials over a file that has changed since are not compared with those over the file as it was."""
    first = make_search()
    SearchTrials(make_search(output="mine"))
    (file,) = Path().glob("**/toy.inter")
    file.write_text(file.read_text(encoding="utf-8") + "u0\ti1\t99\n", encoding="utf-8")
    assert make_search().folder != first.folder
    with pytest.raises(UserError, match=r"output: mine holds another search: data: '\w{16}' there, '\w{16}' here"):
        SearchTrials(make_search(output="mine"))


def test_the_direction_is_the_metrics(make_search):
    assert make_search().direction == "maximize"
    assert make_search(argv=["--metrics=[Hit,AveragePopularity]", "--valid_metric=AveragePopularity"]).direction == "minimize"


def test_model_and_dataset_may_stand_in_a_config_file(toy):
    Path(toy).write_text(Path(toy).read_text() + "model: SASRec\ndataset: toy\nlearning_rate: 0.5\n")
    search = read_command(*search_parser().parse_known_args(["--params_file=toy.hyper", f"--config_files={toy}"]))
    assert (search.model, search.dataset) == ("SASRec", "toy")
    assert "learning_rate" not in search.fixed  # what is searched goes before what a file says
    with pytest.raises(UserError, match="give --model=NAME"):
        read_command(*search_parser().parse_known_args(["--dataset=toy", "--params_file=toy.hyper"]))
