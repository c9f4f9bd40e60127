"""What RecBole 1.2.1 needs from us to run on today's libraries, beyond the version ranges of setup.py.

Most of it is what we do not do. ``recbole.quick_start`` imports ray, and ray pkg_resources: we import
``recbole.config``, ``data``, ``trainer`` and ``model``, which need neither. ``torch.load`` of RecBole's pickled
checkpoints, refused since torch 2.6, is replaced by safetensors (``checkpoint.weights``). What is left is one switch:
importing RecBole's sequential models (SINE's module) turns on autograd's anomaly detection for the whole process, which looks
for NaN in every gradient and more than doubles the time of a training step.
"""

from types import ModuleType

import torch


def sequential_recommenders() -> ModuleType:
    """RecBole's sequential models, imported without their switching on anomaly detection."""
    enabled = torch.is_anomaly_enabled()
    from recbole.model import sequential_recommender

    torch.autograd.set_detect_anomaly(enabled)
    return sequential_recommender
