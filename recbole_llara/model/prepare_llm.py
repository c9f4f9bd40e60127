"""Whether an LLM can do what the run wants of it: asked of its files, then of itself, before a recommender is trained for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase

from recbole_llara.checkpoint.identity import llm_digest
from recbole_llara.config.settings import EvaluationSettings, LLMSettings, OptimSettings, PromptSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.adapters import TokenKeys, key_dropout, tune
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.llm.likelihood import AnswerReader
from recbole_llara.llm.loading import context_length, first_line, is_quantized, load_config, load_llm, load_tokenizer
from recbole_llara.llm.probe import Probe
from recbole_llara.llm.source import resolve_llm_path
from recbole_llara.prompt.curriculum import shown_representations
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.prompt.tokens import ChatFrame
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import processes_of


@dataclass(frozen=True)
class PreparedLLM:
    """An LLM that can be trained and asked, and what writes its prompts.

    Args:
        llm: as ``tune`` leaves it, on the run's device unless its weights are going to be sharded.
        digest: of the LLM itself, see ``llm_digest``.
        tokenizer: its own.
        encoder: of the run's prompts.
        token_keys: where its dropout reads which tokens a pass holds.
        read_answers: how it reads the candidates' answers; None where its weights are sharded before it is asked.
    """

    llm: nn.Module
    digest: str
    tokenizer: PreTrainedTokenizerBase
    encoder: PromptEncoder
    token_keys: TokenKeys
    read_answers: AnswerReader | None


def prepare_llm(config: Any, data: PreparedData) -> PreparedLLM:
    """Load and tune the run's LLM; refuse one that cannot hold or read the run's prompts, and users without enough other items.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.

    Raises:
        UserError: no titles; config, tokenizer or weights of ``llm_path``; a prompt longer than the LLM can hold; too few
            items; or what ``Probe`` refuses.
    """
    if data.catalogue is None:
        raise UserError(
            f"title_field: dataset {config['dataset']} names no column of titles, expected one for "
            f"{config['model']}: set title_field in properties/dataset/{config['dataset']}.yaml or a config file"
        )
    settings = LLMSettings.from_config(config)
    source = resolve_llm_path(settings.llm_path)
    options = source.options(settings.llm_trust_remote_code)
    llm_config = load_config(settings.llm_path, source, options)
    if isinstance(source.where, Path):
        _check_weights(settings.llm_path, source.where)
    tokenizer = load_tokenizer(settings.llm_path, source, options)
    if OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None:
        data.sampler.check_eligible(data.train_data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    encoder = build_encoder(config, data, tokenizer, context_length(llm_config))
    rows = getattr(llm_config.get_text_config(), "vocab_size", None)
    if rows is not None and encoder.highest_token >= rows:
        raise UserError(
            f"llm_path is {settings.llm_path!r}: its tokenizer makes the token {encoder.highest_token} of the run's prompts, its embedding "
            f"table has {rows} rows, expected a row for every token of a prompt"
        )
    llm, tokenizer = load_llm(
        settings.llm_path,
        dtype=settings.llm_dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.llm_trust_remote_code,
        llm_tuning=settings.llm_tuning,
        device=config["device"],
        quantization=settings.llm_quantization,
    )
    digest, token_keys = llm_digest(llm), TokenKeys()  # of the LLM as it came
    if settings.gradient_checkpointing:
        again = {"use_reentrant": False, "context_fn": token_keys.for_checkpoint}
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    lora = (settings.lora_r, settings.lora_alpha, settings.lora_dropout, settings.lora_target_modules, settings.lora_layers)
    tuned = tune(llm, settings.llm_tuning, *lora)
    key_dropout(tuned, config["seed"], token_keys)
    is_sharded = settings.fsdp and processes_of(config).count > 1
    reader = None if is_sharded else answer_reader(config, tuned, encoder, token_keys)
    return PreparedLLM(tuned, digest, tokenizer, encoder, token_keys, reader)


def answer_reader(config: Any, llm: nn.Module, encoder: PromptEncoder, token_keys: TokenKeys) -> AnswerReader:
    """How a tuned LLM, sharded or not, reads answers: ``Probe`` with the run's longest prompt, on the run's device."""
    settings = LLMSettings.from_config(config)
    quantized = is_quantized(causal_lm(llm))
    if not quantized:  # quantised weights are there already
        llm.to(config["device"])
    prompt, answer_ids = encoder.longest_prompt(config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"])
    end, pad = encoder.tokenizer.eos_token_id, encoder.pad_id
    probe = Probe(causal_lm(llm.eval()), settings.llm_path, prompt, answer_ids, end, pad, quantized, token_keys)
    return probe.run(DECODINGS[EvaluationSettings.from_config(config).decoding].generates)


def build_encoder(
    config: Any, data: PreparedData, tokenizer: PreTrainedTokenizerBase, max_positions: int | None
) -> PromptEncoder:
    """The encoder of a run's prompts; a UserError where they are longer than ``max_positions`` tokens, None = any number."""
    history, candidates = config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"]
    prompt = PromptSettings.from_config(config)
    return PromptEncoder(
        tokenizer,
        data.catalogue.titles,
        load_templates(data.catalogue.domain, candidates, prompt.prompt_file),
        prompt.max_title_tokens,
        None if max_positions is None else ContextBudget(max_positions, history, candidates),
        shown_representations(config),
        ChatFrame.of(tokenizer) if prompt.prompt_format == "chat" else None,
    )


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
