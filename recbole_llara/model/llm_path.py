"""Where an LLM lies: the embedded one, a folder, or the Hugging Face hub; and what to say when it does not."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recbole_llara.errors import UserError, nearest
from recbole_llara.masking import shown
from recbole_llara.tiny_llama import TINY_LLAMA_DIR

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
        raise UserError(f"{key} is {shown(llm_path)}: no such folder. {describe_expected(llm_path)}")
    return llm_path


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
