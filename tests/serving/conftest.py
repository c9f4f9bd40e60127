"""What the tests of this folder share."""

import pytest
from toy_run import STOCK_KEYS, keys, make_trainer, save_llm  # noqa: F401

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.loaded import load


@pytest.fixture
def make_run(keys):  # noqa: F811
    """Trains a toy run; returns its folder."""

    def make(model="LLaRA", **changes):
        if model not in ("LLaRA", "RSLLM", "TALLRec", "ZeroShotLLM"):
            changes = {"epochs": 1, **changes}
            return run_recbole_llara(model, "toy", config_dict={**{key: keys[key] for key in STOCK_KEYS}, **changes})["run_dir"]
        return run_recbole_llara(model, "toy", config_dict={**keys, **changes})["run_dir"]

    return make


@pytest.fixture
def run(make_run):
    """A loaded toy run of LLaRA."""
    return load(make_run())
