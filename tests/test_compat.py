"""What importing RecBole must not leave behind."""

import subprocess
import sys
from pathlib import Path

CODE = """
import torch
from recbole_llara.config import LLaRAConfig
import recbole_llara.quick_start, recbole_llara.model.llara
LLaRAConfig("SASRec", "ml-100k", config_dict={"use_gpu": False})
LLaRAConfig("LLaRA", "ml-100k", config_dict={"use_gpu": False})
assert "recbole.model.sequential_recommender.sine" in __import__("sys").modules
assert not torch.is_anomaly_enabled(), "anomaly detection is on for the whole process"
"""


def printed_by(code):
    """What a fresh interpreter prints."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recboles_models_are_imported_without_their_anomaly_detection():
    printed_by(CODE)


def test_numbers_below_the_normal_ones_are_zero_in_a_run():
    """A product that is denormal: kept by default, zero once a run has begun."""
    begin = (
        "from recbole_llara import run_recbole_llara\ntry: run_recbole_llara('no model', 'ml-100k')\nexcept ValueError: pass\n"
    )
    code = "import torch\nprint(float(torch.tensor([1e-30]) * torch.tensor([1e-9])))"
    assert 0 < float(printed_by(code).split()[-1]) < 1.2e-38
    assert float(printed_by(begin + code).split()[-1]) == 0


def test_recbole_s_folders_may_be_made_by_another_run_meanwhile(tmp_path, monkeypatch):
    """Between its look and its making; RecBole itself ends with FileExistsError."""
    from recbole.trainer import trainer
    from recbole.utils import logger

    from recbole_llara.compat import share_folders

    share_folders()
    monkeypatch.setattr("os.path.exists", lambda path: False)
    for module in (logger, trainer):
        for _ in range(2):
            module.ensure_dir(str(tmp_path / "deep" / "folder"))
    assert (tmp_path / "deep" / "folder").is_dir()
