"""The library leaves the caller's process as it was; the command line sets up its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import toy_keys

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = """
import json, logging, os, pkgutil, random, signal, sys, warnings
import accelerate, numpy as np, optuna, pandas, peft, safetensors.torch, scipy.stats, sklearn, torch, transformers
import transformers.modeling_utils, recbole.config, recbole.data, recbole.trainer, recbole.utils, recbole.evaluator
import recbole.data.dataloader, recbole.data.dataset, recbole.model.abstract_recommender

def snapshot():
    functions = {}
    for module, content in list(sys.modules.items()):
        if module.partition(".")[0] == "recbole":
            for name, value in vars(content).items():
                if callable(value):
                    functions[f"{module}.{name}"] = id(value)
                    if isinstance(value, type) and value.__module__.startswith("recbole."):
                        functions |= {f"{module}.{name}.{inner}": id(it) for inner, it in vars(value).items() if callable(it)}
    name, keys, *others = np.random.get_state()
    return {
        "environment": dict(os.environ),
        "warnings": [str(entry) for entry in warnings.filters],
        "anomaly": torch.is_anomaly_enabled(),
        "denormals": bool(torch.tensor([1e-30]) * torch.tensor([1e-9]) != 0),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "generators": [repr(random.getstate()), keys.tolist(), others, torch.get_rng_state().tolist()],
        "logging": [list(map(id, logging.getLogger().handlers)), logging.getLogger().level],
        "streams": [id(sys.stdout), id(sys.stderr)],
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": os.getcwd(),
        "functions": functions,
    }

def compare(what, before):
    after = snapshot()
    for name, value in before.items():
        if not isinstance(value, dict):
            value, after[name] = {name: value}, {name: after[name]}
        known = value if name == "functions" else value | after[name]  # further modules may be imported
        changed = [(key, value.get(key), after[name].get(key)) for key in known if value.get(key) != after[name].get(key)]
        if changed:
            sys.exit(f"{what} changed {name}: {str(changed)[:2000]}")
"""
IMPORTS = """
import importlib
before = snapshot()
import recbole_llara
for module in pkgutil.walk_packages(recbole_llara.__path__, "recbole_llara."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
compare("importing", before)
"""
RUNS = """
import recbole_llara.quick_start, recbole_llara.serving.loaded
before = snapshot()
for model in ("SASRec", "LLaRA"):
    keys = json.load(open(f"{model}.json"))
    paths = recbole_llara.run_recbole_llara(model, "toy", config_dict=keys)
    compare(f"training {model}", before)
    recbole_llara.load(paths["run_dir"])
    compare(f"loading {model}", before)
"""
RECBOLES_MODELS = """
import torch
from recbole_llara.config.run_config import RunConfig
import recbole_llara.quick_start, recbole_llara.model.llara
RunConfig("SASRec", "ml-100k", config_dict={"use_gpu": False})
RunConfig("LLaRA", "ml-100k", config_dict={"use_gpu": False})
assert "recbole.model.sequential_recommender.sine" in __import__("sys").modules
assert not torch.is_anomaly_enabled(), "anomaly detection is on for the whole process"
"""


def _python(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_imports_change_nothing_of_the_process(tmp_path):
    _python(SNAPSHOT + IMPORTS, tmp_path)


@pytest.mark.slow
def test_a_run_and_its_loading_change_nothing_of_the_process(tmp_path, make_llm, make_tokenizer):
    keys = toy_keys(tmp_path, make_llm, make_tokenizer)
    shared = ("data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress")
    (tmp_path / "LLaRA.json").write_text(json.dumps(keys))
    (tmp_path / "SASRec.json").write_text(json.dumps({"epochs": 1, **{key: keys[key] for key in shared}}))
    _python(SNAPSHOT + RUNS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "expected"), [(None, "1 1000"), ("0", "0 0")])
def test_a_program_sets_up_its_process(tmp_path, monkeypatch, chosen, expected):
    """Denormals become zero; torch may ask for huge pages, and its waiting threads sleep soon, unless the user said otherwise."""
    for name in ("THP_MEM_ALLOC_ENABLE", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
        if chosen is not None:
            monkeypatch.setenv(name, chosen)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = (
        "import os, sys\nfrom recbole_llara.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules\n"
        "main(['--model=none'])\nimport torch\n"
        "print(os.environ['THP_MEM_ALLOC_ENABLE'], os.environ['GOMP_SPINCOUNT'], float(torch.tensor([1e-30]) * torch.tensor([1e-9])))"
    )
    assert _python(code, tmp_path).splitlines()[-1] == f"{expected} 0.0"


def test_recboles_models_are_imported_without_their_anomaly_detection(tmp_path):
    _python(RECBOLES_MODELS, tmp_path)
