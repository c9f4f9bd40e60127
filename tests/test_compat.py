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


def test_recboles_models_are_imported_without_their_anomaly_detection():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_numbers_below_the_normal_ones_are_zero_in_a_run():
    """A product that is denormal: kept by default, zero once a run or a study has begun."""
    code = "import torch\nfrom recbole_llara.{module} import {name}\n{call}\nprint(float(torch.tensor([1e-30]) * torch.tensor([1e-9])))"
    begin = {
        "pass": ("compat", "flush_denormals", "pass"),
        "run": ("quick_start", "run_recbole_llara", "try: run_recbole_llara('no model', 'ml-100k')\nexcept ValueError: pass"),
    }
    printed = {}
    for case, (module, name, call) in begin.items():
        done = subprocess.run(
            [sys.executable, "-c", code.format(module=module, name=name, call=call)],
            cwd=Path(__file__).resolve().parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed[case] = float(done.stdout.splitlines()[-1])
    assert 0 < printed["pass"] < 1.2e-38 and printed["run"] == 0
