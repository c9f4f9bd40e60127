"""Faults while a run is under way, each from outside: a clear end, nothing lost, and the run goes on to its right end.

Others are tested where they belong: signals, kills, damaged states, NaN (``test_resume``), memory that runs out
(``test_out_of_memory``), damaged checkpoints (``test_trainer``), damaged caches and locks left behind (``test_item_encoder``,
``test_together``), damaged candidate files (``test_candidate_file``), an endpoint that fails (``test_chat``).
"""

import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from killing import TWO, outcome, run_folder, start

from recbole_llara.checkpoint.training_state import TrainingStates
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer.trainer import LLMTrainer
from recbole_llara.utils.errors import RunError, UserError


@pytest.fixture
def long_keys(keys):
    return {**keys, "model": "LLaRA", "epochs": 2, "save_steps": 1, "lora_dropout": 0.1}


def _at(monkeypatch, step, act):
    """Let something happen in an optimiser step."""
    take = LLMTrainer._train_step

    def acted(self, rows):
        if self.progress.all_steps == step:
            act(self)
        return take(self, rows)

    monkeypatch.setattr(LLMTrainer, "_train_step", acted)


def _run_of(keys):
    (run,) = Path(keys["checkpoint_dir"]).glob("LLaRA-*")
    return run


def _goes_on(run, keys):
    """The run goes on and ends as one that nothing happened to."""
    run_recbole_llara(argv=[f"--resume={run}"])
    whole = Path(run_recbole_llara(dataset="toy", config_dict={**keys, "checkpoint_dir": "whole"})["run_dir"])
    for name in ("training.jsonl", "cases.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_no_room_for_a_state(long_keys, monkeypatch):
    """The system refuses files of more than a kilobyte, as a full disk does, in the middle of the run."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            _at(patch, 4, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1])))
            with pytest.raises(RunError, match="cannot be written.*untouched.*checkpoint_dir"):
                run_recbole_llara(dataset="toy", config_dict=long_keys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    run = _run_of(long_keys)
    assert [state.name for state in TrainingStates(run).paths()] == ["step-000000003-epoch-0001", "step-000000004-epoch-0001"]
    assert not list(run.rglob(".*.part"))
    _goes_on(run, long_keys)


def test_no_room_for_tensorboard(long_keys, monkeypatch, caplog):
    """Its thread fails some time later; the run goes on without it."""

    def full(*_arguments):
        raise OSError(27, "File too large")

    _at(monkeypatch, 2, lambda trainer: monkeypatch.setattr(trainer.tensorboard, "add_scalar", full))
    returned = run_recbole_llara(dataset="toy", config_dict=long_keys)
    assert caplog.text.count("TensorBoard gets nothing further of this run") == 1 and Path(returned["result_file"]).is_file()


def test_no_room_for_the_result(long_keys, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("recbole_llara.checkpoint.run_folder.RunFolder.write_result", full)
        with pytest.raises(OSError, match="No space"):
            run_recbole_llara(dataset="toy", config_dict=long_keys)
    run = _run_of(long_keys)
    assert TrainingStates(run).paths()  # until the result is written the training is not thrown away
    _goes_on(run, long_keys)


def test_the_folder_goes_and_comes_back(long_keys, monkeypatch):
    away = Path("away")
    with monkeypatch.context() as patch:
        _at(patch, 4, lambda trainer: shutil.move(trainer.run_folder, away))
        with pytest.raises(RunError, match="has disappeared since the run began.*--resume"):
            run_recbole_llara(dataset="toy", config_dict=long_keys)
    run = Path(long_keys["checkpoint_dir"]) / yaml.safe_load((away / "request.yaml").read_text())["model"]
    assert not list(Path(long_keys["checkpoint_dir"]).glob("LLaRA-*"))  # nothing was written elsewhere
    shutil.move(away, run)
    _goes_on(run, long_keys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where nobody may")
def test_a_folder_that_may_not_be_written(long_keys, tmp_path):
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    with pytest.raises(UserError, match="checkpoint_dir"):
        run_recbole_llara(dataset="toy", config_dict={**long_keys, "checkpoint_dir": str(folder)})


def test_a_file_in_place_of_the_folder(long_keys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"checkpoint_dir: .*file"):
        run_recbole_llara(dataset="toy", config_dict={**long_keys, "checkpoint_dir": str(tmp_path / "file")})


def _children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed if "run_recbole_llara" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.slow
def test_a_worker_is_killed(long_keys, tmp_path):
    """One of two processes dies: the launcher ends the run, and it goes on to the end of an undisturbed one."""

    def two(folder):
        return start(folder, "--resume=auto", launcher=TWO)

    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "run.yaml").write_text(yaml.safe_dump({**long_keys, "epochs": 3, "checkpoint_dir": "saved"}))
    assert two(folders[0]).wait(timeout=300) == 0, (folders[0] / "printed.txt").read_text()[-3000:]
    launcher, deadline = two(folders[1]), time.monotonic() + 300
    while not list(folders[1].glob("saved/*/training_state/step-*")):
        assert launcher.poll() is None and time.monotonic() < deadline, (folders[1] / "printed.txt").read_text()[-3000:]
        time.sleep(0.01)
    os.kill(_children(launcher.pid)[1], signal.SIGKILL)
    assert launcher.wait(timeout=200) != 0
    assert not (run_folder(folders[1]) / "result.json").exists()
    assert two(folders[1]).wait(timeout=300) == 0, (folders[1] / "printed.txt").read_text()[-3000:]
    assert outcome(folders[1]) == outcome(folders[0])


@pytest.mark.slow
def test_a_broken_run_ends_with_1_and_no_traceback(long_keys, tmp_path):
    """The learning rate is legal and far too large."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**long_keys, "learning_rate": 1e30, "warmup_ratio": 0.0, "epochs": 3}))
    assert start(tmp_path).wait(timeout=300) == 1
    printed = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    assert "Traceback" not in printed
    assert (
        printed.splitlines()[-1].startswith("recbole-llara: error: training: the ") and "--resume=" in printed.splitlines()[-1]
    )
