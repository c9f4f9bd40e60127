"""What the tiny Llama's tests share: its tokenizer, the catalogue, and small task makers."""

import pytest
from transformers import AutoTokenizer

from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.tiny_llama.tasks import TaskMaker
from recbole_llara.tiny_llama.texts import read_catalogue


@pytest.fixture(scope="module")
def catalogue():
    return read_catalogue()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_LLAMA_DIR)


@pytest.fixture(scope="module")
def make_maker(tokenizer, catalogue):
    return lambda seed=1: TaskMaker(tokenizer, catalogue, seed, themes=60, tokens=1500)
