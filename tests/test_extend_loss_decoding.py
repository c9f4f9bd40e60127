"""The worked examples of docs/pages/extend/loss.md and decoding.md, as they stand there, on toy data."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from toy_run import keys, make_trainer, save_llm  # noqa: F401

import recbole_llara
from recbole_llara.evaluator.answer import DECODINGS, register_decoding
from recbole_llara.model.answering import Questions, candidate_scores
from recbole_llara.model.losses import LOSSES, register_loss
from recbole_llara.utils.errors import UserError

PAGES = Path(__file__).resolve().parent.parent / "docs" / "pages" / "extend"


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    before = [(table, dict(table)) for table in (LOSSES, DECODINGS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


@pytest.fixture
def run_block(keys, monkeypatch, tmp_path):  # noqa: F811
    """Runs a page's n-th block of Python as a program, on the toy data; returns what the run returned."""
    run = recbole_llara.run_recbole_llara

    def run_it(page, number, **changes):
        returned = {}

        def on_toy_data(model, dataset, config_dict):
            assert dataset == "ml-100k"
            returned.update(run(model, "toy", config_dict={**keys, **config_dict, **changes}))

        monkeypatch.setattr(recbole_llara, "run_recbole_llara", on_toy_data)
        blocks = re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        program = tmp_path / f"{number}.py"
        program.write_text(blocks[number], encoding="utf-8")
        runpy.run_path(str(program), run_name="__main__")
        return returned

    return run_it


def _log(returned):
    lines = (Path(returned["run_dir"]) / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def _cases(returned):
    return [json.loads(line) for line in Path(returned["cases_file"]).read_text(encoding="utf-8").splitlines()]


def test_row_mean(run_block, keys, make_trainer):  # noqa: F811
    first = _log(run_block("loss.md", 0))[0]["loss"]
    trainer, data = make_trainer({**keys, "answer_loss": "row_mean"})
    model = trainer.model.eval()
    rows = model.training_rows(next(iter(data.train_data)), 0)
    step = model.begin_step(rows, model.representation)
    whole = model.step_losses(rows, step)["answer"].item()
    alone = [
        model.step_losses(row, model.begin_step(row, model.representation))["answer"].item()
        for row in (rows.take(torch.tensor([number])) for number in range(len(rows.targets)))
    ]
    assert whole == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    assert first == pytest.approx(whole, rel=0.2)  # another draw of the projector


def test_margin(run_block, keys, make_trainer):  # noqa: F811
    first = _log(run_block("loss.md", 1))[0]
    assert first["loss"] > 0
    trainer, data = make_trainer({**keys, "answer_loss": "margin"})
    model = trainer.model.eval()
    rows = model.training_rows(next(iter(data.train_data)), 0)
    found = model.step_losses(rows, model.begin_step(rows, model.representation))["margin"].item()
    model.template_index, model.eval_template = (lambda *_: rows.template_index), "sampled"
    scores = candidate_scores(model, Questions(rows.history, rows.candidates, rows.row_ids))
    gaps = [
        max(0.0, 1 + score - of_row[column])
        for of_row, column in zip(scores.tolist(), rows.target_columns.tolist(), strict=True)
        for place, score in enumerate(of_row)
        if place != column
    ]
    assert found == pytest.approx(sum(gaps) / len(scores), rel=1e-4)


def test_per_token(run_block):
    found = run_block("decoding.md", 0)
    result = json.loads(Path(found["result_file"]).read_text(encoding="utf-8"))
    assert result["decoding"] == "per_token" and "ndcg@5" in result["metrics"]["test"]
    again = run_block("decoding.md", 0, checkpoint=found["checkpoint"], decoding="score", eval_template="first")
    for mean, total in zip(_cases(found), _cases(again), strict=True):
        lengths = torch.tensor(total["scores"]) / torch.tensor(mean["scores"])
        assert (lengths > 1.5).all() and (lengths - lengths.round()).abs().max() < 1e-3
        assert mean["answer"] == mean["candidates"][max(range(10), key=mean["scores"].__getitem__)]


def test_a_plugin_s_decoding_is_known_by_its_name(keys, tmp_path):  # noqa: F811
    block = re.search(r"^```python\n(.*?)^```$", (PAGES / "decoding.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[
        1
    ]
    (tmp_path / "per_token_plugin.py").write_text(block, encoding="utf-8")
    changes = {"plugins": [str(tmp_path / "per_token_plugin.py")], "decoding": "per_token", "epochs": 0, "full_rank": True}
    returned = recbole_llara.run_recbole_llara("LLaRA", "toy", config_dict={**keys, **changes})
    assert "full_rank" in json.loads(Path(returned["result_file"]).read_text(encoding="utf-8"))


def test_what_is_built_in_stays():
    with pytest.raises(UserError, match="answer_loss: 'token' is built in"):
        register_loss("token", lambda forward: {})
    with pytest.raises(UserError, match="decoding: 'score' is built in"):
        register_decoding("score", lambda model, questions: None)
