"""What is a secret, and values and texts without it: keys and passwords reach no log, no file and no message."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

MASK = "***"
# How the names of credentials end, those of headers and options too: X-Api-Key, session_token; but not max_tokens.
_KINDS = (
    r"(?:api|access|auth|private|secret|session|security|subscription|bearer|refresh|hf|huggingface|hub|llm|wandb)[-_]?"
    r"(?:key|token)|authorization|pass(?:word|wd|phrase)|secret|cookie|credentials?"
)
_SECRET_NAME = re.compile(rf".*(?:{_KINDS})", re.IGNORECASE)
_QUERY_NAME = rf"(?:[\w.-]*(?:{_KINDS})|key|token|code|sig|signature)"
_USER_INFO = re.compile(r"(?<=://)[^/\s\"'?#]*@")
_QUERY = re.compile(rf"([?&]{_QUERY_NAME}=)[^&\s\"'#]+", re.IGNORECASE)
_NAMED_VALUE = re.compile(rf"((?:{_KINDS})[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s+)?)[^\s\"',}}&]+", re.IGNORECASE)


def is_secret(name: Any) -> bool:
    """Whether what bears this name is a credential."""
    return _SECRET_NAME.fullmatch(str(name)) is not None


def without_secrets(value: Any) -> Any:
    """The same value, less entries of secret names at any depth, and its addresses without passwords and keys."""
    if isinstance(value, Mapping):
        return {key: without_secrets(entry) for key, entry in value.items() if not is_secret(key)}
    if type(value) in (list, tuple):
        return type(value)(without_secrets(entry) for entry in value)
    return masked_urls(value) if type(value) is str else value


def secrets_of(value: Any, is_named: bool = False) -> Iterator[str]:
    """The texts below secret names, at any depth; ``is_named``: the value itself stands below one."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from secrets_of(entry, is_named or is_secret(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from secrets_of(entry, is_named)
    elif is_named and value is not None:
        yield str(value)


def masked_urls(text: str) -> str:
    """A text, the user and password of its addresses masked, and what their queries call a key."""
    return _QUERY.sub(rf"\g<1>{MASK}", _USER_INFO.sub(f"{MASK}@", text))


def masked_text(text: str) -> str:
    """A text whose addresses are masked, and what it writes behind a secret name, as ``api_key: ...``."""
    return _NAMED_VALUE.sub(rf"\g<1>{MASK}", masked_urls(text))


def redacted(value: Any) -> str:
    """A value as a message quotes it: its ``repr`` without secrets."""
    return masked_text(repr(without_secrets(value)))
