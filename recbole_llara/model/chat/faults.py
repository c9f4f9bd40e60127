"""Whose fault an endpoint's error is: the endpoint's own, the prompt's, or the configuration's. RecBole-free.

| whose | which | what follows |
|---|---|---|
| the endpoint's | 408, 409, 429, 5xx, no answer in time, no connection, no chat completion | tried again, then ``failed`` |
| the prompt's | a policy on contents (400, 403, 451), longer than the context (400, 413), any other 4xx | ``refused`` or ``too_long`` |
| the configuration's | 401, 402, 403, 404, 405, an unknown model, one of ``api_options`` by its name | the run ends, the key is named |
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openai

CONFIGURATION = "configuration"  # beside the prompt's and the endpoint's, which are of answer.OUTCOMES
_ENDPOINTS = frozenset({408, 409, 429})
_TOO_LONG = re.compile(
    r"context[_ -]?(?:length|window|size)|(?:prompt|input|request)\b.{0,40}\btoo (?:long|large)|string_above_max", re.I
)
_CONTENT = re.compile(
    r"content[_ -]?(?:filter|policy|management|violation)|responsible ?ai|moderation|flagged|usage polic|polic(?:y|ies) violat"
    r"|data_inspection|inappropriate|prohibited[_ ]content|unsafe",
    re.I,
)
_MODEL = re.compile(
    r"\bmodel\b.{0,60}(?:not (?:exist|found)|does not exist)|(?:invalid|unknown|unsupported)[_ ]model|model_not_found", re.I
)


@dataclass(frozen=True)
class Fault:
    """Why a request got no answer.

    Args:
        whose: ``failed``, ``refused`` or ``too_long``, of ``answer.OUTCOMES``, or ``CONFIGURATION``.
        status: of HTTP; None where there was none.
        message: which key to look at, and what the endpoint said; may hold what it echoes.
    """

    whose: str
    status: int | None
    message: str


def fault_of(
    error: Exception, api_base: str, api_model: str, options: Collection[str], tries: int, timeout: float | None
) -> Fault:
    """Sort an error of the package openai, or a ValueError of an answer that cannot be read.

    Args:
        options: names of ``api_options``.
        tries: that were made, each with a ``timeout`` in seconds.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return Fault("failed", None, f"api_timeout: no answer from {api_base} within {timeout} s, {tries} times")
    if isinstance(error, openai.APIConnectionError):
        return Fault("failed", None, f"api_base: {api_base} cannot be reached after {tries} tries ({error.__cause__ or error})")
    if not isinstance(error, openai.APIStatusError):
        return Fault("failed", None, f"api_base: {api_base} answers what is no chat completion ({error})")
    status, said = error.status_code, f"{error.code} {error.type} {error.message}"
    answers = f"{api_base} answers {status} for model {api_model} ({error.message})"
    if status in _ENDPOINTS or status >= 500:
        return Fault("failed", status, f"api_base: {answers}")
    key = f"api_key_env: {api_base} refuses the key ({error.message})"
    if status in (401, 402):
        return Fault(CONFIGURATION, status, key)
    option = re.split(r"[.\[]", str(error.param))[0]
    if option not in options:
        if status == 413 or _TOO_LONG.search(said):
            return Fault("too_long", status, f"api_model, candidate_num or MAX_ITEM_LIST_LENGTH: {answers}")
        if status == 451 or _CONTENT.search(said):
            return Fault("refused", status, f"api_model or chat_instruction: {answers}")
        option = next((name for name in options if re.search(rf"['\"`]{re.escape(name)}['\"`]", _text_of(error))), "")
    if option:
        message = (
            f"api_options: {option} is not what {api_base} takes for model {api_model} ({error.message}); change it, give it the "
            "name that the message asks for, or leave it out"
        )
    elif _MODEL.search(said):
        message = f"api_model: {answers}; expected the name of a model of this endpoint"
    elif status == 404:
        message = f"api_base: {answers}; expected its address up to /v1 or the like, and an api_model that it has"
    elif status == 405:
        message = f"api_base: {answers}; expected an endpoint of chat completions"
    elif status == 403:
        message = key
    else:
        return Fault("refused", status, f"api_base, api_model or api_options: {answers}")
    return Fault(CONFIGURATION, status, message)


def _text_of(error: "openai.APIStatusError") -> str:
    """The error's own words, without the request that some endpoints echo beside them."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or ""
    if isinstance(body, list):  # of faults, each with its place in the request
        body = " ".join(f"{entry.get('loc')} {entry.get('msg')}" for entry in body if isinstance(entry, dict))
    return str(body)
