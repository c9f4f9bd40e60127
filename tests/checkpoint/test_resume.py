"""A run that was killed or stopped goes on and ends as if nothing had happened; one that broke says how to go on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from killing import kill_until_done, outcome, run_folder, share_recommender, start

from recbole_llara.checkpoint.training_state import TrainingStates
from recbole_llara.llm import source
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import RunError, Stopped, UserError

STEPS = 4  # an epoch of 64 rows in steps of 16


@pytest.fixture
def long_keys(keys):
    """A run with dropout, a curriculum and two epochs, saved at every step."""
    return {
        **keys, "model": "LLaRA", "epochs": 2, "max_train_rows": 64, "strategy": "curriculum", "lora_dropout": 0.1,
        "save_steps": 1, "learning_rate": 1e-3, "rec_epochs": 2,
    }  # fmt: skip


@pytest.fixture
def make_folder(tmp_path):
    """Makes a folder for a run of the command line."""

    def make(name, keys):
        folder = tmp_path / name
        folder.mkdir()
        values = {**keys, "checkpoint_dir": "saved"}
        (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return folder

    return make


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(long_keys, make_folder):
    undisturbed, killed = make_folder("undisturbed", long_keys), make_folder("killed", long_keys)
    assert start(undisturbed).wait(timeout=300) == 0, (undisturbed / "printed.txt").read_text(encoding="utf-8")[-3000:]
    share_recommender(undisturbed, killed)
    assert kill_until_done(killed, kills=3, steps_an_epoch=STEPS, seed=0).total() == 3
    assert outcome(killed) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(number, long_keys, make_folder):
    folder = make_folder("stopped", {**long_keys, "epochs": 40, "save_steps": 0})
    # Where the tests are a background job of a shell, their children are deaf to Ctrl-C.
    process = start(folder, hears=True)
    deadline = time.monotonic() + 300
    while not list(folder.glob("saved/*/training_state/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, (folder / "printed.txt").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=100) == 128 + number
    last = (folder / "printed.txt").read_text(encoding="utf-8").splitlines()[-1]
    run = run_folder(folder)
    assert last.startswith("recbole-llara: ") and f"--resume=saved/{run.name}" in last
    assert not (run / "result.json").exists() and len(TrainingStates(run).paths()) in (1, 2)


def _stop_at(monkeypatch, trainer_class, step):
    """Let Ctrl-C be pressed in an optimiser step."""
    take = trainer_class._train_step

    def pressed(self, rows):
        if self.progress.all_steps == step:
            signal.raise_signal(signal.SIGINT)
        return take(self, rows)

    monkeypatch.setattr(trainer_class, "_train_step", pressed)


@pytest.fixture
def stopped_run(long_keys, monkeypatch):
    """The folder of a run that was stopped in the second epoch's second step."""
    return _stopped(long_keys, monkeypatch)


def _stopped(keys, monkeypatch):
    from recbole_llara.trainer.trainer import LLMTrainer

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="--resume=") as stop:
        patch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
        _stop_at(patch, LLMTrainer, STEPS + 1)
        run_recbole_llara(dataset="toy", config_dict=keys)
    assert stop.value.signal_number == signal.SIGINT
    (run,) = Path(keys["checkpoint_dir"]).glob("LLaRA-*")
    return run


def test_a_run_goes_on_by_its_folder_alone(stopped_run, long_keys, tmp_path):
    paths = run_recbole_llara(argv=[f"--resume={stopped_run}"])
    assert paths["run_dir"] == str(stopped_run) and not TrainingStates(stopped_run).paths()
    whole = run_recbole_llara(dataset="toy", config_dict=long_keys)
    for name in ("training.jsonl", "cases.jsonl"):
        assert (stopped_run / name).read_bytes() == (Path(whole["run_dir"]) / name).read_bytes()
    result = json.loads((stopped_run / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["test"] == dict(whole["test_result"])
    with pytest.raises(UserError, match="is finished"):
        run_recbole_llara(argv=[f"--resume={stopped_run}"])


def test_other_keys_and_other_folders_are_refused(stopped_run, long_keys, tmp_path):
    with pytest.raises(UserError, match=r"learning_rate: 0\.001 there, 0\.002 here"):
        run_recbole_llara(argv=[f"--resume={stopped_run}", "--learning_rate=2e-3"])
    with pytest.raises(UserError, match="found no config.yaml"):
        run_recbole_llara(argv=[f"--resume={tmp_path}"])
    request = stopped_run / "request.yaml"
    request.write_text(request.read_text(encoding="utf-8").replace("version: ", "version: 9."), encoding="utf-8")
    with pytest.raises(UserError, match="was begun by recbole-llara 9"):
        run_recbole_llara(argv=[f"--resume={stopped_run}"])
    with pytest.raises(UserError, match="SASRec, which keeps no training states"):
        run_recbole_llara("SASRec", "toy", config_dict={"data_path": long_keys["data_path"], "resume": "auto"})
    with pytest.raises(UserError, match="expected one of them"):
        run_recbole_llara("LLaRA", "toy", config_dict={**long_keys, "resume": "auto", "checkpoint": "x"})


def test_other_interactions_are_refused(long_keys, monkeypatch):
    """One test row's item gone from the file, all items still known: no recommender's checksum tells."""
    from recbole_llara.trainer.trainer import LLMTrainer

    keys = {**long_keys, "model": "TALLRec", "strategy": "direct"}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
        _stop_at(patch, LLMTrainer, STEPS + 1)
        run_recbole_llara(dataset="toy", config_dict=keys)
    (run,) = Path(keys["checkpoint_dir"]).glob("TALLRec-*")
    (file,) = Path(keys["data_path"]).glob("**/toy.inter")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match="interactions or candidates of toy are not those that .* began with"):
        run_recbole_llara(argv=[f"--resume={run}"])
    file.write_text("".join(lines), encoding="utf-8")
    assert Path(run_recbole_llara(argv=[f"--resume={run}"])["run_dir"]) == run


def test_another_order_of_the_file_changes_no_number(stopped_run, long_keys):
    """RecBole numbers the items anew; the run goes on by its own numbers, and ends as one over the file as it was."""
    (file,) = Path(long_keys["data_path"]).glob("**/toy.inter")
    head, *rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text(head + "".join(rows[::-1]), encoding="utf-8")
    run_recbole_llara(argv=[f"--resume={stopped_run}"])
    file.write_text(head + "".join(rows), encoding="utf-8")
    whole = run_recbole_llara(dataset="toy", config_dict=long_keys)
    for name in ("training.jsonl", "cases.jsonl"):
        assert (stopped_run / name).read_bytes() == (Path(whole["run_dir"]) / name).read_bytes()


def test_auto_takes_the_unfinished_run_of_the_same_keys_only(stopped_run, long_keys):
    other = run_recbole_llara(dataset="toy", config_dict={**long_keys, "seed": 7, "resume": "auto", "epochs": 1})
    assert Path(other["run_dir"]) != stopped_run
    again = run_recbole_llara(dataset="toy", config_dict={**long_keys, "resume": "auto"})
    assert Path(again["run_dir"]) == stopped_run


def test_a_run_over_other_weights_of_the_embedded_llm_is_left_alone(long_keys, monkeypatch):
    keys = {**long_keys, "llm_path": "tiny", "max_eval_rows": 4}
    run = _stopped(keys, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(source, "embedded_llm_sha256", lambda: "of other weights")
        with pytest.raises(UserError, match="was begun over other weights of the embedded LLM; start a new run"):
            run_recbole_llara(argv=[f"--resume={run}"])
        other = run_recbole_llara(dataset="toy", config_dict={**keys, "resume": "auto"})
    assert Path(other["run_dir"]) != run
    assert run_recbole_llara(argv=[f"--resume={run}"])["run_dir"] == str(run)


def test_two_processes_never_write_one_run(stopped_run, long_keys):
    hold = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(99)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(stopped_run / ".lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is writing"):
        run_recbole_llara(argv=[f"--resume={stopped_run}"])
    holder.kill()
    holder.wait()
    assert run_recbole_llara(argv=[f"--resume={stopped_run}"])["run_dir"] == str(stopped_run)


def test_a_damaged_state_is_passed_over_for_the_one_before(stopped_run, caplog):
    newest = TrainingStates(stopped_run).paths()[-1]
    weights = newest / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with caplog.at_level("INFO"):
        run_recbole_llara(argv=[f"--resume={stopped_run}", "--state=INFO"])
    assert "training.safetensors is missing or was altered" in caplog.text


def test_all_states_damaged_is_an_error(stopped_run):
    for state in TrainingStates(stopped_run).paths():
        (state / "meta.json").write_text("{")
    with pytest.raises(UserError, match="all 2 states"):
        run_recbole_llara(argv=[f"--resume={stopped_run}"])
    for state in TrainingStates(stopped_run).paths():
        (state / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="found format 99, expected"):
        run_recbole_llara(argv=[f"--resume={stopped_run}"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_and_spoils_nothing(what, long_keys, monkeypatch, make_trainer):
    trainer, data = make_trainer(long_keys)
    losses = type(trainer.model).step_losses
    before = {}

    def broken(self, rows, step):
        found = losses(self, rows, step)
        if trainer.progress.all_steps != STEPS + 1:
            return found
        before.update({name: value.clone() for name, value in self.state_dict().items()})
        (name, value), *_ = found.items()
        if what == "gradient":  # finite itself
            zero = sum((p - p.detach()).abs().sum() for p in self.item_tokens.projector.parameters())
            return {name: value + torch.sqrt(zero)}
        return {name: value * float("nan")}

    monkeypatch.setattr(type(trainer.model), "step_losses", broken)
    with pytest.raises(
        RunError, match=rf"the {what} is nan at step {STEPS + 1}.*rows \d+ \('Title.*best checkpoint is.*--resume"
    ):
        trainer.fit(data.train_data, data.valid_data)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.best_epoch == 0
    trainer.evaluate(data.test_data)


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(stopped_run, monkeypatch):
    kept = {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()}

    def full(*_args, **_keys):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("recbole_llara.checkpoint.training_state.save_file", full)
        with pytest.raises(RunError, match="No space left on device.*untouched"):
            run_recbole_llara(argv=[f"--resume={stopped_run}"])
    assert {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()} == kept
    assert run_recbole_llara(argv=[f"--resume={stopped_run}"])["run_dir"] == str(stopped_run)
