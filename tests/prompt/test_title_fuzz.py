"""Some of the examples that ``make test-fuzz`` checks by the thousand: mostly the same ones each time, for hypothesis also tries constants of the modules loaded."""

import pytest
import torch
from title_fuzz import Example, check_example, fuzz, make_tokenizers

TOKENIZERS = make_tokenizers()
FOUND = [
    # A title that is cut within a character, twins once cut, and one that Llama-2 spells as spaces.
    Example(["", "🎬🎬🎬🎬", "🎬🎬🎬🎭", "\u2581", "\u2581"], [[1, 1], []], [[1, 2], [3, 4]], [2, 3], [0, 3], "left", 4, None),
    # Titles of which the embedded LLM's tokens of white space alone were left.
    Example(["", "{x}", ", {x}", ", , {x}"], [[], []], [[1, 2], [1, 3]], [1, 1], [0, 0], "left", 2, None),
]


@pytest.fixture(params=["tiny", "byte_level", "llama_2"])
def tokenizer(request):
    if request.param not in TOKENIZERS:
        pytest.skip("the Llama-2 tokenizer is not at ../shared/tokenizers/llama-2")
    return TOKENIZERS[request.param]


@pytest.fixture
def one_thread():
    """Tensors of a few numbers gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_no_slot_is_lost_or_forged(tokenizer, one_thread):
    assert fuzz(tokenizer, 60, derandomize=True) >= 60


@pytest.mark.parametrize("example", FOUND)
def test_what_was_found_once(tokenizer, example):
    check_example(tokenizer, example)
