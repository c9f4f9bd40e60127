"""Our keys as frozen values: read from a config once, checked where they are read.

``config["typo"]`` is None in RecBole. Code of this package therefore takes its keys from these classes:
a missing key, a wrong type or a value out of range is a ``UserError`` that names the key.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from recbole_llara.config.checked import Settings, named_in, one_of, one_of_files, within
from recbole_llara.utils.errors import UserError, nearest

TRUST = "llm_trust_remote_code"
VECTORS = (".npy", ".safetensors")  # how the file of a table of item embeddings ends


@dataclass(frozen=True)
class DataSettings(Settings):
    """Histories and titles; the keys of rows and candidates are read by ``config.protocol.DataProtocol``."""

    MAX_ITEM_LIST_LENGTH: int = within(1)
    title_field: str | None
    title_rules: tuple[str, ...] = named_in("data.titles:TITLE_RULES")
    domain: str = one_of_files("prompt")
    dataset_warning: str | None


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """What is measured, and how an LLM answers."""

    decoding: str = named_in("evaluator.answer:DECODINGS")
    metrics: tuple[str, ...]
    topk: tuple[int, ...] = within(1)
    valid_metric: str
    eval_batch_size: int = within(1)
    eval_step: int = within(0)
    stopping_step: int = within(0)
    metric_decimal_place: int = within(0)
    checkpoint: str | None
    resume: str | None
    full_rank: bool
    retrieve_k: int = within(1)

    def __post_init__(self) -> None:
        if self.full_rank and import_module("recbole_llara.evaluator.answer").names_one_item(self.decoding):
            raise UserError(
                f"full_rank: found True with decoding {self.decoding}, which ranks nothing; expected decoding score"
            )
        if self.checkpoint is not None and self.resume is not None:
            raise UserError(f"resume: found {self.resume!r} with checkpoint {self.checkpoint!r}, expected one of them")


def vectors_file(item_embeddings: str | None) -> Path | None:
    """The file of a table of vectors that ``item_embeddings`` names; None where it names none."""
    return Path(item_embeddings).expanduser() if str(item_embeddings).endswith(VECTORS) else None


def ids_file(vectors: Path) -> Path:
    """The text file beside a table of vectors: the item id of each row, one a line."""
    return vectors.with_suffix(".ids.txt")


@dataclass(frozen=True)
class RecommenderSettings(Settings):
    """The frozen recommender; its own ``rec_`` keys are applied by ``RunConfig.for_recommender``."""

    rec_model: str
    rec_checkpoint: str | None
    shuffle_item_embeddings: bool
    item_embeddings: str
    item_embedding_size: int = within(1)

    def __post_init__(self) -> None:
        if self.item_embeddings not in ("recommender", "random") and vectors_file(self.item_embeddings) is None:
            raise UserError(
                f"item_embeddings: found {self.item_embeddings!r}, expected recommender, random or the path of a table that ends in "
                f"{' or '.join(VECTORS)}; {nearest(self.item_embeddings, ['recommender', 'random'])}"
            )
        if self.shuffle_item_embeddings and self.item_embeddings == "random":
            raise UserError(
                "shuffle_item_embeddings is True, but item_embeddings is random: nothing to shuffle; drop one of them"
            )


@dataclass(frozen=True)
class LLMSettings(Settings):
    """The LLM and what of it learns."""

    llm_path: str
    llm_dtype: str = one_of("auto", "float32", "bfloat16", "float16")
    eval_dtype: str = one_of("auto", "float32", "bfloat16", "float16")
    llm_quantization: str = one_of("none", "8bit", "4bit")
    llm_trust_remote_code: bool
    llm_tuning: str = one_of("lora", "frozen", "full")
    lora_r: int = within(1)
    lora_alpha: int = within(1)
    lora_dropout: float = within(0, 1, open_high=True)
    lora_target_modules: str | tuple[str, ...]
    gradient_checkpointing: bool
    fsdp: bool
    torch_compile: bool

    def __post_init__(self) -> None:
        if self.fsdp and self.torch_compile:
            raise UserError("fsdp and torch_compile: found both True, expected one of them")
        if self.fsdp and (self.llm_tuning == "full" or self.llm_quantization != "none"):
            raise UserError(
                f"fsdp: found True with llm_tuning {self.llm_tuning} and llm_quantization {self.llm_quantization}, expected lora "
                "or frozen over weights that are not quantised: only these are dealt out"
            )
        if self.llm_quantization != "none" and self.llm_tuning == "full":
            raise UserError(
                f"llm_quantization: found {self.llm_quantization} with llm_tuning full, expected lora or frozen: "
                "quantised weights cannot be trained"
            )
        if isinstance(self.lora_target_modules, str) and self.lora_target_modules != "auto":
            raise UserError(f"lora_target_modules: found {self.lora_target_modules!r}, expected auto or a list of module names")
        if self.lora_target_modules == ():
            raise UserError("lora_target_modules: found an empty list, expected auto or at least one module name")


@dataclass(frozen=True)
class PromptSettings(Settings):
    """How items stand in the prompt, and which task is learned when."""

    representation: str = named_in("prompt.representation:REPRESENTATIONS")
    easy_representation: str = named_in("prompt.representation:REPRESENTATIONS")
    stage_1_representation: str = named_in("prompt.representation:REPRESENTATIONS")
    strategy: str = one_of("direct", "two_stage", "curriculum")
    curriculum: str = named_in("prompt.curriculum:CURRICULA")
    max_title_tokens: int = within(1)
    prompt_file: str | None
    eval_template: str = one_of("first", "sampled", "all")
    answer_loss: str = named_in("model.losses:LOSSES")


@dataclass(frozen=True)
class ContrastSettings(Settings):
    """RSLLM's contrastive losses."""

    item_item_weight: float = within(0)
    user_item_weight: float = within(0)
    contrast_temperature: float = within(0, open_low=True)


@dataclass(frozen=True)
class ChatSettings(Settings):
    """A chat model behind an API."""

    api_base: str
    api_model: str
    api_key_env: str
    api_options: dict
    api_concurrency: int = within(1)
    api_timeout: float = within(0, open_low=True)
    api_max_retries: int = within(0)
    api_max_requests: int = within(0)
    api_max_failures: int = within(1)
    api_price_prompt: float | None = within(0)
    api_price_completion: float | None = within(0)
    chat_instruction: str
    representation: str = named_in("prompt.representation:REPRESENTATIONS")
    prompt_file: str | None
    eval_template: str = one_of("first", "sampled")

    def __post_init__(self) -> None:
        if not self.api_base.startswith(("http://", "https://")):
            raise UserError(f"api_base: found {self.api_base!r}, expected http://... or https://..., the endpoint's address")
        if taken := sorted({"model", "messages", "stream"} & self.api_options.keys()):
            raise UserError(
                f"api_options: found {', '.join(taken)}, expected further fields of a request; the model is api_model, the messages are "
                "the prompts, and answers are taken whole"
            )


@dataclass(frozen=True)
class TextEncoderSettings(Settings):
    """MoRec's text encoder."""

    text_encoder_path: str
    text_encoder_tuning: str = one_of("frozen", "full")
    text_encoder_learning_rate: float = within(0, open_low=True)
    text_pooling: str = named_in("recommender.text_encoder:POOLINGS")
    text_batch_size: int = within(1)
    max_title_tokens: int = within(1)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """What every trained model takes, stock ones too."""

    epochs: int = within(0)
    train_batch_size: int = within(1)
    learning_rate: float = within(0, open_low=True)
    weight_decay: float = within(0)


@dataclass(frozen=True)
class OptimSettings(TrainingSettings):
    """The optimiser of the LLM recommenders."""

    stage_1_epochs: int = within(1)
    stage_1_learning_rate: float | None = within(0, open_low=True)
    weight_decay_on: str = one_of("projector", "all")
    micro_batch_size: int = within(1)
    min_learning_rate_ratio: float = within(0, 1)
    warmup_learning_rate_ratio: float = within(0, 1)
    warmup_ratio: float = within(0, 1, open_high=True)
    max_grad_norm: float | None = within(0, open_low=True)
    save_steps: int = within(0)
    save_total_limit: int = within(1)

    @property
    def first_learning_rate(self) -> float:
        """The maximum of stage 1."""
        return self.learning_rate if self.stage_1_learning_rate is None else self.stage_1_learning_rate
