"""Making the model of a run: its LLM checked, loaded and tuned before a recommender is trained for it."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from recbole_llara.checkpoint.identity import llm_digest
from recbole_llara.checkpoint.weights import Format, given_checkpoint
from recbole_llara.config.models import is_llm_recommender, resolve_model
from recbole_llara.config.settings import TRUST, EvaluationSettings, LLMSettings, OptimSettings, PromptSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.adapters import TokenKeys, key_dropout, tune
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.llm.likelihood import AnswerReader
from recbole_llara.llm.loading import (
    check_no_code,
    check_vocabulary,
    context_length,
    describe_expected,
    first_line,
    load_llm,
    load_tokenizer,
    resolve_llm_path,
    why,
)
from recbole_llara.llm.probe import Probe
from recbole_llara.prompt.curriculum import shown_representations
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.recommender.frozen import TrainStock
from recbole_llara.recommender.stock import make_recommender, numbered
from recbole_llara.utils.errors import UserError


def build_model(config: Any, data: PreparedData, train: TrainStock) -> nn.Module:
    """Make the model of a run, on its device: ours from all that was prepared, a stock one as RecBole makes it.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.
        train: trains the frozen recommender of one of ours, where it is not in the cache.

    Raises:
        UserError: ``checkpoint`` cannot be this model's, or what the model itself or ``make_recommender`` refuses.
    """
    is_llm = is_llm_recommender(config["model"])
    if config["checkpoint"] is not None:
        given_checkpoint(config["checkpoint"], config["model"], Format.LLM if is_llm else Format.STOCK)
    if is_llm:
        model = resolve_model(config["model"])(config, data, train)
    else:
        model = make_recommender(config["model"], config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])


def prepare_llm(config: Any, data: PreparedData) -> tuple[nn.Module, str, PromptEncoder, TokenKeys]:
    """Load and tune the run's LLM; refuse one that cannot hold the run's prompts, and users without enough other items.

    Returns:
        the LLM as ``tune`` leaves it, on the CPU unless it is quantised; the digest of the LLM as it came; the encoder of the
        run's prompts, with its tokenizer; and where its dropout reads which tokens a pass holds.

    Raises:
        UserError: config, tokenizer or weights of ``llm_path``; a prompt longer than the LLM can hold; too few items.
    """
    settings = LLMSettings.from_config(config)
    tokenizer, max_positions = _read_files(settings)
    if OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None:
        data.sampler.check_eligible(data.train_data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    history, candidates = config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"]
    prompt = PromptSettings.from_config(config)
    encoder = PromptEncoder(
        tokenizer,
        data.catalogue.titles,
        load_templates(data.catalogue.domain, candidates, prompt.prompt_file),
        prompt.max_title_tokens,
        None if max_positions is None else ContextBudget(max_positions, history, candidates),
        shown_representations(config),
    )
    llm, _ = load_llm(
        settings.llm_path,
        dtype=settings.llm_dtype,
        trust_remote_code=settings.llm_trust_remote_code,
        llm_tuning=settings.llm_tuning,
        device=config["device"],
        quantization=settings.llm_quantization,
    )
    digest, token_keys = llm_digest(llm), TokenKeys()
    if settings.gradient_checkpointing:
        again = {"use_reentrant": False, "context_fn": token_keys.for_checkpoint}
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    lora = (settings.lora_r, settings.lora_alpha, settings.lora_dropout, settings.lora_target_modules)
    tuned = tune(llm, settings.llm_tuning, *lora)
    key_dropout(tuned, config["seed"], token_keys)
    return tuned, digest, encoder, token_keys


def answer_reader(config: Any, llm: nn.Module, encoder: PromptEncoder, token_keys: TokenKeys) -> AnswerReader:
    """How a tuned LLM, sharded or not, reads answers: ``Probe`` with the run's longest prompt, on the run's device."""
    settings = LLMSettings.from_config(config)
    is_quantized = settings.llm_quantization != "none"
    if not is_quantized:  # quantised weights are there already
        llm.to(config["device"])
    prompt, answer_ids = encoder.longest_prompt(config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"])
    end, pad = encoder.tokenizer.eos_token_id, encoder.pad_id
    probe = Probe(causal_lm(llm.eval()), settings.llm_path, prompt, answer_ids, end, pad, is_quantized, token_keys)
    return probe.run(DECODINGS[EvaluationSettings.from_config(config).decoding].generates)


def _read_files(settings: LLMSettings) -> tuple[PreTrainedTokenizerBase, int | None]:
    """An LLM's tokenizer and how many tokens it holds, None = any number; a UserError where one of its files is no good."""
    source, subject = resolve_llm_path(settings.llm_path), f"llm_path is {settings.llm_path!r}"
    options = {"local_files_only": isinstance(source, Path), "trust_remote_code": settings.llm_trust_remote_code}
    try:
        check_no_code(source, options)
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        expected = describe_expected(settings.llm_path)
        raise UserError(f"{subject}: no model's config.json can be read there ({why(error, TRUST)}). {expected}") from error
    for file in sorted(source.glob("*.safetensors")) if isinstance(source, Path) else ():
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{subject}: {file.name} cannot be read ({first_line(error)}), expected a whole safetensors file: copy it again"
            ) from error
    tokenizer = load_tokenizer(settings.llm_path, source, options)
    check_vocabulary(settings.llm_path, tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    return tokenizer, context_length(config)
