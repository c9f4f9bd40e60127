"""Tests of this folder need a GPU with CUDA; elsewhere they are skipped."""

import pytest
import torch
from toy_run import keys, make_trainer, save_llm  # noqa: F401


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="no GPU with CUDA here"))


@pytest.fixture
def plain_float32(monkeypatch):
    """Products in whole float32, as a CPU makes them, whatever the process allowed before."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
