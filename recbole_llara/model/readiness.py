"""What can be known of an LLM before its weights are loaded: asked before a recommender is trained for it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD, PreparedData
from recbole_llara.errors import UserError
from recbole_llara.model.llm import check_vocabulary, load_tokenizer
from recbole_llara.model.llm_path import describe_expected, first_line, resolve_llm_path
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import Representation
from recbole_llara.prompt.template import load_templates
from recbole_llara.settings import LLMSettings, OptimSettings, PromptSettings
from recbole_llara.trainer.strategy import stages_of

LONGEST = 8  # rows that are encoded in full, of each split


def check_readiness(config: Any, data: PreparedData) -> None:
    """Refuse an LLM that cannot be loaded or cannot hold the run's prompts, and users without enough other items.

    Args:
        config: the run's LLaRAConfig.
        data: what ``prepare_data`` returned.

    Raises:
        UserError: config, tokenizer or weights of ``llm_path``, a prompt longer than the LLM can hold, or too few items.
    """
    if data.catalogue is None:
        return
    settings = LLMSettings.from_config(config)
    source = resolve_llm_path(settings.llm_path)
    options = {"local_files_only": isinstance(source, Path), "trust_remote_code": settings.llm_trust_remote_code}
    llm_config = _read_config(settings.llm_path, source, options)
    if isinstance(source, Path):
        _check_weights(settings.llm_path, source)
    tokenizer = load_tokenizer(settings.llm_path, source, options)
    check_vocabulary(settings.llm_path, tokenizer, getattr(llm_config, "vocab_size", None))
    encoder = PromptEncoder(
        tokenizer,
        data.catalogue.titles,
        load_templates(data.catalogue.domain, config["candidate_num"]),
        PromptSettings.from_config(config).max_title_tokens,
        getattr(llm_config, "max_position_embeddings", None),
    )
    is_trained = OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None
    if is_trained:
        data.sampler.check_eligible(data.train_data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    shown = {stage.hard for stage in stages_of(config)} | ({stage.easy for stage in stages_of(config)} if is_trained else set())
    item_field = config["ITEM_ID_FIELD"]
    history_field = item_field + config["LIST_SUFFIX"]
    for rows, candidates in _longest_rows(encoder, config, data, history_field, is_trained):
        _encode(encoder, rows[history_field], candidates, rows[item_field], shown)


def _read_config(llm_path: str, source: Path | str, options: Mapping[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"llm_path is {llm_path!r}: no model's config.json can be read there ({first_line(error)}). "
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


def _longest_rows(
    encoder: PromptEncoder, config: Any, data: PreparedData, history_field: str, is_trained: bool
) -> Iterator[tuple[Interaction, torch.Tensor]]:
    """The rows of each split whose prompts are longest, with candidates; those of training as its first epoch draws them."""
    for loader in (data.valid_data, data.test_data):
        rows = loader.dataset.inter_feat
        longest = _largest(encoder.prompt_lengths(rows[history_field], rows[CANDIDATE_FIELD]), LONGEST)
        yield rows[longest], rows[CANDIDATE_FIELD][longest]
    if is_trained:
        rows = data.train_data.dataset.inter_feat
        nothing = rows[history_field][:, :0]
        rows = rows[_largest(encoder.prompt_lengths(rows[history_field], nothing), 8 * LONGEST)]
        drawn = [rows[field].numpy() for field in (ROW_FIELD, config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])]
        candidates = torch.from_numpy(data.sampler.draw(*drawn, "train", 0, history=rows[history_field].numpy()))
        longest = _largest(encoder.prompt_lengths(rows[history_field], candidates), LONGEST)
        yield rows[longest], candidates[longest]


def _largest(lengths: torch.Tensor, count: int) -> torch.Tensor:
    return lengths.topk(min(count, len(lengths))).indices


def _encode(
    encoder: PromptEncoder,
    history: torch.Tensor,
    candidates: torch.Tensor,
    targets: torch.Tensor,
    representations: Iterable[Representation],
) -> None:
    """Encode rows under every template; the encoder refuses what is too long."""
    for representation in sorted(representations, key=lambda representation: representation.name):
        for number in range(len(encoder.templates)):
            template = torch.from_numpy(np.full(len(history), number))
            encoder.encode(history, candidates, targets, representation, template)
