"""What importing RecBole must not leave behind."""

import subprocess
import sys
from pathlib import Path

CODE = """
import torch
from recbole_llara.config.run_config import RunConfig
import recbole_llara.quick_start, recbole_llara.model.llara
RunConfig("SASRec", "ml-100k", config_dict={"use_gpu": False})
RunConfig("LLaRA", "ml-100k", config_dict={"use_gpu": False})
assert "recbole.model.sequential_recommender.sine" in __import__("sys").modules
assert not torch.is_anomaly_enabled(), "anomaly detection is on for the whole process"
"""


def printed_by(code):
    """What a fresh interpreter prints."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recboles_models_are_imported_without_their_anomaly_detection():
    printed_by(CODE)
