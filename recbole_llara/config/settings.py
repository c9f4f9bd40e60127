"""Our keys, each declared once: type and range, whether a run's folder may set it, whose it is, what depends on it.

Its default, meaning and source stand in the YAML of ``properties/``; ``config.help`` tells all of it. ``config["typo"]`` is None
in RecBole: code of this package takes its keys from these classes, where a missing or wrong value is a ``UserError``.
"""

import math
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from recbole_llara.config.validation import (
    Count,
    Declaration,
    FromRun,
    Natural,
    NotNegative,
    Positive,
    Scope,
    Settings,
    Share,
    ShareBelow1,
    check_name,
    files_of,
    key,
    named_in,
    one_of,
)  # fmt: skip
from recbole_llara.utils.errors import UserError, nearest

VALUE, PATH, NEVER = FromRun.VALUE, FromRun.PATH, FromRun.NEVER
SHARED, EACH = Scope.SHARED, Scope.EACH
TRUST = "llm_trust_remote_code"
VECTORS = (".npy", ".safetensors")  # how the file of a table of item embeddings ends
REPRESENTATIONS = named_in("prompt.representation:REPRESENTATIONS")
NO_FUSION = "none"
EXACT, INDEX = "exact", "index"
NO_PRIOR = "none"
LETTER = "letter"
OWN, PLACEHOLDER = "own", "placeholder"
NEW_ITEM_TOKENS = (OWN, PLACEHOLDER, "neighbours", "text")
LOCAL, VLLM = "local", "vllm"
DTYPES = one_of("auto", "float32", "bfloat16", "float16")

READY_MADE = "benchmark"
COLD_ITEMS = "cold_items"
# Protocol -> how its rows are split: whole users by time, RecBole's eval_args within every user, by items that are held out, or
# ready-made files.
SPLITS = {"llara": "user_time", "leave_one_out": "leave_one_out", "cold_items": COLD_ITEMS, "windows": READY_MADE}
EXCLUDE_RULES = ("user", "window")
UNIFORM = "uniform"
DRAWS = (UNIFORM, "recommender", "mixed")  # where the negatives of training rows come from
ALL, EARLIER = "all", "earlier"  # the training rows that a recommender learns from
_EVAL_ARGS = ("split", "group_by", "order", "mode")


class DataSettings(Settings):
    """Histories and titles."""

    MAX_ITEM_LIST_LENGTH: Count = key(VALUE, SHARED, is_question=False)
    title_field: str | None = key(VALUE, SHARED)
    title_rules: tuple[str, ...] = key(VALUE, SHARED, names=named_in("data.titles:TITLE_RULES"))
    item_fields: tuple[str, ...] | None = key(VALUE)
    domain: str = key(VALUE, SHARED, names=files_of("prompt"))
    dataset_warning: str | None = key(VALUE, SHARED)

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if len(set(self.item_fields or ())) < len(self.item_fields or ()):
            raise self.wrong("item_fields", "each field once")
        return self


class DataProtocol(Settings):
    """How rows are split, thinned and given candidates; with RecBole's keys for which a protocol expects a value."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = key(VALUE, SHARED)  # numpy's range
    protocol: str = key(VALUE, SHARED, names=one_of(*SPLITS))
    split_ratio: tuple[Positive, ...] = key(VALUE, SHARED)
    min_train_history: Count = key(VALUE, SHARED, is_question=False)
    min_eval_history: Count = key(VALUE, SHARED)
    max_train_rows: Natural = key(VALUE, EACH)
    max_eval_rows: Natural = key(VALUE, EACH, is_question=True)
    candidate_num: Annotated[int, Field(ge=2)] = key(VALUE, SHARED)  # the target and one other item
    candidate_exclude: str = key(VALUE, SHARED, names=one_of(*EXCLUDE_RULES))
    repeated_targets: str = key(VALUE, SHARED, names=one_of("keep", "drop", "match"))
    candidate_seed: Natural | None = key(VALUE, SHARED)
    candidate_file: str | Path | None = key(PATH, SHARED)
    cold_item_share: Annotated[float, Field(gt=0, lt=0.5)] = key(VALUE, SHARED)
    eval_args: dict = key(VALUE, SHARED)
    benchmark_filename: Any = key(VALUE, SHARED, is_optional=True)
    ITEM_ID_FIELD: str = key(VALUE, SHARED)
    LIST_SUFFIX: str = key(VALUE, SHARED)
    alias_of_item_id: tuple[str, ...] | None = key(VALUE, SHARED)

    @property
    def split(self) -> str:
        """What the protocol's rows are split by."""
        return SPLITS[self.protocol]

    @property
    def eval_seed(self) -> int:
        """Of the rows and candidates of validation and test."""
        return self.seed if self.candidate_seed is None else self.candidate_seed

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        shares = self.split_ratio
        if len(shares) != 3 or not (all(map(float.is_integer, shares)) or math.isclose(sum(shares), 1, abs_tol=1e-6)):
            raise self.wrong("split_ratio", "three shares that add up to 1, or whole numbers like [8, 1, 1]")
        if self.repeated_targets == "match" and self.candidate_exclude != "user":
            expected = "candidate_exclude 'user': match adds negatives of the user's past to those that the user never had"
            raise self.wrong("repeated_targets", expected, "candidate_exclude")
        if self.repeated_targets == "match" and self.split == COLD_ITEMS:
            expected = "keep or drop: what the user had before was learned, and would tell that the target was not"
            raise self.wrong("repeated_targets", expected, "protocol")
        if self.candidate_file is not None and not Path(self.candidate_file).is_file():
            raise self.wrong("candidate_file", "an existing file of candidate sets")
        return self

    @model_validator(mode="after")
    def _is_in_order_of_time(self) -> Self:
        for name in self.eval_args:
            check_name("eval_args", name, _EVAL_ARGS)
        split = self.eval_args.get("split")
        (kind, how), *others = split.items() if isinstance(split, dict) and split else [(None, None)]
        is_last = kind == "LS" and how == "valid_and_test"
        is_ratio = kind in ("RS", "TS") and isinstance(how, list) and len(how) == 3
        if others or not (is_last or (is_ratio and all(isinstance(share, int | float) and share > 0 for share in how))):
            raise UserError(f"eval_args.split: found {split!r}, expected {{LS: valid_and_test}} or {{RS: [0.8, 0.1, 0.1]}}")
        order, mode = self.eval_args.get("order", "RO"), self.eval_args.get("mode", "full")  # RecBole's defaults
        if order != "TO":
            raise UserError(f"eval_args.order is {order!r}, expected TO: histories are in the order of time")
        if any(value != "full" for value in (mode.values() if isinstance(mode, dict) else [mode])):
            raise UserError(f"eval_args.mode is {mode!r}, expected full: the candidate sets take the place of sampling")
        return self

    @model_validator(mode="after")
    def _has_its_files(self) -> Self:
        files, history = self.benchmark_filename, f"{self.ITEM_ID_FIELD}{self.LIST_SUFFIX}"
        if self.split != READY_MADE and files is not None:
            expected = f"none: protocol {self.protocol} makes the splits; ready-made ones take --protocol=windows"
            raise self.wrong("benchmark_filename", expected)
        if self.split == READY_MADE and not (isinstance(files, tuple) and len(files) == 3):
            raise self.wrong("benchmark_filename", "three names such as [train, valid, test]")
        if self.split == READY_MADE and history not in (self.alias_of_item_id or ()):
            expected = f"{history} (ITEM_ID_FIELD and LIST_SUFFIX) among them: histories and targets would be numbered apart"
            raise self.wrong("alias_of_item_id", expected)
        return self


class EvaluationSettings(Settings):
    """What is measured, how an LLM answers, and what is written."""

    decoding: str = key(VALUE, names=named_in("evaluator.answer:DECODINGS"))
    metrics: tuple[str, ...] = key(VALUE, EACH, is_question=True)
    topk: tuple[Count, ...] = key(VALUE, EACH, is_question=True)
    valid_metric: str = key(VALUE, EACH, is_question=True)
    eval_batch_size: Count = key(VALUE, EACH)
    eval_step: Natural = key(VALUE, EACH, is_question=True)
    stopping_step: Natural = key(VALUE, EACH)
    metric_decimal_place: Natural = key(VALUE, EACH, is_question=True)
    full_rank: bool = key(VALUE)
    retrieve_k: Count = key(VALUE)
    retrieval: str = key(VALUE, names=one_of(EXACT, INDEX))
    keep_cases: bool = key(VALUE, SHARED, has_effect=False)
    keep_valid_cases: bool = key(VALUE, has_effect=False)
    checkpoint: str | None = key(PATH)
    checkpoint_dir: str = key(NEVER, SHARED, has_effect=False)
    resume: str | None = key(NEVER, has_effect=False)
    result_file: str | Path | None = key(NEVER, has_effect=False)

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        from recbole.evaluator.base_metric import TopkMetric
        from recbole.evaluator.register import metric_types, metrics_dict
        from recbole.utils import EvaluatorType

        import_module("recbole_llara.evaluator.ranking").register_metrics()
        if not self.metrics or not self.topk:
            raise UserError(f"metrics and topk: found {list(self.metrics)} and {list(self.topk)}, expected at least one each")
        for metric in self.metrics:
            if metric.lower() not in metrics_dict:
                raise UserError(f"metrics: found {metric!r}; {nearest(metric, metrics_dict)}")
            if metric_types[metric.lower()] is not EvaluatorType.RANKING:
                raise UserError(
                    f"metrics: found {metric!r}, expected ranking metrics such as Hit, NDCG, MRR: candidates are ranked"
                )
        watched = [
            f"{metric}@{k}" if issubclass(metrics_dict[metric.lower()], TopkMetric) else metric
            for metric in self.metrics
            for k in self.topk
        ]
        if self.valid_metric.lower() not in [name.lower() for name in watched]:
            raise UserError(
                f"valid_metric: found {self.valid_metric!r}, expected one of {', '.join(dict.fromkeys(watched))} "
                f"(from metrics, topk and decoding: {self.decoding})"
            )
        if self.full_rank and import_module("recbole_llara.evaluator.answer").names_one_item(self.decoding):
            raise self.wrong("full_rank", "decoding score, which ranks", "decoding")
        return self

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if self.checkpoint is not None and self.resume is not None:
            raise self.wrong("resume", "one of them", "checkpoint")
        _check_writable("checkpoint_dir", self.checkpoint_dir, "folder")
        if self.result_file is not None:
            _check_writable("result_file", self.result_file, "file")
        return self


def _check_writable(name: str, value: str | Path, kind: str) -> None:
    """Refuse a place where no file or folder can be made, before a run has cost anything."""
    path = Path(value)
    nearest_there = next(parent for parent in path.absolute().parents if parent.exists())
    if str(value) and nearest_there.is_dir() and (not path.exists() or path.is_dir() == (kind == "folder")):
        return
    found = "empty" if not str(value) else "a folder" if path.is_dir() else "a file, or below one"
    expected = "a folder, made if need be" if kind == "folder" else "a file, whose folder is made if need be"
    raise UserError(f"{name}: found {str(value)!r}, which is {found}; expected {expected}")


def vectors_file(item_embeddings: str | None) -> Path | None:
    """The file of a table of vectors that ``item_embeddings`` names; None where it names none."""
    return Path(item_embeddings).expanduser() if str(item_embeddings).endswith(VECTORS) else None


def ids_file(vectors: Path) -> Path:
    """The text file beside a table of vectors: the item id of each row, one a line."""
    return vectors.with_suffix(".ids.txt")


class RecommenderSettings(Settings):
    """The frozen recommender; its own ``rec_`` keys are applied by ``RunConfig.for_recommender``."""

    rec_model: str = key(VALUE)
    rec_checkpoint: str | None = key(PATH)
    shuffle_item_embeddings: bool = key(VALUE)
    item_embeddings: str = key(PATH)
    item_embedding_size: Count = key(VALUE)
    fusion: str = key(VALUE, names=one_of(NO_FUSION, "validation"))
    candidate_draw: str = key(VALUE, names=one_of(*DRAWS), is_answering=False)
    candidate_draw_top: Count = key(VALUE, is_answering=False)
    recommender_rows: str = key(VALUE, names=one_of(ALL, EARLIER), is_answering=False)
    later_rows_share: Annotated[float, Field(gt=0, lt=1)] = key(VALUE, is_answering=False)
    recommender_at_test: str = key(VALUE, names=one_of(ALL, EARLIER))
    new_item_token: str = key(VALUE, names=one_of(*NEW_ITEM_TOKENS))
    new_item_neighbours: Count = key(VALUE)
    as_new_share: Share = key(VALUE, is_answering=False)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        vectors = vectors_file(self.item_embeddings)
        if self.item_embeddings not in ("recommender", "random") and vectors is None:
            hint = nearest(self.item_embeddings, ["recommender", "random"])
            expected = f"recommender, random or the path of a table that ends in {' or '.join(VECTORS)}; {hint}"
            raise self.wrong("item_embeddings", expected)
        if self.fusion != NO_FUSION and self.item_embeddings == "random":
            raise self.wrong(
                "fusion", "a recommender to add, by item_embeddings recommender or a table of vectors", "item_embeddings"
            )
        for path in () if vectors is None else (vectors, ids_file(vectors)):
            if not path.is_file():
                expected = "a table of vectors and beside it a text file of their item ids, one a line"
                raise UserError(f"item_embeddings: found no file {str(path)!r}, expected {expected}")
        if self.candidate_draw != UNIFORM and self.item_embeddings == "random":
            expected = "uniform, or item_embeddings recommender or a table of vectors: random ones propose nothing"
            raise self.wrong("candidate_draw", expected, "item_embeddings")
        if self.recommender_rows == EARLIER and self.item_embeddings != "recommender":
            raise self.wrong(
                "recommender_rows", "all: only item_embeddings recommender is trained on rows here", "item_embeddings"
            )
        if self.shuffle_item_embeddings and self.item_embeddings == "random":
            raise self.wrong("shuffle_item_embeddings", "one of them: there is nothing to shuffle", "item_embeddings")
        return self


class LLMSettings(Settings):
    """The LLM and what of it learns."""

    llm_path: str = key(PATH)
    llm_layers: Count | tuple[int, ...] | None = key(VALUE)
    llm_dtype: str = key(VALUE, names=DTYPES)
    eval_dtype: str = key(VALUE, names=DTYPES)
    llm_quantization: str = key(VALUE, names=one_of("none", "8bit", "4bit"))
    attn_implementation: str | None = key(VALUE, names=one_of("eager", "sdpa", "flash_attention_2", "flex_attention"))
    llm_trust_remote_code: bool = key(NEVER)
    llm_tuning: str = key(VALUE, names=one_of("lora", "frozen", "full"))
    lora_r: Count = key(VALUE)
    lora_alpha: Count = key(VALUE)
    lora_dropout: ShareBelow1 = key(VALUE)
    lora_target_modules: str | tuple[str, ...] = key(VALUE)
    lora_layers: Count | None = key(VALUE)
    gradient_checkpointing: bool = key(VALUE)
    fsdp: bool = key(VALUE)
    torch_compile: bool = key(VALUE)
    prefix_cache: Natural = key(VALUE, has_effect=False)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.fsdp and self.torch_compile:
            raise UserError("fsdp and torch_compile: found both True, expected one of them")
        if self.fsdp and (self.llm_tuning == "full" or self.llm_quantization != "none"):
            expected = "lora or frozen over weights that are not quantised: only these are sharded"
            raise self.wrong("fsdp", expected, "llm_tuning", "llm_quantization")
        if self.llm_quantization != "none" and self.llm_tuning == "full":
            raise self.wrong("llm_quantization", "lora or frozen: quantised weights cannot be trained", "llm_tuning")
        if self.lora_target_modules == () or (isinstance(self.lora_target_modules, str) and self.lora_target_modules != "auto"):
            raise self.wrong("lora_target_modules", "auto or a list of at least one module name")
        return self


class EngineSettings(Settings):
    """What reads the LLM of a run that answers: the process that asks, or a server of vLLM."""

    backend: str = key(NEVER, names=one_of(LOCAL, VLLM), has_effect=False)
    backend_url: str = key(NEVER, has_effect=False)
    backend_model: str | None = key(NEVER, has_effect=False)
    backend_key_env: str = key(NEVER, has_effect=False)
    backend_timeout: Positive = key(NEVER, has_effect=False)
    backend_max_retries: Natural = key(NEVER, has_effect=False)
    backend_concurrency: Count = key(NEVER, has_effect=False)

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if not self.backend_url.startswith(("http://", "https://")):
            raise self.wrong("backend_url", "http://... or https://..., the server's address up to /v1")
        return self


class AskingSettings(Settings):
    """How an LLM or a chat model is asked."""

    representation: str = key(VALUE, names=REPRESENTATIONS)
    prompt_file: str | None = key(PATH)
    eval_template: str = key(VALUE, names=one_of("first", "sampled", "all"))


class TitleSettings(Settings):
    """How much of a title is read."""

    max_title_tokens: Count = key(VALUE)


class PromptSettings(AskingSettings, TitleSettings):
    """How items stand in the prompt, and which task is learned when."""

    easy_representation: str = key(VALUE, names=REPRESENTATIONS)
    stage_1_representation: str = key(VALUE, names=REPRESENTATIONS)
    strategy: str = key(VALUE, names=one_of("direct", "two_stage", "curriculum"))
    curriculum: str = key(VALUE, names=named_in("prompt.curriculum:CURRICULA"))
    prompt_history: Count | None = key(VALUE, is_question=False)
    prompt_format: str = key(VALUE, names=one_of("plain", "chat"))
    max_field_tokens: Count = key(VALUE)
    shuffle_titles: bool = key(VALUE)
    user_token: bool = key(VALUE)
    recommender_score_token: str = key(VALUE, names=one_of("none", "rank", "log_prob"))
    candidate_order: str = key(VALUE, names=one_of("drawn", "recommender"))
    answer_form: str = key(VALUE, names=one_of("title", LETTER))
    item_token_dropout: ShareBelow1 = key(VALUE)


class LossSettings(Settings):
    """What is minimised."""

    answer_loss: str = key(VALUE, names=named_in("model.losses:LOSSES"))
    stage_1_answer_loss: str | None = key(VALUE, names=named_in("model.losses:LOSSES"))
    token_loss_weight: NotNegative = key(VALUE)
    listwise_temperature: Positive = key(VALUE)
    listwise_prior: str = key(VALUE, names=one_of(NO_PRIOR, "recommender"))
    sdpo_beta: Positive = key(VALUE)


class ContrastSettings(Settings):
    """RSLLM's contrastive losses."""

    item_item_weight: NotNegative = key(VALUE)
    user_item_weight: NotNegative = key(VALUE)
    contrast_temperature: Positive = key(VALUE)


class ChatSettings(AskingSettings):
    """A chat model behind an API."""

    api_base: str = key(NEVER)
    api_model: str = key(NEVER)
    api_key_env: str = key(NEVER)
    api_options: dict = key(NEVER)
    api_concurrency: Count = key(NEVER)
    api_timeout: Positive = key(NEVER)
    api_max_retries: Natural = key(NEVER)
    api_max_requests: Natural = key(NEVER)
    api_max_failures: Count = key(NEVER)
    api_price_prompt: NotNegative | None = key(NEVER)
    api_price_completion: NotNegative | None = key(NEVER)
    chat_instruction: str = key(VALUE)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.eval_template == "all":
            raise self.wrong("eval_template", "one of first, sampled: the texts of a chat cannot be averaged")
        if not self.api_base.startswith(("http://", "https://")):
            raise self.wrong("api_base", "http://... or https://..., the endpoint's address")
        if taken := sorted({"model", "messages", "stream"} & self.api_options.keys()):
            raise UserError(
                f"api_options: found {', '.join(taken)}, expected further fields of a request; the model is api_model, the "
                "messages are the prompts, and answers are taken whole"
            )
        return self


class TextEncoderSettings(TitleSettings):
    """MoRec's text encoder."""

    text_encoder_path: str = key(PATH, is_answering=False)
    text_encoder_tuning: str = key(VALUE, names=one_of("frozen", "full"))
    text_encoder_learning_rate: Positive = key(VALUE, is_answering=False)
    text_pooling: str = key(VALUE, names=named_in("recommender.morec:POOLINGS"))
    text_batch_size: Count = key(VALUE, is_answering=False)


class TrainingSettings(Settings):
    """What every trained model takes, stock ones too."""

    epochs: Natural = key(VALUE, EACH, is_answering=False)
    train_batch_size: Count = key(VALUE, EACH)
    learning_rate: Positive = key(VALUE, EACH)
    weight_decay: NotNegative = key(VALUE, EACH)


class OptimSettings(TrainingSettings):
    """The optimiser of the LLM recommenders."""

    stage_1_epochs: Count = key(VALUE)
    stage_1_learning_rate: Positive | None = key(VALUE)
    weight_decay_on: str = key(VALUE, names=one_of("projector", "all"))
    micro_batch_size: Count = key(VALUE)
    min_learning_rate_ratio: Share = key(VALUE)
    warmup_learning_rate_ratio: Share = key(VALUE)
    warmup_ratio: ShareBelow1 = key(VALUE)
    max_grad_norm: Positive | None = key(VALUE)
    save_steps: Natural = key(VALUE, has_effect=False)
    save_total_limit: Count = key(VALUE, has_effect=False)

    @property
    def first_learning_rate(self) -> float:
        """The maximum of stage 1."""
        return self.learning_rate if self.stage_1_learning_rate is None else self.stage_1_learning_rate


# Where each key of ours is declared: those that every run may be given, and those of single models.
COMMON: tuple[type[Settings], ...] = (
    DataSettings,
    DataProtocol,
    EvaluationSettings,
    RecommenderSettings,
    LLMSettings,
    EngineSettings,
    PromptSettings,
    LossSettings,
    OptimSettings,
)
OURS = (*COMMON, ContrastSettings, ChatSettings, TextEncoderSettings)


def declared(*kinds: type[Settings]) -> dict[str, Declaration]:
    """What is said of the keys of settings, by key."""
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    return {name: field.json_schema_extra["declaration"] for name, field in fields.items()}  # type: ignore[index,misc]
