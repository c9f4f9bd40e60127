"""``recbole-llara candidates``: questions out of what a recommender proposes; ``recbole-llara leaks`` over earlier rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.data.leaks import LEARNED
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender import frozen
from recbole_llara.recommender.command import candidates_main, leaks_main
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.recommender.retriever import Retriever


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_toy_dataset(tmp_path)


@pytest.fixture
def command(toy, capsys):
    """Runs the command with further arguments; gives its exit status and what it wrote."""

    def run(*arguments):
        given = {argument.partition("=")[0] for argument in arguments}
        keys = [f"--{key}={json.dumps(value)}" for key, value in toy.items() if f"--{key}" not in given]
        status = candidates_main([*keys, "--dataset=toy", "--rec_epochs=2", *arguments])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def lines_of(path):
    header, *lines = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line != header]


def test_the_candidates_are_the_recommenders_first_items_and_the_target(toy, command):
    status, out, _ = command("--out=new/hard.tsv")
    assert status == 0 and "valid: 40 rows" in out and "proposed by SASRec" in out
    config = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_epochs": 2})
    data = prepare_data(config)
    retriever = Retriever(*recommender_model(config, data)[1:], data.sampler.n_items)
    dataset = data.test_data.dataset
    names, users = dataset.field2id_token["item_id"], dataset.field2id_token["user_id"]
    known = dataset.knowledge.known["test"]
    lines, columns, among = lines_of("new/hard.tsv"), [], []
    assert len(lines) == 80
    of_test = {line[0]: line for line in lines[40:]}
    rows = dataset.rows_of(dataset.inter_feat)
    for user, target, history in zip(rows.users, rows.targets, rows.history, strict=True):
        item, *candidates = of_test[users[user]][1:]
        had = set((known.keys[known.keys // known.n_items == user] % known.n_items).tolist()) - {int(target)}
        ranked = retriever.propose([[i for i in history.tolist() if i]], 12, [int(user)], [sorted(had)])[0].tolist()
        first = [names[i] for i in ranked if i and i != target][:9]
        assert item == names[target] and item in candidates and len(set(candidates)) == 10
        assert len(set(candidates) & set(first)) >= 8  # the last two may differ by rounding alone
        columns.append(candidates.index(item))
        among.append(target in ranked[:9])
    assert len(set(columns)) > 5
    assert f"test: 40 rows; in {np.mean(among):.1%}" in out


def test_all_systems_answer_the_file_and_tell_of_it(toy, command):
    assert command("--out=hard.tsv")[0] == 0
    keys = {**toy, "candidate_file": "hard.tsv"}
    results = []
    for model, own in (("Popularity", {}), ("SASRec", {"epochs": 1})):
        told = run_recbole_llara(model, "toy", config_dict={**keys, **own})
        results.append(json.loads(Path(told["result_file"]).read_text(encoding="utf-8")))
    first, second = (result["candidate_sha256"] for result in results)
    assert first == second
    uniform = run_recbole_llara("Popularity", "toy", config_dict=toy)
    assert json.loads(Path(uniform["result_file"]).read_text(encoding="utf-8"))["candidate_sha256"]["test"] != first["test"]
    for split in ("valid", "test"):
        assert any(first[split][:16] in path.name for path in (Path(toy["checkpoint_dir"]) / "candidates").glob(f"*{split}*"))


def test_the_file_is_the_same_again_and_another_of_another_recommender(command):
    for name, further in (("one", ()), ("two", ()), ("three", ("--rec_model=GRU4Rec",)), ("four", ("--candidate_seed=7",))):
        assert command(f"--out={name}.tsv", *further)[0] == 0
    assert command("--out=five.tsv", "--top=20")[0] == 0
    assert [sorted(line) for line in lines_of("one.tsv")] != [sorted(line) for line in lines_of("five.tsv")]
    one, two, three, four = (Path(f"{name}.tsv").read_bytes() for name in ("one", "two", "three", "four"))
    assert one == two and three != one
    assert one != four and [sorted(line) for line in lines_of("one.tsv")] == [sorted(line) for line in lines_of("four.tsv")]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model=SASRec"], ["rec_epochs", "unknown key"]),
        (["--model=Popularity", "--rec_epochs=~"], ["rec_epochs"]),
        (["--item_embeddings=vectors.npy"], ["item_embeddings: found no file", "vectors.npy"]),
        (["--candidate_num=80"], ["Only", "items are left", "candidate_num"]),
        (["--top=8"], ["--top: found 8, expected at least 9 (candidate_num - 1)"]),
    ],
)
def test_what_cannot_be_written_is_refused(arguments, parts, command):
    status, _, err = command("--out=hard.tsv", *arguments)
    assert status == 2 and all(part in err for part in parts)
    assert not Path("hard.tsv").exists()


def test_a_file_is_no_question_of_its_own(command):
    assert command("--out=hard.tsv")[0] == 0
    status, _, err = command("--out=other.tsv", "--candidate_file=hard.tsv")
    assert status == 2 and "candidate_file: found 'hard.tsv', expected none" in err


def test_leaks_tells_whether_the_recommender_of_training_learned_later_rows(toy, capsys, monkeypatch):
    arguments = [f"--{key}={json.dumps(value)}" for key, value in toy.items()]
    arguments += ["--dataset=toy", "--model=LLaRA", "--recommender_rows=earlier", "--epochs=1"]

    def verdict():
        status = leaks_main(arguments)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if LEARNED in line]
        return status, line.split()[-1], " 1.000 " in line

    assert verdict()[1:] == ("chance", False)
    monkeypatch.setattr(frozen, "learned_part", lambda config, of_training: None)  # the recommender learns from all rows
    assert verdict() == (1, "LEAK", True)
