"""Fixtures of a small run: toy data, a two-block LLM in a folder, few rows. The folders that need them import them."""

from pathlib import Path

import pytest
import torch
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer.trainer import LLMTrainer, get_trainer
from recbole_llara.utils.errors import Stopped

# Of a toy run's keys those that a stock model takes too.
STOCK_KEYS = (
    "data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress",
)  # fmt: skip
TITLES = [f" Title {item} é" for item in range(60)]


def _save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def save_llm():
    """Writes an LLM and its tokenizer to a folder, and returns its path."""
    return _save


@pytest.fixture
def keys(tmp_path, monkeypatch, make_llm, make_tokenizer):
    """The keys of a small run of one epoch."""
    monkeypatch.chdir(tmp_path)
    return toy_keys(tmp_path, make_llm, make_tokenizer)


def toy_keys(folder, make_llm, make_tokenizer):
    """The same for a folder that lives longer than one test."""
    tokenizer = make_tokenizer([*TITLES, "This user has chosen in the previous. Choose one of these items:"], 400)
    return {
        **write_toy_dataset(folder),
        "rec_epochs": 1,
        "llm_path": _save(folder / "llm", make_llm("llama", vocab_size=len(tokenizer)), tokenizer),
        "epochs": 1,
        "max_train_rows": 48,
        "max_eval_rows": 12,
        "train_batch_size": 16,
        "micro_batch_size": 8,
        "llm_dtype": "float32",
        "strategy": "direct",
        "lora_dropout": 0.0,
    }


@pytest.fixture
def make_trainer():
    """Builds the trainer of a run, and the data it reads."""

    def make(keys, model="LLaRA"):
        config = RunConfig(model, "toy", config_dict=keys)
        data = prepare_data(config)
        torch.manual_seed(0)
        return get_trainer(config, build_model(config, data)), data

    return make


def stirred(trainer, data):
    """The model with adapters that say something, and the rows of a step."""
    model = trainer.model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model, model.training_rows(next(iter(data.train_data)), 0)


def stopped_run(keys, step, monkeypatch):
    """The folder of a run of LLaRA that a signal stopped in an optimiser step, counted from 0."""
    take = LLMTrainer._train_step

    def stopped(self, rows):
        if self.progress.all_steps == step:
            self.stop.asked = 2
        return take(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(LLMTrainer, "_train_step", stopped)
        with pytest.raises(Stopped, match="--resume"):
            run_recbole_llara("LLaRA", "toy", config_dict=keys)
    (run,) = Path(keys["checkpoint_dir"]).glob("LLaRA-*")
    return run
