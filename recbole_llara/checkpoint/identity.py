"""What a checkpoint belongs to, as short digests (data, LLM, tokenizer), and the table of all digests that any file stores."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.numbering import Numbering
from recbole_llara.utils.digests import DIGITS, facts_digest
from recbole_llara.utils.hashing import mix

# What decides which rows are training rows.
SPLIT_KEYS = ("split", "split_ratio", "min_train_history", "min_eval_history", "repeated_targets")
FILTER_KEYS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "benchmark_filename")
SAMPLED = 1024  # numbers of each tensor


@dataclass(frozen=True)
class Stored:
    """A digest that a file holds, or that names it.

    Args:
        files: pattern of the files below ``checkpoint_dir``.
        fact: pattern of its place in them; "name" = it stands in the path.
        of: what it is a digest of.
        compared: the function that compares it with what is there when the file is read.
        otherwise: what follows a difference: "refused"; "warned of" where something is measured; "made again" with a warning; "looked for elsewhere" where it is the
            name under which a thing is kept; "told" where no code reads it.
    """

    files: str
    fact: str
    of: str
    compared: str
    otherwise: str


_ENTRY, _META, _STATE = "recommenders/*/meta.json", "*/checkpoint/meta.json", "*/training_state/*"
STORED = (
    # What a run keeps.
    Stored("*/checkpoint.safetensors", "numbering_sha256", "its ids", "checkpoint.weights.read_checkpoint", "refused"),
    Stored(
        "*/checkpoint.safetensors",
        "belongs_to.*",
        "MoRec's text encoder",
        "recommender.weights.load_recommender",
        "refused",
    ),
    Stored(
        "*/checkpoint.safetensors", "training_digest", "training interactions", "quick_start.run_recbole_llara", "warned of"
    ),
    Stored(_META, "training_digest", "training interactions", "quick_start.run_recbole_llara", "warned of"),
    Stored(_META, "sha256.*", "each file beside it", "model.weights.load_llm_recommender", "refused"),
    Stored(_META, "belongs_to.*", "items, split, LLM, tokenizer, recommender", "model.weights.load_llm_recommender", "refused"),
    Stored(f"{_STATE}/meta.json", "sha256.*", "each file beside it", "checkpoint.training_state.load_newest", "made again"),
    Stored(f"{_STATE}/meta.json", "belongs_to.*", "as of a checkpoint", "checkpoint.training_state.load_newest", "refused"),
    Stored(f"{_STATE}/meta.json", "training_digest", "training interactions; rows_digest holds them too", "", "told"),
    Stored(
        f"{_STATE}/training.json",
        "trainer.rows_digest",
        "rows and candidates",
        "trainer.trainer.resume_checkpoint",
        "refused",
    ),
    Stored(_META, "prompts_digest", "the templates", "model.weights.has_other_prompts", "warned of"),
    Stored(f"{_STATE}/meta.json", "prompts_digest", "the templates", "trainer.trainer.resume_checkpoint", "refused"),
    Stored("*/result.json", "prompts_digest", "the templates", "", "told"),
    Stored("*/result.json", "recommender.sha256", "its weights' file", "serving.loaded.load", "refused"),
    Stored(
        "*/result.json",
        "recommender.path",
        "see recommenders/*",
        "recommender.frozen.prepare_recommender",
        "looked for elsewhere",
    ),
    Stored("*/result.json", "candidate_sha256.test", "the candidates' file", "evaluator.report.refuse_unlike", "refused"),
    Stored("*/result.json", "candidate_sha256.valid", "the candidates' file", "", "told"),
    # What runs share.
    Stored(
        "recommenders/*",
        "name",
        "all that its weights depend on",
        "recommender.frozen.prepare_recommender",
        "looked for elsewhere",
    ),
    Stored(
        "recommenders/*/model.safetensors",
        "numbering_sha256",
        "its ids",
        "checkpoint.weights.read_checkpoint",
        "refused",
    ),
    Stored(
        "recommenders/*/model.safetensors",
        "training_digest",
        "training interactions",
        "quick_start.run_recbole_llara",
        "warned of",
    ),
    Stored(_ENTRY, "sha256", "all that its weights depend on", "recommender.cache.unseal", "made again"),
    Stored(_ENTRY, "weights_sha256", "the file beside it", "recommender.cache.unseal", "made again"),
    Stored(_ENTRY, "candidate_sha256.*", "the candidates' file", "recommender.cache.unseal", "made again"),
    Stored(_ENTRY, "meta_sha256", "the other facts", "recommender.cache.unseal", "made again"),
    Stored("candidates/*.tsv", "name", "the file", "data.candidates.save_candidates", "refused"),
    Stored(
        "text_features/*", "name", "text encoder and titles", "recommender.text_encoder.cached_features", "looked for elsewhere"
    ),
    Stored("text_features/*", "sha256", "the features", "recommender.text_encoder.cached_features", "made again"),
    Stored("search/*", "name", "keys, parameters and data", "experiments.search_trials.SearchTrials", "looked for elsewhere"),
    Stored("search/*/trials.sqlite", "facts.data", "the data's files", "experiments.search_trials.SearchTrials", "refused"),
    Stored("chat/answers.sqlite", "answers.digest", "the request", "model.chat.client.AnswerCache", "looked for elsewhere"),
    Stored(
        "studies/finished/*", "name", "all that a result depends on", "experiments.study_runs.StudyRuns", "looked for elsewhere"
    ),
)


def llm_digest(model: PreTrainedModel) -> str:
    """Digest of an LLM's weights: of every tensor its name, its shape and up to 1,024 of its numbers, evenly spread.

    The numbers are rounded to bfloat16, so that an LLM is the same one in whichever floating type it was loaded. It tells
    models apart, fine-tuned ones from their base too; it is no checksum of a file.

    Args:
        model: before adapters are added.
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
    """Which items a model knows, and by which split: a row it learned from may be a test row of another.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.
    """
    protocol = data.dataset.protocol
    split = {key: getattr(protocol, key) for key in SPLIT_KEYS} | {key: config[key] for key in FILTER_KEYS}
    return {
        "dataset": config["dataset"],
        "split": protocol.split,
        "split_digest": facts_digest(split),
        "items_digest": Numbering.of(data.dataset).items_sha256[:DIGITS],
        "n_items": data.dataset.item_num,
    }


def training_digest(dataset: Any) -> str:
    """Digest of the interactions that training rows rest on, by external ids and in no order: of all rows, not of a sample.

    Where it differs, a test row of one split may have been a training row of the other.

    Args:
        dataset: a split of ``prepare_data``.
    """
    known = dataset.knowledge.known["train"]
    user, item = np.divmod(known.keys, known.n_items)
    items = pd.util.hash_array(np.array(dataset.field2id_token[dataset.iid_field], dtype=object), categorize=False)
    pairs = mix(mix(dataset.user_hashes[user - 1].view(np.uint64)) ^ items[item])
    return hashlib.sha256(np.sort(pairs).tobytes()).hexdigest()[:DIGITS]


def rows_digest(data: PreparedData) -> str:
    """Digest of the training rows and of the candidates of validation and test: what a training may not change under way.

    Args:
        data: what ``prepare_data`` returned.
    """
    digest = hashlib.sha256(facts_digest(data.candidate_sha256).encode())
    for field in (data.dataset.uid_field, data.dataset.iid_field):
        digest.update(data.dataset.inter_feat[field].numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
