"""Where an LLM lies: the embedded one, a folder, or the Hugging Face hub; and what to say when it does not."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from recbole_llara.config.secrets import redacted
from recbole_llara.utils.digests import file_sha256
from recbole_llara.utils.errors import UserError, nearest

TINY_LLAMA_DIR = Path(__file__).resolve().parent.parent / "tiny_llama" / "weights"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NEEDS_CODE = "it needs code that does not come with transformers"


def resolve_llm_path(llm_path: str, key: str = "llm_path") -> Path | str:
    """Find the LLM that ``llm_path`` means.

    Args:
        llm_path: "tiny", a folder, or the id of a hub model.
        key: that holds it, for the message.

    Returns:
        The folder as a Path, or the id of a hub model as it came.

    Raises:
        UserError: a path to no folder.
    """
    if llm_path == "tiny":
        if not (TINY_LLAMA_DIR / "config.json").is_file():
            raise UserError(
                f"{key} is 'tiny', but the embedded LLM's weights are missing: run python -m recbole_llara.tiny_llama.pretrain"
            )
        return TINY_LLAMA_DIR
    folder = Path(llm_path).expanduser()
    if folder.is_dir():
        return folder
    is_below_a_folder = folder.parent != Path() and folder.parent.is_dir()
    if folder.is_file() or is_below_a_folder or llm_path.startswith((".", "~")) or not HUB_ID.fullmatch(llm_path):
        raise UserError(f"{key} is {redacted(llm_path)}: no such folder. {describe_expected(llm_path)}")
    return llm_path


@cache
def embedded_llm_sha256() -> str | None:
    """Digest of the embedded LLM's weights; None where they are missing."""
    weights = TINY_LLAMA_DIR / "model.safetensors"
    return file_sha256(weights) if weights.is_file() else None


def describe_expected(llm_path: str) -> str:
    """What llm_path may be, and the nearest name beside it that would do."""
    folder = Path(llm_path).expanduser()
    names = ["tiny"] if folder.parent == Path() else []
    if folder.parent.is_dir():
        names.extend(child.name for child in folder.parent.iterdir() if (child / "config.json").is_file())
    hint = nearest(folder.name, [name for name in names if name != folder.name])
    return f"Expected tiny, a folder with config.json, weights and tokenizer, or the id of a hub model; {hint}"


def read_tokenizer(source: Path | str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """transformers' AutoTokenizer.

    Args:
        source: what ``resolve_llm_path`` found.
        options: of ``from_pretrained``.

    Raises:
        OSError, ValueError, ImportError: no tokenizer can be read there; whatever a broken file leads to is a ValueError.
    """
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if type(error) is Exception:  # the Rust code of tokenizers knows no other kind
            raise ValueError(str(error)) from error
        raise


def check_no_code(source: Path | str, options: Mapping[str, Any]) -> None:
    """Refuse a model whose config.json needs, or asks for, code that transformers does not bring.

    ``auto_map`` names files beside the weights; an ``attn_implementation`` with a slash is a kernel of the hub, which is compiled
    code that transformers would fetch and run.

    Args:
        source: what ``resolve_llm_path`` found.
        options: of ``from_pretrained``; with a true ``trust_remote_code`` nothing is refused.

    Raises:
        ValueError: it does. OSError: there is no config.json that can be read.
    """
    if options["trust_remote_code"]:
        return
    config, _ = PretrainedConfig.get_config_dict(source, local_files_only=options["local_files_only"])
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(f"{NEEDS_CODE}: model_type {config.get('model_type')!r}, auto_map {config['auto_map']!r}")
    kernels = [name for name in _attention_names(config) if "/" in name]
    if kernels:
        raise ValueError(f"{NEEDS_CODE}: attn_implementation {kernels[0]!r}")


def _attention_names(config: Any) -> list[str]:
    """Every text that stands, at any depth, below a key that chooses how attention or experts are computed."""
    if not isinstance(config, dict):
        return []
    chosen = [
        value for key, value in config.items() if "attn_implementation" in str(key) or "experts_implementation" in str(key)
    ]
    names = [str(name) for value in chosen for name in (value.values() if isinstance(value, dict) else [value])]
    return names + [name for value in config.values() for name in _attention_names(value)]


def why(error: Exception, trust_key: str | None = None) -> str:
    """Why a model cannot be read, in a line.

    Args:
        error: of transformers.
        trust_key: the key by which the user lets code of the folder run; None = there is none.
    """
    text = str(error)
    if not any(sign in text for sign in (NEEDS_CODE, "trust_remote_code", "custom code")):
        return first_line(error)
    unless = "" if trust_key is None else f" unless you give --{trust_key}=True"
    return f"{text if text.startswith(NEEDS_CODE) else NEEDS_CODE}; such code is not run{unless}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
