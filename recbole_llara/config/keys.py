"""Which configuration keys exist: the union of what RecBole's lists and files and our files name.

RecBole swallows an unknown key; here a typo is an error that names the nearest known key.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import recbole
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from recbole_llara.config.models import model_defaults, recbole_base, registered_defaults, stock_models
from recbole_llara.config.properties import PROPERTIES
from recbole_llara.config.yaml_files import read_yaml
from recbole_llara.utils.errors import UserError, nearest

RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"
REC_PREFIX = "rec_"

# Keys that RecBole's code reads and none of its lists or files names.
_UNLISTED = frozenset({"model", "dataset", "config_files", "encoding", "tail_ratio", "token_num_threshold"})
# Rows and items are drawn once for an LLM and its recommender alike, so these take no prefix ...
_SHARED_LISTS = frozenset([*general_arguments, *dataset_arguments, "eval_args", "repeatable"])
# ... and these of ours describe the run of the LLM alone: the recommender learns from all rows.
_OWN = frozenset(
    {"max_train_rows", "max_eval_rows", "result_file", "decoding", "checkpoint", "resume", "full_rank", "retrieve_k"}
)
# Of the keys in models' files those that say how a model learns and nothing of what a trained one answers, or where a thing lies.
_OF_LEARNING = frozenset(
    {
        *("loss_type", "initializer_range", "reg_weight", "reg_loss_ratio", "epochs", "joint_train", "lmd", "lmd_sem"),
        *("dropout_prob", "dropout_probs", "hidden_dropout_prob", "attn_dropout_prob", "sess_dropout", "item_dropout"),
        *("mask_ratio", "ft_ratio", "transform", "text_encoder_learning_rate", "text_batch_size", "text_encoder_path"),
    }
)
_MEASURED = frozenset({"metrics", "topk", "valid_metric", "valid_metric_bigger", "metric_decimal_place", "eval_step"})
# Of the shared ones those that change what a model sees of a row, but neither the rows nor the candidates it is measured on.
_OF_HISTORIES = frozenset({"MAX_ITEM_LIST_LENGTH", "min_train_history"})
_OWN_QUESTIONS = frozenset({"model", "dataset", "config_files", "max_eval_rows"})

# Keys that say where a run computes and writes, what is shown of it and how often it is saved: they change no result.
WITHOUT_EFFECT = frozenset(
    {
        *("checkpoint_dir", "result_file", "show_progress", "state", "log_wandb", "wandb_project"),
        *("device", "use_gpu", "gpu_id", "save_steps", "save_total_limit", "resume"),
    }
)


# Former names, refused with those of today.
OLD_KEYS = {
    "test_prompt": "it is called eval_template now",
    "split_protocol": "protocol decides the split now: llara, leave_one_out or windows",
}
OLD_REPRESENTATIONS = {
    "described": "textual_with_dsr",
    "described_hybrid": "hybrid_with_dsr",
    "described_behavioural": "behavioural_with_dsr",
}


class FromRun(Enum):
    """Whether the folder of a run, which a stranger may have written, can set a key."""

    VALUE = "it can: a value of the computation"
    PATH = "to any place of this machine or a model of the hub: what lies there is read as data"
    NEVER = "it cannot: the key runs code, reaches the network, or names where files are written"


# Every key but RecBole's hyper-parameters of models, which are values; a key that stands nowhere here is NEVER.
FROM_RUN: dict[FromRun, frozenset[str]] = {
    FromRun.VALUE: frozenset(
        {
            # what a run is of, and of which rows
            *("model", "dataset", "protocol", "domain", "seed", "reproducibility", "repeatable"),
            *("max_train_rows", "max_eval_rows", "min_train_history", "min_eval_history", "MAX_ITEM_LIST_LENGTH"),
            *("candidate_num", "candidate_exclude", "candidate_seed", "split_ratio", "eval_args"),
            "repeated_targets",
            *("title_field", "title_rules", "dataset_warning", "train_neg_sample_args"),
            # how columns are read; none of these names a file outside data_path/dataset
            *("field_separator", "seq_separator", "encoding", "USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD"),
            *("LABEL_FIELD", "NEG_PREFIX", "ITEM_LIST_LENGTH_FIELD", "LIST_SUFFIX", "POSITION_FIELD", "HEAD_ENTITY_ID_FIELD"),
            *("TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD", "load_col", "unload_col", "unused_col"),
            *("additional_feat_suffix", "benchmark_filename", "rm_dup_inter", "val_interval", "filter_inter_by_user_or_item"),
            *("user_inter_num_interval", "item_inter_num_interval", "alias_of_user_id", "alias_of_item_id"),
            *("alias_of_entity_id", "alias_of_relation_id", "entity_kg_num_interval", "relation_kg_num_interval"),
            *("kg_reverse_r", "seq_len", "threshold", "preload_weight", "normalize_field", "normalize_all", "discretization"),
            *("numerical_features", "token_num_threshold", "tail_ratio"),
            # what is measured, and how an LLM answers
            *("metrics", "topk", "valid_metric", "valid_metric_bigger", "metric_decimal_place", "eval_batch_size", "eval_step"),
            *("eval_dtype", "decoding", "full_rank", "retrieve_k", "eval_template"),
            # the recommender, the LLM, the prompts
            *("rec_model", "item_embedding_size", "shuffle_item_embeddings"),
            *("llm_dtype", "llm_quantization", "llm_tuning", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
            *("gradient_checkpointing", "torch_compile", "fsdp"),
            *(
                "representation",
                "easy_representation",
                "stage_1_representation",
                "strategy",
                "curriculum",
                "answer_loss",
                "max_title_tokens",
                "chat_instruction",
            ),
            *("item_item_weight", "user_item_weight", "contrast_temperature"),
            *("text_encoder_tuning", "text_encoder_learning_rate", "text_pooling", "text_batch_size"),
            # training
            *("epochs", "stage_1_epochs", "stopping_step", "train_batch_size", "micro_batch_size", "learner", "learning_rate"),
            *("stage_1_learning_rate", "min_learning_rate_ratio", "warmup_learning_rate_ratio", "warmup_ratio"),
            *("weight_decay", "weight_decay_on", "max_grad_norm", "clip_grad_norm", "enable_amp", "enable_scaler"),
            *("require_pow", "loss_decimal_place", "shuffle", "save_steps", "save_total_limit"),
            # where it computes and what is shown
            *("use_gpu", "gpu_id", "worker", "state", "show_progress"),
        }
    ),
    FromRun.PATH: frozenset(
        {
            "data_path",
            "candidate_file",
            "llm_path",
            "text_encoder_path",
            "rec_checkpoint",
            "checkpoint",
            "item_embeddings",
            "prompt_file",
        }
    ),
    FromRun.NEVER: frozenset(
        {
            "llm_trust_remote_code",
            *("api_base", "api_key_env", "api_model", "api_options", "api_concurrency", "api_timeout", "api_max_retries"),
            *("api_max_requests", "api_max_failures", "api_price_prompt", "api_price_completion"),
            *("checkpoint_dir", "result_file", "log_wandb", "wandb_project", "resume", "plugins"),
            # RecBole pickles to these and unpickles from them, and reads further keys from config files
            *("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path", "config_file", "config_files"),
        }
    ),
}


@cache
def _file_keys(path: Path) -> frozenset[str]:
    return frozenset(read_yaml(path)) if path.is_file() else frozenset()


def _folder_keys(folder: str) -> frozenset[str]:
    return frozenset().union(*(_file_keys(path) for path in sorted((PROPERTIES / folder).glob("*.yaml"))))


def model_keys(model: str) -> frozenset[str]:
    """Keys that RecBole's file of a model and ours name."""
    return _file_keys(RECBOLE_PROPERTIES / "model" / f"{recbole_base(model)}.yaml") | model_defaults(model).keys()


@cache
def _recbole_hyper_parameters() -> frozenset[str]:
    """Keys that RecBole's files of its sequential models name."""
    return frozenset().union(*(_file_keys(RECBOLE_PROPERTIES / "model" / f"{name}.yaml") for name in stock_models()))


def from_run(key: str) -> FromRun:
    """Whether the folder of a run can set a key; one with the prefix ``rec_`` is as it is without.

    Numbers of a registered model are values; its texts are the caller's to give.
    """
    for name in (key, key.removeprefix(REC_PREFIX)):
        for answer, names in FROM_RUN.items():
            if name in names:
                return answer
        if name in _recbole_hyper_parameters():
            return FromRun.VALUE
    # A text of a registered model may be a path or worse; whether a number is one is checked by ``check_hyper_parameters``.
    is_number = isinstance(registered_defaults().get(key.removeprefix(REC_PREFIX)), int | float)
    return FromRun.VALUE if is_number else FromRun.NEVER


def answering_keys(model: str, inner: str | None = None) -> frozenset[str]:
    """Of a model's own keys those on which a trained one's answers depend: the same weights under other values are another model.

    Args:
        model: a stock model's name, or a baseline's of ours.
        inner: the name of a recommender that is part of the model.
    """
    within = frozenset() if inner is None else model_keys(inner)
    # How an endpoint is reached is the caller's, and may hold secrets.
    return (model_keys(model) | within) - _OF_LEARNING - FROM_RUN[FromRun.NEVER]


def shared_keys() -> frozenset[str]:
    """Keys whose values hold for an LLM and for its frozen recommender: data, candidates, folders, device, seed."""
    ours = _file_keys(PROPERTIES / "overall.yaml") | _folder_keys("dataset") | _folder_keys("protocol")
    recbole_data = _file_keys(RECBOLE_PROPERTIES / "dataset" / "sample.yaml")
    return (_SHARED_LISTS | ours | recbole_data | {"worker", "shuffle"}) - _OWN - _MEASURED


def question_keys() -> frozenset[str]:
    """Keys that say what is asked, how answers are measured and where: scores under two values of one are no comparison."""
    return (shared_keys() | _MEASURED | _OWN_QUESTIONS | WITHOUT_EFFECT) - _OF_HISTORIES


def recommender_keys(rec_model: str) -> frozenset[str]:
    """Keys that a frozen recommender takes with the prefix ``rec_``, without the prefix."""
    learned = frozenset(training_arguments) | _file_keys(PROPERTIES / "recommender.yaml") | model_keys(rec_model)
    return learned | _MEASURED | {"eval_batch_size", "max_train_rows", "max_eval_rows", "enable_amp", "transform"}


def known_keys(model: str, rec_model: str | None, inner: str | None = None) -> frozenset[str]:
    """Every key that a run of ``model`` may be given.

    Args:
        model: a model's name.
        rec_model: the name of the frozen recommender, whose keys count with the prefix ``rec_``; None = there is none.
        inner: the name of a recommender that is part of the model, whose keys count as its own.
    """
    recbole_keys = frozenset().union(
        general_arguments,
        training_arguments,
        evaluation_arguments,
        dataset_arguments,
        _file_keys(RECBOLE_PROPERTIES / "overall.yaml"),
        _file_keys(RECBOLE_PROPERTIES / "dataset" / "sample.yaml"),
        _file_keys(RECBOLE_PROPERTIES / "dataset" / "ml-100k.yaml"),
    )
    ours = frozenset().union(
        *(_file_keys(path) for path in sorted(PROPERTIES.glob("*.yaml"))),
        *(_folder_keys(folder) for folder in ("llm", "dataset", "protocol")),
    )
    prefixed = frozenset() if rec_model is None else frozenset(REC_PREFIX + key for key in recommender_keys(rec_model))
    within = frozenset() if inner is None else model_keys(inner)
    return recbole_keys | ours | model_keys(model) | within | prefixed | _UNLISTED


def refuse_old_names(given: Mapping[str, Any]) -> None:
    """Refuse keys and values by their former names.

    Args:
        given: keys and values of files, config dict and command line.

    Raises:
        UserError: the message has the name of today.
    """
    for key, value in given.items():
        if key in OLD_KEYS:
            raise UserError(f"unknown key {key!r}: {OLD_KEYS[key]}")
        if key.endswith("representation") and isinstance(value, str) and value in OLD_REPRESENTATIONS:
            raise UserError(f"{key}: found {value!r}, which is called {OLD_REPRESENTATIONS[value]} now")
        if key == "protocol" and value == "full_rank":
            raise UserError("protocol: found 'full_rank', which is a key now: give --protocol=leave_one_out --full_rank=True")


def check_keys(given: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse unknown keys.

    Args:
        given: key -> where it was given, such as ``command line``.
        known: every key that is right.

    Raises:
        UserError: at least one key is unknown; the message names all of them, each with its nearest known keys.
    """
    names = frozenset(known)
    wrong = [f"unknown key {key!r} ({source}): {_near_key(key, names)}" for key, source in given.items() if key not in names]
    if wrong:
        raise UserError("; ".join(wrong))


def _near_key(key: str, names: frozenset[str]) -> str:
    hint = nearest(key, names)
    return hint if hint.startswith("did you mean") else "no known key is near; the keys stand in properties/*.yaml"
