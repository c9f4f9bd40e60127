"""What importing RecBole must not leave behind."""

from fresh_interpreter import printed_by

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
    printed_by(CODE)
