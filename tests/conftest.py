"""Small LLMs, tokenizers and prompts that the tests of the engine share; all made here, from seeds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from byte_level import train_byte_level
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from recbole_llara.config.models import MODELS
from recbole_llara.data.converters import CONVERTERS
from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.adapters import tune
from recbole_llara.llm.architecture import EmbeddedPrompts, input_embeddings
from recbole_llara.model.losses import LOSSES

hypothesis.settings.register_profile("untimed", deadline=None)  # machines are shared: a pause is no fault
hypothesis.settings.load_profile("untimed")
VOCABULARY = 97
WIDTH = 32
EOS = 1
ARCHITECTURES = ("llama", "gpt2", "qwen2")


def _config(architecture: str, vocab_size: int) -> LlamaConfig | GPT2Config | Qwen2Config:
    # Weights wide enough that answers differ by more than rounding.
    common = {"vocab_size": vocab_size, "initializer_range": 0.4, "eos_token_id": EOS, "bos_token_id": 0}
    if architecture == "gpt2":
        return GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=256, **common)
    llama_like = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if architecture == "qwen2":
        return Qwen2Config(num_key_value_heads=2, **llama_like, **common)
    return LlamaConfig(num_key_value_heads=2, **llama_like, **common)


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., nn.Module]:
    """Builds a causal LM of two blocks, in evaluation mode; with LoRA adapters that do change its output."""

    def make(
        architecture: str, lora: bool = False, attention: str = "sdpa", vocab_size: int = VOCABULARY, seed: int = 0
    ) -> PreTrainedModel | nn.Module:
        torch.manual_seed(seed)
        llm = AutoModelForCausalLM.from_config(_config(architecture, vocab_size), attn_implementation=attention)
        if lora:
            llm = tune(llm, "lora", lora_r=4, lora_alpha=8, lora_dropout=0.1, lora_target_modules="auto")
            for name, parameter in llm.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.3)
        return llm.eval()

    return make


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclass(frozen=True)
class Prompts(EmbeddedPrompts):
    """Left-padded prompts; ``row(b)`` is one of them without padding."""

    def row(self, number: int, padding: int = 0) -> "Prompts":
        """One row alone, with so much padding on its left."""
        length = int(self.attention_mask[number].sum()) + padding
        return Prompts(
            **{
                name: nn.functional.pad(tensor, (0, 0, length, 0) if tensor.dim() == 3 else (length, 0))[
                    number : number + 1, -length:
                ]
                for name, tensor in vars(self).items()
            }
        )

    def as_dict(self) -> dict[str, torch.Tensor]:
        return dict(vars(self))


@pytest.fixture
def make_prompts() -> Callable[..., Prompts]:
    """Draws prompts of given lengths, one token in three being no token at all, as item slots are."""

    def make(llm: nn.Module, lengths: list[int], seed: int = 1) -> Prompts:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths))
        mask = (torch.arange(shape[1]) >= shape[1] - torch.tensor(lengths)[:, None]).long()  # [B, T]
        ids = torch.randint(2, VOCABULARY, shape, generator=generator)
        embeds = input_embeddings(llm)(ids).detach()
        slots = torch.rand(shape, generator=generator) < 1 / 3
        embeds[slots] = torch.randn(int(slots.sum()), embeds.shape[2], generator=generator) * 0.4
        return Prompts(embeds, mask, (mask.cumsum(1) - 1).clamp(min=0))

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Trains a byte-level BPE tokenizer on given texts; see ``byte_level``."""

    return train_byte_level


@pytest.fixture(autouse=True)
def own_tables() -> Iterator[None]:
    """What a test registers is gone after it."""
    tables = (MODELS, LOSSES, DECODINGS, CONVERTERS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
