"""What can be known of an LLM before its weights are loaded: asked before a recommender is trained for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from recbole_llara.data.dataset import PreparedData
from recbole_llara.errors import UserError
from recbole_llara.model.llm import check_vocabulary, load_tokenizer
from recbole_llara.model.llm_path import check_no_code, describe_expected, first_line, resolve_llm_path, why
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.room import PromptRoom
from recbole_llara.prompt.template import load_templates
from recbole_llara.settings import TRUST, LLMSettings, OptimSettings, PromptSettings
from recbole_llara.trainer.strategy import shown_representations


def ready_encoder(config: Any, data: PreparedData) -> PromptEncoder | None:
    """Refuse an LLM that cannot be loaded or cannot hold the run's prompts, and users without enough other items.

    Args:
        config: the run's LLaRAConfig.
        data: what ``prepare_data`` returned.

    Returns:
        the encoder of the run's prompts; None where the dataset has no titles.

    Raises:
        UserError: config, tokenizer or weights of ``llm_path``, a prompt longer than the LLM can hold, or too few items.
    """
    if data.catalogue is None:
        return None
    settings = LLMSettings.from_config(config)
    source = resolve_llm_path(settings.llm_path)
    options = {"local_files_only": isinstance(source, Path), "trust_remote_code": settings.llm_trust_remote_code}
    llm_config = _read_config(settings.llm_path, source, options)
    if isinstance(source, Path):
        _check_weights(settings.llm_path, source)
    tokenizer = load_tokenizer(settings.llm_path, source, options)
    check_vocabulary(settings.llm_path, tokenizer, getattr(llm_config, "vocab_size", None))
    if OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None:
        data.sampler.check_eligible(data.train_data.dataset.inter_feat[config["USER_ID_FIELD"]].numpy())
    return build_encoder(config, data, tokenizer, getattr(llm_config, "max_position_embeddings", None))


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
        None if max_positions is None else PromptRoom(max_positions, history, candidates),
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
