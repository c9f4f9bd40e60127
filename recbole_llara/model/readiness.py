"""Whether an LLM can do what the run wants of it: asked of its files, then of itself, before a recommender is trained for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from recbole_llara.checkpoint.identity import llm_digest
from recbole_llara.config.settings import TRUST, EvaluationSettings, LLMSettings, OptimSettings, PromptSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.llm.dropout import TokenKeys, key_dropout
from recbole_llara.llm.likelihood import AnswerReader
from recbole_llara.llm.llm_path import check_no_code, describe_expected, first_line, resolve_llm_path, why
from recbole_llara.llm.loading import causal_lm, check_vocabulary, context_length, load_llm, load_tokenizer, tune
from recbole_llara.llm.probe import probe_llm
from recbole_llara.prompt.curriculum import shown_representations
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import processes_of


@dataclass(frozen=True)
class ReadyLLM:
    """An LLM that can be trained and asked, and what writes its prompts.

    Args:
        llm: as ``tune`` leaves it, on the run's device unless its weights are going to be dealt out.
        digest: of the LLM itself, see ``llm_digest``.
        tokenizer: its own.
        encoder: of the run's prompts.
        token_keys: where its dropout reads which tokens a pass holds.
        read_answers: how it reads the candidates' answers; None where its weights are dealt out before it is asked.
    """

    llm: nn.Module
    digest: str
    tokenizer: PreTrainedTokenizerBase
    encoder: PromptEncoder
    token_keys: TokenKeys
    read_answers: AnswerReader | None


def ready_llm(config: Any, data: PreparedData) -> ReadyLLM:
    """Load and tune the run's LLM; refuse one that cannot hold or read the run's prompts, and users without enough other items.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.

    Raises:
        UserError: no titles; config, tokenizer or weights of ``llm_path``; a prompt longer than the LLM can hold; too few
            items; or what ``probe_llm`` refuses.
    """
    if data.catalogue is None:
        raise UserError(
            f"title_field: dataset {config['dataset']} names no column of titles, expected one for "
            f"{config['model']}: set title_field in properties/dataset/{config['dataset']}.yaml or a config file"
        )
    settings = LLMSettings.from_config(config)
    source = resolve_llm_path(settings.llm_path)
    options = {"local_files_only": isinstance(source, Path), "trust_remote_code": settings.llm_trust_remote_code}
    llm_config = _read_config(settings.llm_path, source, options)
    if isinstance(source, Path):
        _check_weights(settings.llm_path, source)
    tokenizer = load_tokenizer(settings.llm_path, source, options)
    check_vocabulary(settings.llm_path, tokenizer, getattr(llm_config.get_text_config(), "vocab_size", None))
    if OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None:
        data.sampler.check_eligible(data.train_data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    encoder = build_encoder(config, data, tokenizer, context_length(llm_config))
    llm, tokenizer = load_llm(
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
    tuned = tune(
        llm,
        settings.llm_tuning,
        settings.lora_r,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.lora_target_modules,
    )
    key_dropout(tuned, config["seed"], token_keys)
    is_asked_later = settings.fsdp and processes_of(config).count > 1
    return ReadyLLM(
        tuned,
        digest,
        tokenizer,
        encoder,
        token_keys,
        None if is_asked_later else answer_reader(config, tuned, encoder, token_keys),
    )


def answer_reader(config: Any, llm: nn.Module, encoder: PromptEncoder, token_keys: TokenKeys) -> AnswerReader:
    """``probe_llm`` with the longest prompt of the run; the LLM goes to the run's device for it.

    Args:
        config: the run's RunConfig.
        llm: as ``tune`` leaves it, dealt out or not.
        encoder: of the run's prompts.
        token_keys: where its dropout reads which tokens a pass holds.
    """
    settings, tokenizer = LLMSettings.from_config(config), encoder.tokenizer
    if settings.llm_quantization == "none":  # quantised weights are there already
        llm.to(config["device"])
    prompt, answer_ids = encoder.longest_prompt(config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"])
    return probe_llm(
        causal_lm(llm.eval()),
        settings.llm_path,
        prompt,
        answer_ids,
        tokenizer.eos_token_id,
        encoder.pad_id,
        generates=EvaluationSettings.from_config(config).decoding == "generate",
        is_quantized=settings.llm_quantization != "none",
        token_keys=token_keys,
    )


def build_encoder(
    config: Any, data: PreparedData, tokenizer: PreTrainedTokenizerBase, max_positions: int | None
) -> PromptEncoder:
    """The encoder of a run's prompts.

    Args:
        config, data: of the run.
        tokenizer: of its LLM.
        max_positions: (int, tokens) that the LLM can hold; None = any number.

    Raises:
        UserError: prompts do not fit.
    """
    history, candidates = config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"]
    return PromptEncoder(
        tokenizer,
        data.catalogue.titles,
        load_templates(data.catalogue.domain, candidates),
        PromptSettings.from_config(config).max_title_tokens,
        None if max_positions is None else ContextBudget(max_positions, history, candidates),
        shown_representations(config),
    )


def _read_config(llm_path: str, source: Path | str, options: Mapping[str, Any]) -> PretrainedConfig:
    try:
        check_no_code(source, options)
        return AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"llm_path is {llm_path!r}: no model's config.json can be read there ({why(error, TRUST)}). "
            f"{describe_expected(llm_path)}"
        ) from error


def _check_weights(llm_path: str, folder: Path) -> None:
    """The weights' files: all there, and as long as their headers say."""
    files = sorted(folder.glob("*.safetensors"))
    indices = sorted(folder.glob("*.index.json"))
    if not files and not indices and not any(folder.glob("*.bin")):
        raise UserError(f"llm_path is {llm_path!r}: no weights there, expected model.safetensors beside config.json")
    for index in indices:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            raise UserError(f"llm_path is {llm_path!r}: found no {missing[0]}, expected all {len(parts)} files of {index.name}")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"llm_path is {llm_path!r}: {file.name} cannot be read ({first_line(error)}), expected a whole safetensors file: "
                "copy it again"
            ) from error
