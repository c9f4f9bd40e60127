"""Tests of this folder need a GPU with CUDA; elsewhere they are skipped."""

import pytest
import torch
from toy_run import keys, make_trainer, save_llm  # noqa: F401


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="no GPU with CUDA here"))
