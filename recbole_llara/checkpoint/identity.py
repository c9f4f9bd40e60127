"""What a checkpoint belongs to, as short digests (data, LLM, tokenizer)."""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.checkpoint.recbole_pickle import FILTERS
from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.numbering import Numbering
from recbole_llara.utils.hashing import DIGITS, facts_digest, mix

# What decides, beside the filters, which rows are training rows.
SPLIT_KEYS = ("split", "split_ratio", "min_train_history", "min_eval_history", "repeated_targets")
SAMPLED = 1024  # numbers of each tensor


def llm_digest(model: PreTrainedModel) -> str:
    """Digest of an LLM's weights before adapters are added: of every tensor name, shape and up to 1,024 evenly spread numbers.

    The numbers are rounded to bfloat16, so that an LLM is the same one in whichever floating type it was loaded. It tells
    models apart, fine-tuned ones from their base too; it is no checksum of a file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()
        numbers = flat[places.to(flat.device)].cpu()
        rounded = numbers.to(torch.bfloat16).float() if numbers.is_floating_point() else numbers
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(rounded.contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of a tokenizer's vocabulary and special tokens."""
    return facts_digest({"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map})


def data_facts(config: Any, data: PreparedData) -> dict[str, Any]:
    """Which items a model knows, and by which split: a row it learned from may be a test row of another."""
    protocol = data.dataset.protocol
    split = {key: getattr(protocol, key) for key in SPLIT_KEYS} | {key: config[key] for key in FILTERS}
    return {
        "dataset": config["dataset"],
        "split": protocol.split,
        "split_digest": facts_digest(split),
        "items_digest": Numbering.of(data.dataset).items_sha256[:DIGITS],
        "n_items": data.dataset.item_num,
    }


def training_digest(dataset: Any) -> str:
    """Digest of the interactions that training rows rest on, by external ids and in no order: of all rows, not of a sample.

    Where it differs, a test row of one split of ``prepare_data`` may have been a training row of the other.
    """
    known = dataset.knowledge.known["train"]
    user, item = np.divmod(known.keys, known.n_items)
    items = pd.util.hash_array(np.array(dataset.field2id_token[dataset.iid_field], dtype=object), categorize=False)
    pairs = mix(mix(dataset.user_hashes[user - 1].view(np.uint64)) ^ items[item])
    return hashlib.sha256(np.sort(pairs).tobytes()).hexdigest()[:DIGITS]


def rows_digest(data: PreparedData) -> str:
    """Digest of the training rows and of the candidates of validation and test: what a training may not change under way."""
    digest = hashlib.sha256(facts_digest(data.candidate_sha256).encode())
    for field in (data.dataset.uid_field, data.dataset.iid_field):
        digest.update(data.dataset.inter_feat[field].numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
