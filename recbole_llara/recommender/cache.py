"""A trained recommender's folder: what it holds is sealed by digests when it is written, and checked when it is taken."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llara.utils.hashing import file_sha256, json_ready

WEIGHTS, META = "model.safetensors", "meta.json"
_WEIGHTS_SHA256, _META_SHA256 = "weights_sha256", "meta_sha256"


class DamagedEntry(ValueError):
    """A folder that is not as ``seal`` left it; the message says in what."""


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``meta.json`` beside the weights.

    Args:
        folder: holds the weights.
        facts: what JSON can hold about them; digests of the weights and of the facts are added.
    """
    meta = json_ready({**facts, _WEIGHTS_SHA256: file_sha256(folder / WEIGHTS)})
    sealed = {**meta, _META_SHA256: _facts_sha256(meta)}
    (folder / META).write_text(json.dumps(sealed, indent=2), encoding="utf-8")


def unseal(folder: Path, sha256: str | None = None) -> dict[str, Any]:
    """The facts of a folder whose files are as they were written.

    Args:
        sha256: what ``recommender_sha256`` gives for the wanted recommender; None = whichever it is.

    Raises:
        DamagedEntry: a file is missing or altered, or the folder is another recommender's.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        weights_sha256 = file_sha256(folder / WEIGHTS)
    except (OSError, ValueError) as error:
        raise DamagedEntry(f"{META} or {WEIGHTS} cannot be read: {error}") from error
    if not isinstance(meta, dict) or meta.pop(_META_SHA256, None) != _facts_sha256(meta):
        raise DamagedEntry(f"{META} is not as it was written")
    if meta[_WEIGHTS_SHA256] != weights_sha256:
        raise DamagedEntry(f"{WEIGHTS} is not as it was written")
    if sha256 is not None and meta["sha256"] != sha256:
        raise DamagedEntry(f"{META} is that of another recommender")
    return meta


def _facts_sha256(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
