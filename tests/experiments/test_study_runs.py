"""Studies as they run: one set of questions, nothing twice, failures told, kills survived, further draws without training."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copyfile

import huggingface_hub.constants
import pytest
import yaml
from synthetic_data import write_toy_dataset

from recbole_llara.config import models
from recbole_llara.experiments import runner
from recbole_llara.experiments.command import study_main as main
from recbole_llara.experiments.runner import execute
from recbole_llara.experiments.study_arms import Arm, FailedArm, FinishedArm, arms_of
from recbole_llara.experiments.study_definition import load_study, read_command
from recbole_llara.experiments.study_runs import StudyRuns
from recbole_llara.llm import source
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.utils.errors import UserError

THREE = str(Path(__file__).with_name("three.yaml"))
SMALL = ("--max_train_rows=64", "--max_eval_rows=40", "--rec_epochs=1", "--rec_max_train_rows=500", "--show_progress=False")
LONGER = (*(argument for argument in SMALL if not argument.startswith("--max_train_rows")), "--max_train_rows=128")


pytestmark = pytest.mark.usefixtures("no_pngs")


def run_study(study):
    """The outcomes of a study that is run."""
    runs = StudyRuns(study)
    execute(runs)
    return runs.outcomes


def results():
    return [json.loads(path.read_text()) for path in Path("saved").glob("*/result.json")]


@pytest.mark.slow
def test_three_systems_on_the_same_questions_and_a_second_call_reuses_them(monkeypatch, capsys):
    assert main([THREE, *SMALL]) == 0
    report = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("|")]
    assert rows[2:5] == ["Popularity", "SASRec", "LLaRA(SASRec)"]
    found = results()
    assert len(found) == 3 and {result["n"] for result in found} == {40}
    assert len({json.dumps(result["candidate_sha256"], sort_keys=True) for result in found}) == 1
    by_model = {result["model"]: result for result in found}
    assert by_model["SASRec"]["timings"].get("training_seconds") is None  # the recommender LLaRA read, not another one
    assert len(list(Path("saved/recommenders").glob("SASRec-*"))) == 1
    log = [json.loads(line) for line in next(Path("saved").glob("LLaRA-*/training.jsonl")).read_text().splitlines()]
    assert [record["step"] for record in log] == [0, 1] and "loss" in log[0] and "hit@1" in log[1]["valid"]

    def fail(*arguments, **keys):
        raise AssertionError("a finished system was run again")

    monkeypatch.setattr(runner, "run_recbole_llara", fail)
    assert main([THREE, *SMALL]) == 0
    again = capsys.readouterr()
    assert again.out == report and "3 of 3 runs are taken from earlier calls" in again.err
    assert main([THREE, *SMALL, "--fresh"]) == 1
    assert "a finished system was run again" in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_and_further_draws(monkeypatch):
    arguments = [THREE, *SMALL, "--seeds=1,2", "--candidate_seeds=7"]
    study = read_command(arguments)
    outcomes = run_study(study)
    assert len(outcomes) == 9 and all(isinstance(outcome, FinishedArm) for outcome in outcomes.values())
    questions = {arm: entry.result["candidate_sha256"]["test"] for arm, entry in outcomes.items()}
    assert len({digest for arm, digest in questions.items() if not arm.is_draw}) == 1  # seeds share the questions
    assert len(set(questions.values())) == 2
    assert len(list(Path("saved/recommenders").glob("SASRec-*"))) == 2  # one a seed, none for the draw
    own, draw = (Arm("LLaRA(SASRec)", "ml-100k", 1, seed, seed == 7) for seed in (1, 7))
    assert outcomes[draw].paths["checkpoint"] == outcomes[own].paths["checkpoint"]
    assert outcomes[draw].result["recommender"]["sha256"] == outcomes[own].result["recommender"]["sha256"]


@pytest.mark.slow
def test_a_system_that_evaluates_another(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "settings: {protocol: leave_one_out}\n"
        "systems: {scored: {model: LLaRA}, generated: {evaluates: scored, decoding: generate}}",
        encoding="utf-8",
    )
    study = read_command([str(own), *SMALL])
    scored, generated = run_study(study).values()
    assert generated.result["decoding"] == "generate" and "training_seconds" not in generated.result["timings"]
    assert generated.paths["checkpoint"] == scored.paths["checkpoint"]


@pytest.mark.slow
def test_a_failed_arm_is_told_and_the_rest_go_on(monkeypatch, capsys):
    run = runner.run_recbole_llara

    def sometimes(model, **keys):
        if model == "SASRec":
            raise RuntimeError("the disk is on fire")
        return run(model=model, **keys)

    monkeypatch.setattr(runner, "run_recbole_llara", sometimes)
    assert main([THREE, *SMALL]) == 1
    report = capsys.readouterr().out
    assert "FAILED: SASRec on ml-100k, seed 2020: RuntimeError: the disk is on fire" in report
    assert "| LLaRA(SASRec)" in report and "| Popularity" in report
    monkeypatch.setattr(runner, "run_recbole_llara", run)
    assert main([THREE, *SMALL]) == 0  # only what failed is run


def test_a_plugins_model_takes_the_settings_of_an_llm_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MODELS", models.MODELS.copy())  # as it was, after the test
    plugin, own = tmp_path / "mine.py", tmp_path / "own.yaml"
    plugin.write_text(
        'import recbole_llara\nrecbole_llara.register_model("Mine", "recbole_llara.model.llara:LLaRA", defaults={})'
    )
    own.write_text(
        f"settings: {{protocol: leave_one_out, plugins: [{plugin}]}}\nsystems: {{mine: {{model: Mine}}, SASRec: {{model: SASRec}}}}"
    )
    study = read_command([str(own), *SMALL])
    at_first = StudyRuns(study).places
    assert at_first == StudyRuns(study).places  # when the plugin has been loaded


def test_a_users_mistake_ends_with_2_before_anything_is_trained(monkeypatch, capsys):
    assert main([THREE, "--epoch=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert main(["main_results", "--train_batch_size=1"]) == 2
    assert "RSLLM(GRU4Rec) on ml-100k: train_batch_size: found 1" in capsys.readouterr().err
    assert main([THREE, "--keep_cases=False"]) == 2
    assert "keep_cases: found False, expected True: a study compares answers row by row" in capsys.readouterr().err
    assert main([THREE, "--dataset=ml-100k,nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([]) == 2
    assert "found 0 studies" in capsys.readouterr().err
    assert main([THREE, "--llm_path=./nothing"]) == 2
    assert "llm_path is './nothing'" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main([THREE, "--llm_path=nobody/nothing"]) == 2
    assert "llm_path is 'nobody/nothing': the hub cannot be reached" in capsys.readouterr().err
    Path("llm").mkdir()
    copyfile(TINY_LLAMA_DIR / "config.json", "llm/config.json")
    assert main([THREE, "--llm_path=llm"]) == 2
    assert "llm_path is 'llm': no tokenizer can be read there" in capsys.readouterr().err
    assert main(["main_results", "--text_encoder_path=./nothing"]) == 2
    assert "text_encoder_path is './nothing'" in capsys.readouterr().err
    assert not Path("saved/recommenders").exists()


def test_a_key_that_one_model_has_goes_to_its_systems(monkeypatch):
    """The papers' MoRec reads BERT, their chat model is GPT-4: both can be asked for without a study file of one's own."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    plain = StudyRuns(read_command(["main_results"])).places
    given = {
        "text_pooling": ("cls", {"MoRec(SASRec)"}),
        "user_item_weight": ("0", {"RSLLM(GRU4Rec)", "RSLLM(Caser)", "RSLLM(SASRec)"}),
        "api_base": ("http://127.0.0.1:9/v1", {"ChatLLM"}),
        "max_title_tokens": ("40", None),  # of every system that reads titles
    }
    for key, (value, systems) in given.items():
        places = StudyRuns(read_command(["main_results", f"--{key}={value}"])).places
        changed = {arm.system for arm in plain if places[arm] != plain[arm]}
        assert changed == systems if systems else {"LLaRA(SASRec)", "TALLRec"} <= changed, key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "learning_rate",
            "learning_rate: found 3, but no system of the study takes it; expected rec_learning_rate for its recommenders",
        ),
        ("rec_learning_rat", "rec_learning_rat: found 3, .* did you mean 'rec_learning_rate'"),
        ("user_item_weight", "user_item_weight: found 3, but no system of the study takes it"),
    ],
)
def test_a_setting_that_no_system_takes_is_refused(key, message, tmp_path):
    own = tmp_path / "two.yaml"
    own.write_text("systems: {Popularity: {model: Popularity}, SASRec: {model: SASRec}}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        StudyRuns(read_command([str(own), f"--{key}=3"]))


def test_a_setting_that_every_system_overrides_is_refused(tmp_path):
    """One that some systems leave alone is theirs to take."""
    with pytest.raises(UserError, match="strategy: found 'direct', but every system of the study that takes it has its own"):
        StudyRuns(read_command(["learning_strategy", "--strategy=direct"]))
    own = tmp_path / "two.yaml"
    own.write_text("systems: {Direct: {model: LLaRA, strategy: direct}, LLaRA: {model: LLaRA}}", encoding="utf-8")
    plain, asked = (StudyRuns(read_command([str(own), *words])).places for words in ([], ["--strategy=two_stage"]))
    assert [arm.system for arm in plain if plain[arm] != asked[arm]] == ["LLaRA"]


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(**keys):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_recbole_llara", interrupted)
    assert main([THREE, *SMALL]) == 130
    assert "0 of 3 runs are finished and kept, the same command resumes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"], []])
def test_two_processes_share_the_arms_of_a_study(tmp_path, launcher):
    """Started by a launcher or by the command: every system is run once, by one or the other, and the first tells of all."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "recbole_llara", "study", THREE, *SMALL]
    command += [] if launcher else ["--processes=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| LLaRA(SASRec) ") == 4  # results, comparison, popularity, time: one report
    assert done.stderr.count("3/3") >= 2  # both came to the end
    assert sorted(result["model"] for result in results()) == ["LLaRA", "Popularity", "SASRec"]


@pytest.mark.slow
def test_an_arm_that_another_process_runs_is_waited_for(monkeypatch):
    """Its outcome is taken when it comes; meanwhile the others are run."""
    study = read_command([THREE, *SMALL])
    runs = StudyRuns(study), StudyRuns(study)
    arms = arms_of(study)
    slept = []

    def finish(seconds):
        slept.append(list(runs[0].outcomes))
        with lock:
            runs[1].perform(arm)

    monkeypatch.setattr(runner, "sleep", finish)
    arm, lock = runs[1].claim()
    execute(runs[0])
    outcomes = runs[0].outcomes
    assert arm == arms[0] and slept == [arms[1:]] and all(isinstance(outcome, FinishedArm) for outcome in outcomes.values())
    assert len(results()) == 3


def test_no_process_waits_for_a_recommender_while_another_run_is_free():
    """Each process claims another seed's SASRec; LLaRA, which reads one that is being trained, comes when nothing else is left."""
    study = read_command([THREE, *SMALL, "--seeds=2020,2021"])
    claims = [StudyRuns(study).claim() for _ in arms_of(study)]
    for _, lock in claims:
        lock.lock.release()
    order = [(arm.system, arm.seed) for arm, _ in claims]
    llms = [("LLaRA(SASRec)", 2020), ("LLaRA(SASRec)", 2021)]
    assert order == [*((arm.system, arm.seed) for arm in arms_of(study) if arm.system != "LLaRA(SASRec)"), *llms]


def test_one_process_runs_arms_in_their_order(monkeypatch):
    """That of ``arms_of``: a recommender's further draws do not go before the LLM that reads it."""
    study = read_command([THREE, *SMALL, "--seeds=2020,2021", "--candidate_seeds=7"])
    runs, order = StudyRuns(study), []

    def finish(arm):
        order.append(arm)
        runs.keep(arm, FailedArm("not run"))
        return ""

    monkeypatch.setattr(runs, "perform", finish)
    monkeypatch.setattr(runs, "forecast", tuple)
    execute(runs)
    assert order == arms_of(study)


def numbers(folder):
    with open(next(Path(folder).glob("studies/three-*/runs.csv")), encoding="utf-8") as file:
        return [
            {key: value for key, value in row.items() if key.startswith(("test", "valid", "system"))}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_results(tmp_path):
    """SIGKILL while LLaRA is training, after the other systems have been finished."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recbole_llara", "study", THREE, *LONGER]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen([*command, "--checkpoint_dir=killed"], env=environment, stderr=errors, stdout=errors)
        deadline = time.monotonic() + 120
        while not list(Path("killed").glob("LLaRA-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()[-2000:]
    assert len(list(Path("killed/studies/finished").glob("*.json"))) == 2
    for folder in ("killed", "whole"):
        subprocess.run([*command, f"--checkpoint_dir={folder}"], env=environment, check=True, capture_output=True)
    assert numbers("killed") == numbers("whole") and len(numbers("whole")) == 3


@pytest.mark.slow
def test_the_chat_model_of_a_study_is_served_by_it():
    study = load_study("main_results").with_arguments({"max_eval_rows": 8, "show_progress": False})
    run = StudyRuns(study)
    arm = next(arm for arm in arms_of(study) if arm.system == "ChatLLM")
    result = run.outcome_of(arm).result
    assert result["n"] == 8 == result["chat"]["paid"]["requests"] and result["chat"]["paid"]["completion_tokens"] >= 8
    assert sum(result["answers"].values()) == 8
    assert result["llm"] == "tiny"


def test_what_is_kept_depends_on_the_keys_and_the_data_and_not_on_where_it_lies(tmp_path):
    keys = {**write_toy_dataset(tmp_path), "protocol": "leave_one_out", "dataset": "toy"}

    def places(**changed):
        run = StudyRuns(load_study(THREE).with_arguments({**keys, **changed}))
        return [place.name for place in run.places.values()]

    first = places()
    assert places(checkpoint_dir=str(tmp_path / "other"), show_progress=False) == first
    popularity, sasrec, llara = places(rec_learning_rate=0.5)
    assert popularity == first[0] and sasrec != first[1] and llara != first[2]  # LLaRA reads SASRec
    assert not set(places(seed=3)) & set(first)
    # The recommender that LLaRA reads is another one, and it is the one that is asked.
    popularity, sasrec, llara = places(recommender_rows="earlier")
    assert popularity == first[0] and sasrec != first[1] and llara != first[2]
    interactions = next(Path(keys["data_path"]).rglob("toy.inter"))
    os.utime(interactions, (0, 0))  # as a copy on another machine may have it
    assert places() == first
    interactions.write_text(interactions.read_text() + "\n")
    assert not set(places()) & set(first)


def test_other_weights_of_the_embedded_llm_are_those_of_its_readers_alone(tmp_path, monkeypatch):
    own, keys = tmp_path / "own.yaml", {**write_toy_dataset(tmp_path), "protocol": "leave_one_out", "dataset": "toy"}
    systems = {
        "SASRec": {"model": "SASRec"},
        "MoRec": {"model": "MoRec"},
        "MoRec, an encoder of one's own": {"model": "MoRec", "text_encoder_path": "encoder"},
        "LLaRA": {"model": "LLaRA"},
        "LLaRA, another LLM": {"model": "LLaRA", "llm_path": "smollm2"},
        "chat": {"model": "ChatLLM", "api_base": "local"},
        "SASRec + LLaRA": {"fuses": ["SASRec", "LLaRA"]},
        "SASRec + LLaRA, another LLM": {"fuses": ["SASRec", "LLaRA, another LLM"]},
    }
    own.write_text(yaml.safe_dump({"systems": systems}, sort_keys=False), encoding="utf-8")

    def places():
        return {arm.system: place.name for arm, place in StudyRuns(load_study(str(own)).with_arguments(keys)).places.items()}

    before = places()
    monkeypatch.setattr(source, "embedded_llm_sha256", lambda: "of other weights")
    after = places()
    changed = {system for system in systems if before[system] != after[system]}
    assert changed == {"MoRec", "LLaRA", "chat", "SASRec + LLaRA"}


def test_a_stock_system_is_what_an_llm_reads_only_where_it_is_the_same_recommender(tmp_path):
    own = tmp_path / "own.yaml"
    longer, whole = {"MAX_ITEM_LIST_LENGTH": 50}, {"MAX_ITEM_LIST_LENGTH": 200, "prompt_history": 10}
    systems = {
        "SASRec": {"model": "SASRec"},
        "SASRec, 50 items": {"model": "SASRec", **longer},
        "GRU4Rec": {"model": "GRU4Rec"},
        "EASE": {"model": "EASE"},
        "EASE, 50 items": {"model": "EASE", **longer},
        "LLaRA(SASRec)": {"model": "LLaRA"},
        "LLaRA(SASRec), 50 items": {"model": "LLaRA", **longer},
        "LLaRA(EASE)": {"model": "LLaRA", "rec_model": "EASE", **whole},
    }
    own.write_text(yaml.safe_dump({"systems": systems}, sort_keys=False), encoding="utf-8")
    runs = StudyRuns(load_study(str(own)))
    readers = {arm.system: runs._reader(arm) for arm in arms_of(runs.study) if runs.study.model_of(arm.system) != "LLaRA"}
    assert readers == {
        **{"SASRec": "LLaRA(SASRec)", "SASRec, 50 items": None, "GRU4Rec": None},
        **{"EASE": "LLaRA(EASE)", "EASE, 50 items": None},
    }


def test_fields_of_a_study_are_read_by_all_that_read_texts(tmp_path):
    own = tmp_path / "own.yaml"
    systems = {name: {"model": name} for name in ("SASRec", "MoRec", "LLaRA")}
    own.write_text(yaml.safe_dump({"systems": systems, "settings": {"item_fields": ["class"]}}), encoding="utf-8")
    runs = StudyRuns(load_study(str(own)))
    found = {arm.system: runs._values(arm).get("item_fields") for arm in arms_of(runs.study)}
    assert found == {"SASRec": None, "MoRec": ["class"], "LLaRA": ["class"]}


def test_time_left_is_what_like_arms_took(tmp_path):
    own = tmp_path / "own.yaml"
    models = {"LLaRA(GRU4Rec)": "LLaRA", "SASRec": "SASRec", "Caser": "Caser", "LLaRA(Caser)": "LLaRA"}
    models |= {"GRU4Rec": "GRU4Rec", "TALLRec": "TALLRec"}
    own.write_text(yaml.safe_dump({"systems": {name: {"model": model} for name, model in models.items()}}), encoding="utf-8")
    runs = StudyRuns(load_study(str(own)))
    assert runs.seconds_left() is None
    arms = {arm.system: arm for arm in arms_of(runs.study)}
    runs.keep(arms["LLaRA(GRU4Rec)"], FinishedArm({}, {}, 100.0))
    runs.keep(arms["SASRec"], FinishedArm({}, {}, 10.0))
    runs.keep(arms["Caser"], FailedArm("no time was measured"))
    assert runs.seconds_left() == 100 + 10 + 100  # LLaRA(Caser) as the same model, GRU4Rec and TALLRec as others of their kind
    runs.keep(arms["LLaRA(Caser)"], FinishedArm({}, {}, 60.0))
    assert runs.seconds_left() == 10 + 80


def test_a_study_of_ones_own(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("settings: {protocol: leave_one_out}\nsystems: {most often: {model: Popularity}}", encoding="utf-8")
    assert main([str(own), "--max_eval_rows=30", "--show_progress=False"]) == 0
    assert "| most often |" in capsys.readouterr().out
    with pytest.raises(UserError, match="found 2 studies"):
        read_command([str(own), THREE])
