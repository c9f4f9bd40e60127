"""Making the model of a run: its LLM checked, loaded and tuned before a recommender is trained for it."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
from recbole_llara.model.kept import PreparedLLM, kept_pieces, pieces_key, probe_facts, tried
from recbole_llara.prompt.curriculum import shown_representations
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.fields import bracketed
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.prompt.tokens import ChatFrame
from recbole_llara.recommender.stock import make_recommender, numbered
from recbole_llara.recommender.undrawn import undrawn
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import progress_bars
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
    if is_llm:
        model = resolve_model(name)(config, data)
    else:
        with undrawn(config, data.kept is not None):
            model = make_recommender(name, config, data.dataset)
    return numbered(model, config, data.dataset).to(config["device"])


def prepare_llm(config: Any, data: PreparedData, is_sharded: bool) -> PreparedLLM:
    """Load, tune and try the run's LLM; refuse one that cannot hold the run's prompts, and users without enough other items.

    What ``data.kept`` has of it for the same tokenizer, prompts and LLM is taken from there, see ``model.kept``.

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
    files = read_files(settings.llm_path, settings.llm_trust_remote_code)
    llm_config, tokenizer = files
    if is_tuned(config):
        data.sampler.check_eligible(data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    encoder, key = prompt_encoder(config, data, llm_config, tokenizer)
    rows = getattr(llm_config.get_text_config(), "vocab_size", None)
    if rows is not None and encoder.highest_token >= rows:
        raise UserError(
            f"llm_path is {settings.llm_path!r}: its tokenizer makes tokens up to {encoder.highest_token} of the run's prompts, its embedding "
            f"table has {rows} rows, expected a row for every token of a prompt"
        )
    with progress_bars(bool(config["show_progress"])):
        llm, _ = load_llm(
            settings.llm_path,
            dtype=settings.llm_dtype,
            attn_implementation=settings.attn_implementation,
            trust_remote_code=settings.llm_trust_remote_code,
            llm_tuning=settings.llm_tuning,
            device=device,
            quantization=settings.llm_quantization,
            llm_layers=settings.llm_layers,
            files=files,
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
    lists = shown_lists(config)
    generates = DECODINGS[EvaluationSettings.from_config(config).decoding].generates

    def probe() -> AnswerReader:
        longest, end = encoder.longest_prompt(*lists), tokenizer.eos_token_id
        plain = causal_lm(tuned.eval())
        return Probe(plain, settings.llm_path, *longest, end, encoder.pad_id, is_held_quantized, token_keys).run(generates)

    tuned.eval()
    reader, probed = tried(data.kept, probe_facts(settings, tuned, digest, key, lists, generates), probe)
    if settings.torch_compile:
        compile_blocks(tuned, device)
    return PreparedLLM(tuned, digest, encoder, token_keys, reader, key, probed)


def prompt_encoder(
    config: Any, data: PreparedData, llm_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PromptEncoder, str]:
    """The encoder of a run's prompts for an LLM of this configuration, and the key of its items' pieces; a UserError where it cannot hold them."""
    max_positions, prompt = context_length(llm_config), PromptSettings.from_config(config)
    history, candidates = shown_lists(config)
    budget = None if max_positions is None else ContextBudget(max_positions, history, candidates)
    templates = load_templates(data.catalogue.domain, candidates, prompt.prompt_file)
    shown, chat = shown_representations(config), ChatFrame.of(tokenizer) if prompt.prompt_format == "chat" else None
    limits = {"titles": prompt.max_title_tokens, "fields": prompt.max_field_tokens}
    key = pieces_key(
        tokenizer, data.catalogue, templates, limits, budget, [(each.name, each.answer.value) for each in shown], chat
    )
    pieces = kept_pieces(data.kept, key, data.catalogue)
    fields = bracketed(data.catalogue.fields, tokenizer, prompt.max_field_tokens) if pieces is None else ()
    made = (prompt.max_title_tokens, budget, shown, chat, fields, pieces)
    return PromptEncoder(tokenizer, data.catalogue.titles, templates, *made, letters=candidates, history=history), key


def shown_lists(config: Any) -> tuple[int, int]:
    """How many items of a history and how many candidates a prompt of the run shows at most."""
    read, shown = config["MAX_ITEM_LIST_LENGTH"], PromptSettings.from_config(config).prompt_history
    return min(read, shown or read), config["candidate_num"]


def prepare_answers(config: Any, model: Any) -> None:
    """Make the answers of a trained LLM recommender cheaper, in place: it is not to be trained or saved afterwards.

    What is read of prompts is kept, as much as ``prefix_cache`` says, unless the LLM cannot read on from there; then the log says so.
    Under an ``eval_dtype`` of halves the weights of products are held in them, see ``hold_products``.
    """
    llm, encoder, limit = causal_lm(model.llm), model.encoder, LLMSettings.from_config(config).prefix_cache
    if limit:
        longest = encoder.longest_prompt(*shown_lists(config))
        ids = (model.tokenizer.eos_token_id, encoder.pad_id)
        if Probe(llm, model.llm_path, *longest, *ids, is_quantized(llm)).reads_on(model.read_answers):
            model.prefixes = PrefixStore(limit * MEGABYTE)
    if model.eval_dtype != torch.float32:
        hold_products(llm, model.eval_dtype)
