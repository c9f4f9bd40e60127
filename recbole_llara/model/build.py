"""Making the model of a run: its LLM checked, loaded and tuned before a recommender is trained for it."""

from typing import Any

import torch
from torch import nn

from recbole_llara.checkpoint.weights import Format, given_checkpoint, llm_digest
from recbole_llara.config.models import is_llm_recommender, resolve_model
from recbole_llara.config.settings import EvaluationSettings, LLMSettings, PromptSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.evaluator.answer import DECODINGS
from recbole_llara.llm.adapters import TokenKeys, key_dropout, tune
from recbole_llara.llm.architecture import causal_lm, compile_blocks, shard_frozen
from recbole_llara.llm.likelihood import AnswerReader
from recbole_llara.llm.loading import context_length, hold_products, is_quantized, load_llm, read_files
from recbole_llara.llm.prefixes import PrefixStore
from recbole_llara.llm.probe import Probe
from recbole_llara.model.checks import is_tuned
from recbole_llara.prompt.curriculum import shown_representations
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.fields import bracketed
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.prompt.tokens import ChatFrame
from recbole_llara.recommender.stock import make_recommender, numbered
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import processes_of

MEGABYTE = 10**6


def build_model(config: Any, data: PreparedData) -> nn.Module:
    """Make the model of a run, on its device: ours as ``LLMRecommender``, a stock one as RecBole makes it.

    Raises:
        UserError: ``checkpoint`` cannot be this model's, or what the model itself or ``make_recommender`` refuses.
    """
    name, is_llm = config["model"], is_llm_recommender(config["model"])
    if config["checkpoint"] is not None:
        given_checkpoint(config["checkpoint"], name, Format.LLM if is_llm else Format.STOCK)
    model = resolve_model(name)(config, data) if is_llm else make_recommender(name, config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])


def prepare_llm(
    config: Any, data: PreparedData, is_sharded: bool
) -> tuple[nn.Module, str, PromptEncoder, TokenKeys, AnswerReader]:
    """Load, tune and try the run's LLM; refuse one that cannot hold the run's prompts, and users without enough other items.

    Returns:
        the LLM as ``tune`` leaves it, on the run's device; the digest of the LLM as it came; the encoder of the run's prompts,
        with its tokenizer; where its dropout reads which tokens a pass holds; and how it reads the candidates' answers.

    Raises:
        UserError: config, tokenizer or weights of ``llm_path``; a prompt longer than the LLM can hold; too few items; or what
            ``Probe`` refuses.
    """
    settings, device = LLMSettings.from_config(config), config["device"]
    if settings.attn_implementation == "flex_attention" and device.type == "cpu":
        raise UserError(
            "attn_implementation: found flex_attention, which computes no gradients on a CPU, expected sdpa or eager: change it, or run "
            "on a GPU"
        )
    llm_config, tokenizer = read_files(settings.llm_path, settings.llm_trust_remote_code)
    max_positions = context_length(llm_config)
    if is_tuned(config):
        data.sampler.check_eligible(data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    history, candidates = config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"]
    prompt = PromptSettings.from_config(config)
    encoder = PromptEncoder(
        tokenizer,
        data.catalogue.titles,
        load_templates(data.catalogue.domain, candidates, prompt.prompt_file),
        prompt.max_title_tokens,
        None if max_positions is None else ContextBudget(max_positions, history, candidates),
        shown_representations(config),
        ChatFrame.of(tokenizer) if prompt.prompt_format == "chat" else None,
        bracketed(data.catalogue.fields, tokenizer, prompt.max_field_tokens),
    )
    rows = getattr(llm_config.get_text_config(), "vocab_size", None)
    if rows is not None and encoder.highest_token >= rows:
        raise UserError(
            f"llm_path is {settings.llm_path!r}: its tokenizer makes tokens up to {encoder.highest_token} of the run's prompts, its embedding "
            f"table has {rows} rows, expected a row for every token of a prompt"
        )
    llm, _ = load_llm(
        settings.llm_path,
        dtype=settings.llm_dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.llm_trust_remote_code,
        llm_tuning=settings.llm_tuning,
        device=device,
        quantization=settings.llm_quantization,
        llm_layers=settings.llm_layers,
    )
    digest, token_keys = llm_digest(llm), TokenKeys()
    if settings.gradient_checkpointing:
        again = {"use_reentrant": False, "context_fn": token_keys.for_checkpoint}
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    lora = (settings.lora_r, settings.lora_alpha, settings.lora_dropout, settings.lora_target_modules, settings.lora_layers)
    tuned = tune(llm, settings.llm_tuning, *lora)
    key_dropout(tuned, config["seed"], token_keys)
    if is_sharded:
        if is_quantized(llm):
            raise UserError(
                f"fsdp: True needs whole weights, but those of {settings.llm_path!r} are quantised: set fsdp to False"
            )
        shard_frozen(tuned, device, processes_of(config).count)
    if not (is_held_quantized := is_quantized(llm)):  # else the weights are there already
        tuned.to(device)
    longest, end = encoder.longest_prompt(history, candidates), tokenizer.eos_token_id
    probe = Probe(causal_lm(tuned.eval()), settings.llm_path, *longest, end, encoder.pad_id, is_held_quantized, token_keys)
    reader = probe.run(DECODINGS[EvaluationSettings.from_config(config).decoding].generates)
    if settings.torch_compile:
        compile_blocks(tuned, device)
    return tuned, digest, encoder, token_keys, reader


def prepare_answers(config: Any, model: Any) -> None:
    """Make the answers of a trained LLM recommender cheaper, in place: it is not to be trained or saved afterwards.

    What is read of prompts is kept, as much as ``prefix_cache`` says, unless the LLM cannot read on from there; then the log says so.
    Under an ``eval_dtype`` of halves the weights of products are held in them, see ``hold_products``.
    """
    llm, encoder, limit = causal_lm(model.llm), model.encoder, LLMSettings.from_config(config).prefix_cache
    if limit:
        longest = encoder.longest_prompt(config["MAX_ITEM_LIST_LENGTH"], config["candidate_num"])
        ids = (model.tokenizer.eos_token_id, encoder.pad_id)
        if Probe(llm, model.llm_path, *longest, *ids, is_quantized(llm)).reads_on(model.read_answers):
            model.prefixes = PrefixStore(limit * MEGABYTE)
    if model.eval_dtype != torch.float32:
        hold_products(llm, model.eval_dtype)
