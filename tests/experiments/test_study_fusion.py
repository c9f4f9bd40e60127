"""Systems of a study that add others: nothing is trained for them, the fit reads validation rows, and a second call reuses all."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_run import save_llm, toy_keys  # noqa: F401

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.evaluator.fusion import Fusion
from recbole_llara.experiments import runner
from recbole_llara.experiments.command import study_main as main
from recbole_llara.experiments.runner import execute
from recbole_llara.experiments.study_arms import Arm, FailedArm
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.experiments.study_fusion import fuse_systems
from recbole_llara.experiments.study_runs import StudyRuns
from recbole_llara.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_pngs")
STOCK = {
    "SASRec": {"model": "SASRec"},
    "SASRec, another seed": {"model": "SASRec", "seed": 7},
    "Popularity": {"model": "Popularity"},
    "two seeds": {"fuses": ["SASRec", "SASRec, another seed"]},
    "three": {"fuses": ["SASRec", "SASRec, another seed", "Popularity"]},
}


@pytest.fixture
def write(toy):
    """Writes a study of the toy data; returns its path."""

    def make(systems, name="own", **settings):
        keys = {key: value for key, value in yaml.safe_load(Path(toy).read_text()).items() if key not in ("epochs", "model")}
        shared = {**keys, "dataset": "toy", "protocol": "leave_one_out", "rec_epochs": 2, "max_eval_rows": 30, **settings}
        content = {"settings": {**shared, "show_progress": False}, "systems": systems}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return f"{name}.yaml"

    return make


def run_study(path, fresh=False):
    runs = StudyRuns(load_study(path), fresh)
    execute(runs)
    return {arm.system: outcome for arm, outcome in runs.outcomes.items()}


def log_p(case):
    scores = np.array(case["scores"])
    return scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())


def test_the_sum_of_two_seeds_and_of_three_systems(write, monkeypatch, capsys):
    path = write(STOCK)
    outcomes = run_study(path)
    assert not any(isinstance(outcome, FailedArm) for outcome in outcomes.values()), outcomes
    assert outcomes["SASRec"].result["metrics"] != outcomes["SASRec, another seed"].result["metrics"]
    assert outcomes["SASRec, another seed"].result["seed"] == 7
    for name in ("two seeds", "three"):
        parts, result = STOCK[name]["fuses"], outcomes[name].result
        fusion = Fusion.read(result["fusion"])
        assert fusion.systems == tuple(parts) and fusion.n == 30 and result["fusion"]["name"] == result["model"] == name
        own = [{case["row"]: case for case in outcomes[part].cases()} for part in parts]
        hits = 0
        for case in outcomes[name].cases():
            total = sum(weight * log_p(of[case["row"]]) for weight, of in zip(fusion.weights, own, strict=True))
            expected = log_p({"scores": total / fusion.temperature})
            assert case["scores"] == pytest.approx(expected, abs=1e-5)
            assert case["candidates"] == own[0][case["row"]]["candidates"] and case["valid"]
            hits += case["correct"]
        assert result["correct"] == hits and result["n"] == 30
        assert result["metrics"]["test"]["hit@1"] == pytest.approx(hits / 30, abs=1e-4)
        valid = [read_records(outcomes[part].paths["valid_cases_file"]) for part in parts]
        likelihood = [
            -log_p(
                {"scores": sum(w * log_p(case) for w, case in zip(fusion.weights, cases, strict=True)) / fusion.temperature}
            )[cases[0]["candidates"].index(cases[0]["target"])]
            for cases in zip(*valid, strict=True)
        ]
        assert fusion.nll == pytest.approx(np.mean(likelihood), abs=1e-5)

    def fail(*arguments, **keys):
        raise AssertionError("something was run again")

    monkeypatch.setattr(runner, "run_recbole_llara", fail)
    assert main([path]) == 0
    told = capsys.readouterr()
    assert "5 of 5 runs are taken from earlier calls" in told.err and "| two seeds " in told.out
    assert "two seeds adds log-probabilities by weights fitted on 30 validation rows" in told.out


def test_systems_of_an_earlier_study_are_evaluated_again_and_not_trained(write, monkeypatch):
    parts = {name: keys for name, keys in STOCK.items() if "model" in keys}
    before = run_study(write(parts, "before"))
    assert "valid_cases_file" not in before["SASRec"].paths
    seen = []
    run = runner.run_recbole_llara

    def watched(model, dataset, config_dict):
        seen.append((model, config_dict.get("checkpoint"), config_dict["keep_valid_cases"]))
        return run(model, dataset, config_dict=config_dict)

    monkeypatch.setattr(runner, "run_recbole_llara", watched)
    after = run_study(write(STOCK, "after"))
    assert seen == [(part.result["model"], part.paths["checkpoint"], True) for part in before.values()]  # each once
    assert after["SASRec"].paths["run_dir"] == before["SASRec"].paths["run_dir"]
    seen.clear()
    run_study(write({**STOCK, "more": {"fuses": ["Popularity", "SASRec"]}}, "more"))
    assert not seen


def test_a_fused_run_and_the_sum_of_a_study_are_one_system(write, make_llm, make_tokenizer, tmp_path):
    keys = toy_keys(tmp_path / "llm toy", make_llm, make_tokenizer)
    systems = {
        "SASRec": {"model": "SASRec"},
        "LLaRA": {"model": "LLaRA"},
        "run": {"evaluates": "LLaRA", "fusion": "validation"},
        "sum": {"fuses": ["SASRec", "LLaRA"]},
    }
    outcomes = run_study(write(systems, **{**keys, "epochs": 2}))
    of_run, of_sum = outcomes["run"], outcomes["sum"]
    fusion, other = (Fusion.read(outcome.result["fusion"]) for outcome in (of_run, of_sum))
    assert fusion.weights == pytest.approx(other.weights, rel=1e-2) and fusion.nll == pytest.approx(other.nll, abs=1e-4)
    assert [case["answer"] for case in of_run.cases()] == [case["answer"] for case in of_sum.cases()]
    assert "training_seconds" not in of_run.result["timings"] and of_sum.result["timings"].keys() == {"fusion_seconds"}


def test_further_draws_have_sums_of_their_own(write):
    path = write({name: STOCK[name] for name in ("SASRec", "Popularity")} | {"sum": {"fuses": ["SASRec", "Popularity"]}})
    runs = StudyRuns(load_study(path).with_arguments({"candidate_seeds": 7}))
    execute(runs)
    own, draw = (runs.outcomes[Arm("sum", "toy", 2020, seed, seed == 7)].result for seed in (2020, 7))
    assert own["candidate_sha256"] != draw["candidate_sha256"] and own["fusion"] != draw["fusion"]
    assert (
        draw["candidate_sha256"]["test"]
        == runs.outcomes[Arm("SASRec", "toy", 2020, 7, True)].result["candidate_sha256"]["test"]
    )


def test_a_system_that_failed_fails_its_sum(write, monkeypatch):
    run = runner.run_recbole_llara

    def sometimes(model, **keys):
        if model == "Popularity":
            raise RuntimeError("the disk is on fire")
        return run(model=model, **keys)

    monkeypatch.setattr(runner, "run_recbole_llara", sometimes)
    outcomes = run_study(write(STOCK))
    assert "adds the answers of Popularity on toy, seed 2020, which failed" in outcomes["three"].message
    assert "fusion" in outcomes["two seeds"].result


def test_other_questions_are_refused(write):
    outcomes = run_study(write({name: STOCK[name] for name in ("SASRec", "Popularity", "three") if name != "three"}))
    files = {}
    for name, outcome in outcomes.items():
        files[name] = {"valid": outcome.paths["cases_file"], "test": outcome.paths["cases_file"]}
    cases = outcomes["Popularity"].cases()
    cases[0]["candidates"] = cases[0]["candidates"][::-1]
    Path("other.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    files["Popularity"]["valid"] = "other.jsonl"
    with pytest.raises(UserError, match="fuses: SASRec and Popularity did not answer the same questions"):
        fuse_systems("sum", None, files)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"fuses": ["SASRec"]}, "at least two different systems"),
        ({"fuses": "SASRec"}, "at least two different systems"),
        ({"fuses": ["SASRec", "SASRec"]}, "at least two different systems"),
        ({"fuses": ["SASRec", "Caser"]}, "fuses 'Caser', expected systems above it that have a model"),
        ({"fuses": ["SASRec", "two seeds"]}, "fuses 'two seeds', expected systems above it that have a model"),
        ({"fuses": ["SASRec", "Popularity"], "seed": 3}, "expected fuses alone"),
        ({"evaluates": "two seeds"}, "evaluates 'two seeds', expected a system above it that has a model"),
    ],
)
def test_wrong_definitions(system, message, write):
    with pytest.raises(UserError, match=message):
        load_study(write({**STOCK, "wrong": system}))


def test_what_ranks_nothing_is_refused_before_anything_is_run(write):
    systems = {
        "SASRec": {"model": "SASRec"},
        "LLaRA": {"model": "LLaRA", "decoding": "generate"},
        "sum": {"fuses": ["SASRec", "LLaRA"]},
    }
    with pytest.raises(UserError, match="sum fuses LLaRA, which ranks nothing under decoding generate"):
        StudyRuns(load_study(write(systems)))
