"""Plain values as JSON holds them, and short digests of values and files."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 16


def json_ready(value: Any) -> Any:
    """Plain Python of ``value``: numpy numbers unwrapped, NaN and infinities None, anything unknown its ``str``."""
    if value is None or type(value) in (str, bool, int):  # not their subclasses: an IntEnum shows its name
        return value
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        entries = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [json_ready(entry) for entry in entries]
    return str(value)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_digest(facts: Any) -> str:
    """Digest of what JSON can hold; anything else counts by its text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
