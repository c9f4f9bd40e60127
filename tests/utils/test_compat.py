"""What importing RecBole must not leave behind."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_numbers_below_the_normal_ones_are_zero_in_a_run():
    """A product that is denormal: kept by default, zero once a run has begun."""
    begin = (
        "from recbole_llara import run_recbole_llara\ntry: run_recbole_llara('no model', 'ml-100k')\nexcept ValueError: pass\n"
    )
    code = "import torch\nprint(float(torch.tensor([1e-30]) * torch.tensor([1e-9])))"
    assert 0 < float(printed_by(code).split()[-1]) < 1.2e-38
    assert float(printed_by(begin + code).split()[-1]) == 0


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="an allocator of another kind")
def test_a_run_keeps_the_memory_that_its_tensors_give_back(monkeypatch):
    """Where glibc maps every tensor by itself, 120 MB go back to the kernel each time, and come again by 30,000 page faults."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))  # by default it depends on what else lies on the heap
    begin = "from recbole_llara.utils.compat import prepare_cpu\nprepare_cpu()\n"
    code = (
        "import os, resource\nos.environ['THP_MEM_ALLOC_ENABLE'] = '0'\nimport torch\n{}"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "use = lambda: ([torch.ones(30 << 18) for _ in range(4)], None)[1]\n"
        "[use() for _ in range(3)]\nbefore = faults()\n[use() for _ in range(5)]\nprint(faults() - before)"
    )
    given_back, kept = (int(printed_by(code.format(start)).split()[-1]) for start in ("", begin))
    assert given_back > 100_000
    assert kept < given_back / 3  # none, or one of the five rounds where the heap had to grow once more


def test_large_tensors_are_in_huge_pages_where_the_kernel_gives_them():
    assert printed_by("import recbole_llara, os; print(os.environ['THP_MEM_ALLOC_ENABLE'])").split()[-1] == "1"
    assert (
        printed_by(
            "import os; os.environ['THP_MEM_ALLOC_ENABLE'] = '0'; import recbole_llara; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
        ).split()[-1]
        == "0"
    )


def test_recbole_s_folders_may_be_made_by_another_run_meanwhile(tmp_path, monkeypatch):
    """Between its look and its making RecBole itself ends with FileExistsError; made before, it has nothing to make."""
    from recbole_llara.utils.compat import make_folders

    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        make_folders("LLaRA", "deep/saved")
    assert (tmp_path / "log" / "LLaRA").is_dir() and (tmp_path / "deep" / "saved").is_dir()
