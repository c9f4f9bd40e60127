"""What a checkpoint keeps so that loading it makes nothing anew: the tokens of the items' texts, and that its LLM was tried.

Both are bound to what they were made for. Where tokenizer, titles, prompts, LLM, device or a library's version is another one, texts
are tokenised and the LLM is tried again.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from recbole_llara.checkpoint.weights import DamagedCheckpoint, read_checkpoint, tokenizer_digest
from recbole_llara.config.settings import LLMSettings
from recbole_llara.data.text_table import TextTable
from recbole_llara.data.titles import Catalogue
from recbole_llara.llm.adapters import TokenKeys
from recbole_llara.llm.architecture import causal_lm, input_embeddings
from recbole_llara.llm.likelihood import AnswerReader, candidate_log_probs, trie_log_probs
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.item_pieces import ItemPieces
from recbole_llara.prompt.template import PromptTemplate
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.prompt.tokens import ChatFrame
from recbole_llara.utils import __version__
from recbole_llara.utils.hashing import facts_sha256

PIECES, PROBE = "item_pieces.safetensors", "probe"
FORMAT = 1  # of the pieces; raise it when other tokens are made of the same texts
READERS: dict[str, AnswerReader] = {"tree": trie_log_probs, "one by one": candidate_log_probs}


class PreparedLLM(NamedTuple):
    """An LLM that is ready to be asked."""

    llm: nn.Module  # as ``tune`` leaves it, on the run's device
    digest: str  # of the LLM as it came
    encoder: PromptEncoder  # of the run's prompts, with its tokenizer
    token_keys: TokenKeys  # where its dropout reads which tokens a pass holds
    read_answers: AnswerReader  # how it reads the candidates' answers
    pieces_key: str  # what the encoder's pieces were made for
    probed: Mapping[str, Any]  # with what it was tried, and what was found


def pieces_key(
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    templates: list[PromptTemplate],
    limits: Mapping[str, Any],
    budget: ContextBudget | None,
    representations: list[tuple[str, str]],
    chat: ChatFrame | None,
) -> str:
    """Digest of all that the tokens of the items' texts depend on.

    Args:
        limits: of titles and fields, in tokens.
        representations: names of those that are going to be written, and what they answer with.
    """
    tokenizer(
        "", add_special_tokens=False
    )  # without the padding and truncation of an earlier call, which its description tells too
    backend = getattr(tokenizer, "backend_tokenizer", None)
    texts = {"": catalogue.titles, **catalogue.fields}
    facts = {
        "format": FORMAT,
        "versions": _versions("transformers", "tokenizers"),
        "tokenizer": [type(tokenizer).__name__, tokenizer_digest(tokenizer), None if backend is None else backend.to_str()],
        "texts": {name: TextTable.of(of).sha256 for name, of in texts.items()},
        "templates": [list(template.segments) for template in templates],
        "limits": dict(limits),
        "budget": None if budget is None else asdict(budget),
        "representations": sorted(representations),
        "chat": None if chat is None else asdict(chat),
    }
    return facts_sha256(facts)


def kept_pieces(checkpoint: Path | None, key: str, catalogue: Catalogue) -> ItemPieces | None:
    """The pieces of a checkpoint's folder; None where there is none, or they were made for something else.

    Raises:
        DamagedCheckpoint: they are not as they were written.
    """
    if checkpoint is None or not (checkpoint / PIECES).is_file():
        return None
    try:
        pieces = ItemPieces.read(checkpoint / PIECES, key, catalogue.titles)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(
            f"checkpoint {checkpoint}: {PIECES} is not as it was written ({error!r}); choose another"
        ) from error
    if pieces is None:
        getLogger().info(
            f"checkpoint {checkpoint}: its titles were tokenised for other prompts, titles, or another tokenizer; they are again"
        )
    return pieces


def probe_facts(
    settings: LLMSettings, llm: nn.Module, digest: str, key: str, lists: tuple[int, int], generates: bool
) -> dict[str, Any]:
    """With what an LLM is tried: where all of it is the same, what was found once holds again.

    Args:
        digest: of the LLM as it came.
        key: of the items' pieces, on which the longest prompt depends.
        lists: L and C.
        generates: whether the run lets the LLM write.
    """
    plain = causal_lm(llm)
    config = {
        name: value for name, value in plain.config.to_dict().items() if name not in ("_name_or_path", "transformers_version")
    }
    return {
        "llm_digest": digest,
        "config": facts_sha256(config),
        "architecture": type(plain).__name__,
        "attention": plain.config._attn_implementation,
        "dtype": str(input_embeddings(plain).weight.dtype),
        "device": str(plain.device.type),
        "tuning": [settings.llm_tuning, settings.llm_quantization, settings.gradient_checkpointing],
        "prompts": [key, *lists],
        "generates": generates,
        "versions": {**_versions("transformers", "peft"), "torch": str(torch.__version__), "recbole_llara": __version__},
    }


def tried(
    checkpoint: Path | None, facts: Mapping[str, Any], try_now: Callable[[], AnswerReader]
) -> tuple[AnswerReader, dict[str, Any]]:
    """How an LLM reads answers: as a checkpoint's folder tells, where it was tried with the same; else as it is found now."""
    kept = None if checkpoint is None else read_checkpoint(checkpoint).facts.get(PROBE)
    if isinstance(kept, dict) and kept.get("reader") in READERS:
        found = {name: value for name, value in kept.items() if name != "reader"}
        if {**found, "generates": facts["generates"] and found.get("generates")} == facts:
            return READERS[kept["reader"]], dict(kept)
    if checkpoint is not None:
        getLogger().info(
            f"checkpoint {checkpoint}: its LLM was tried with other prompts, libraries or weights, or elsewhere; it is again"
        )
    reader = try_now()
    return reader, {**facts, "reader": next(name for name, function in READERS.items() if function is reader)}


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}
