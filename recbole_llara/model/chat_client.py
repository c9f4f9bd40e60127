"""Questions to an OpenAI-compatible chat endpoint: side by side, retried, and never paid for twice. RecBole-free.

A prompt that gets no answer does not stop the others: its answer says why. Where the configuration is at fault, or the endpoint
fails again and again, the run ends; docs/pages/models/chat.md says which error is whose.
"""

import base64
import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from recbole_llara.config.secrets import MASK, masked_urls, secrets_of, without_secrets
from recbole_llara.config.settings import ChatSettings
from recbole_llara.utils.errors import RunError, UserError

# Endpoints that want no key are given one such as "none" or "x", which is part of many a title and no secret.
SHORTEST_SECRET = 8
# Loggers that tell addresses and, at the level of debug, whole requests.
TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
BESIDE_THE_BODY = ("extra_headers", "extra_query", "timeout")  # of api_options: what the package openai itself takes
CONFIGURATION = "configuration"  # whose fault it is, beside the prompt's and the endpoint's, which are of answer.OUTCOMES
CUT = {"length": "cut", "content_filter": "filtered"}  # finish_reason of a message that the endpoint ended -> its outcome
# What is said, once, of an answer that was paid for and says nothing.
SILENCES = {
    "refused": "{model} refuses a prompt ({text!r}), which counts as an invalid answer",
    "cut": "api_options: {model} used up its limit of tokens ({tokens}) before it answered, as models do that think aloud: raise "
    "max_tokens, or switch the thinking off",
    "filtered": "the filter of {base} took away an answer, which counts as an invalid one",
    "empty": "{model} gave an empty answer, which counts as an invalid one",
}
_TAGS = "think|thinking|thought|reasoning"
_REASONING_ENDS = re.compile(rf"</(?:{_TAGS})>", re.IGNORECASE)
_REASONING_BEGINS = re.compile(rf"<(?:{_TAGS})>", re.IGNORECASE)
TOO_LONG = re.compile(
    r"context[_ -]?(?:length|window|size)|(?:prompt|input|request)\b.{0,40}\btoo (?:long|large)|string_above_max", re.I
)
_CONTENT = re.compile(
    r"content[_ -]?(?:filter|policy|management|violation)|responsible ?ai|moderation|flagged|usage polic|polic(?:y|ies) violat"
    r"|data_inspection|inappropriate|prohibited[_ ]content|unsafe",
    re.I,
)
UNKNOWN_MODEL = re.compile(
    r"\bmodel\b.{0,60}(?:not (?:exist|found)|does not exist)|(?:invalid|unknown|unsupported)[_ ]model|model_not_found", re.I
)


def without_reasoning(message: str) -> str:
    """What of a message is answer, "" where it is all reasoning."""
    text = _REASONING_ENDS.split(message)[-1]
    return _REASONING_BEGINS.split(text)[0].strip()


@dataclass(frozen=True)
class ChatAnswer:
    """What came back.

    Args:
        text: the message, "" where the model sent none.
        prompt_tokens, completion_tokens: (int, tokens) as the endpoint counts them, 0 where it does not.
        finish_reason: why the message ends, as the endpoint says: stop, length, content_filter; None where it does not.
        fault: ``refused``, ``too_long`` or ``failed`` where there is no answer, None otherwise.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    fault: str | None = None

    @property
    def silence(self) -> str | None:
        """Why nothing is said, of ``answer.OUTCOMES``: such an answer is not kept, so that it is asked for again."""
        if self.fault is None and without_reasoning(self.text):
            return None
        return self.fault or CUT.get(self.finish_reason, "empty")


class AnswerCache:
    """Answers by the digest of the exact request, in an SQLite file; safe between threads and processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        try:
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, request TEXT, answer TEXT)"
                )
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} cannot be used as the cache of answers ({error}): move it away to begin a new one, or repair it with "
                "sqlite3's .recover; the answers in it were paid for"
            ) from error

    def get(self, digest: str) -> ChatAnswer | None:
        """The answer to a request that was made before, where it says something."""
        with self._lock:
            row = self._connection.execute("SELECT answer FROM answers WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        try:
            answer = ChatAnswer(**json.loads(row[0]))
            return answer if answer.silence is None else None
        except (ValueError, TypeError, AttributeError):
            logging.getLogger().warning(f"A damaged answer in {self.path}: it is asked for again")
            return None

    def put(self, digest: str, request: Mapping[str, Any], answer: ChatAnswer) -> None:
        """Keep an answer, on disk when this returns; a RunError where it cannot be written."""
        told = without_secrets(request)  # headers may be among the options
        values = (digest, json.dumps(told, ensure_ascii=False), json.dumps(vars(answer), ensure_ascii=False))
        try:
            with self._lock, self._connection:
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)
        except sqlite3.Error as error:
            raise RunError(
                f"an answer that was paid for cannot be kept in {self.path} ({error}): is the disk full or read-only? What is in it "
                "stays; run the same command again to continue"
            ) from error


class ChatClient:
    """A chat endpoint with a cache; see ``check_access``.

    Args:
        settings: the ``api_`` keys; a query in ``api_base``, such as ?api-version=1, is sent with every request.
        cache: of answers.

    Attributes:
        api_base: without passwords and keys; this, not the real one, is told and hashed.
        paid, cached: requests and tokens that this client took, and that answers out of the cache had taken before.
    """

    def __init__(self, settings: ChatSettings, cache: AnswerCache) -> None:
        import openai

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        key = os.environ[settings.api_key_env] if settings.api_key_env else ""
        url = urlsplit(settings.api_base)
        client = openai.OpenAI(
            base_url=urlunsplit(url._replace(query="", fragment="")),
            default_query=dict(parse_qsl(url.query)),
            api_key=key or "none",
            timeout=settings.api_timeout,
            max_retries=settings.api_max_retries,
        )
        # Fields that the package openai does not know reach the endpoint too.
        options = dict(settings.api_options)
        beside = {name: options.pop(name) for name in BESIDE_THE_BODY if name in options}
        extra = options.pop("extra_body", None) or {}
        self._create = partial(client.chat.completions.create, extra_body={**options, **extra}, **beside)
        self._secrets = _secrets(key, settings.api_base, settings.api_options)
        self.settings, self.cache, self.api_base = settings, cache, masked_urls(settings.api_base)
        self.paid, self.cached = (Counter(requests=0, prompt_tokens=0, completion_tokens=0) for _ in range(2))
        self._lock = threading.Lock()
        self._has_answered, self._failures, self._last_failure = False, 0, None
        self._told: set[str] = set()
        self._end: str | None = None  # why no request is made any more

    def ask(self, prompts: Sequence[Sequence[Mapping[str, str]]]) -> list[ChatAnswer]:
        """The answers to prompts, equal ones asked once; where the endpoint gave none, one with a ``fault``.

        Args:
            prompts: B lists of messages with ``role`` and ``content``.

        Raises:
            UserError: the configuration is at fault, ``max_failures`` or ``max_requests`` is reached. What was answered is kept.
        """
        settings = self.settings
        requests: dict[str, dict[str, Any]] = {}
        digests = []
        for prompt in prompts:
            request = {"model": settings.api_model, "messages": prompt, **settings.api_options}
            exact = json.dumps({"api_base": self.api_base, **request}, sort_keys=True, ensure_ascii=False)
            digests.append(hashlib.sha256(exact.encode()).hexdigest())
            requests[digests[-1]] = request
        answers = {digest: answer for digest in requests if (answer := self.cache.get(digest)) is not None}
        for answer in answers.values():
            self._has_answered = True
            self.cached.update(requests=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        executor = ThreadPoolExecutor(max_workers=settings.api_concurrency)
        try:
            missing = [digest for digest in requests if digest not in answers]
            asked = {executor.submit(self._request, digest, requests[digest]): digest for digest in missing}
            for future in as_completed(asked):
                answers[asked[future]] = future.result()
        finally:  # on an error or Ctrl-C those under way are waited for and kept, the others never begin
            executor.shutdown(wait=True, cancel_futures=True)
        return [answers[digest] for digest in digests]

    def _request(self, digest: str, request: Mapping[str, Any]) -> ChatAnswer:
        import openai

        settings = self.settings
        with self._lock:
            if self._end is not None:  # which the others learn of before they are cancelled
                raise UserError(self._end)
            if settings.api_max_requests and self.paid["requests"] >= settings.api_max_requests:
                raise UserError(
                    f"api_max_requests: {self.paid['requests']} requests were made and rows are left; their answers are kept in "
                    f"{self.cache.path}. Raise it, or set it to 0, and run the same command again to continue."
                )
            self.paid["requests"] += 1
        failure = None
        try:
            answer = self._read(self._create(model=request["model"], messages=request["messages"]))
        except (openai.OpenAIError, ValueError) as error:
            failure = (*fault_of(error, self.api_base, settings), getattr(error, "status_code", None))
        if failure is not None:  # handled here, where no exception hangs on what is raised whose text holds the key
            return self._without_answer(*failure)
        with self._lock:
            self._has_answered, self._failures = True, 0
            self.paid.update(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        if answer.silence is None:
            self.cache.put(digest, request, answer)
        else:
            told = {"model": settings.api_model, "base": self.api_base, "text": answer.text[:200]}
            self._tell(answer.silence, SILENCES[answer.silence].format(tokens=answer.completion_tokens, **told))
        return answer

    def _read(self, completion: Any) -> ChatAnswer:
        """What an endpoint sent, which need not hold what the package openai says it does; a ValueError for no chat completion."""
        try:
            choice, usage = completion.choices[0], completion.usage
            content, refusal = choice.message.content, choice.message.refusal
            if choice.finish_reason == "error":
                raise TypeError
        except (AttributeError, LookupError, TypeError):
            raise ValueError(f"{str(completion)[:200]!r} has no message") from None
        if isinstance(content, list):  # of parts, thoughts among them
            parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
            content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        text = content if isinstance(content, str) else ""
        return ChatAnswer(
            text=self._hide(text or str(refusal or "")),
            prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
            completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
            finish_reason=choice.finish_reason,
            fault="refused" if refusal and not text else None,
        )

    def _without_answer(self, whose: str, message: str, status: int | None) -> ChatAnswer:
        """An answer that only says what happened; a UserError where the run had better end."""
        message = self._hide(masked_urls(message))
        kept = f"Answers so far are kept in {self.cache.path}; run the same command again to continue."
        with self._lock:
            self._failures = self._failures + 1 if (whose, status) == self._last_failure else 1
            self._last_failure = (whose, status)
            if whose == CONFIGURATION:
                self._end = f"{message}. {kept}"
            elif self._failures >= self.settings.api_max_failures and (whose == "failed" or not self._has_answered):
                self._end = f"{message}, for {self._failures} prompts one after another (api_max_failures). {kept}"
            if self._end is not None:
                raise UserError(self._end)
        again = "; it is asked again by the next run" if whose == "failed" else ""
        self._tell(whose, f"{message}: this prompt has no answer, which counts as an invalid one{again}")
        return ChatAnswer("", 0, 0, fault=whose)

    def _tell(self, what: str, message: str) -> None:
        """Warn once of each thing."""
        with self._lock:
            if what in self._told:
                return
            self._told.add(what)
        logging.getLogger().warning(f"{message}. Said once; result.json counts such answers.")

    def _hide(self, text: str) -> str:
        """A text of the endpoint's, which may echo what it was sent, without this client's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


def fault_of(error: Exception, api_base: str, settings: ChatSettings) -> tuple[str, str]:
    """Whose fault an error of the package openai, or a ValueError of an answer that cannot be read, is.

    Returns:
        ``failed``, ``refused`` or ``too_long``, of ``answer.OUTCOMES``, or ``CONFIGURATION``; and a message that names the key to
        look at and may hold what the endpoint echoes.
    """
    import openai

    tries, options = settings.api_max_retries + 1, settings.api_options
    if isinstance(error, openai.APITimeoutError):
        return "failed", f"api_timeout: no answer from {api_base} within {settings.api_timeout} s, {tries} times"
    if isinstance(error, openai.APIConnectionError):
        return "failed", f"api_base: {api_base} cannot be reached after {tries} tries ({error.__cause__ or error})"
    if not isinstance(error, openai.APIStatusError):
        return "failed", f"api_base: {api_base} answers what is no chat completion ({error})"
    status, said = error.status_code, f"{error.code} {error.type} {error.message}"
    answers = f"{api_base} answers {status} for model {settings.api_model} ({error.message})"
    if status in (408, 409, 429) or status >= 500:
        return "failed", f"api_base: {answers}"
    refused_key = (CONFIGURATION, f"api_key_env: {api_base} refuses the key ({error.message})")
    if status in (401, 402):
        return refused_key
    option = re.split(r"[.\[]", str(error.param))[0]
    if option not in options:
        if status == 413 or TOO_LONG.search(said):
            return "too_long", f"api_model, candidate_num or MAX_ITEM_LIST_LENGTH: {answers}"
        if status == 451 or _CONTENT.search(said):
            return "refused", f"api_model or chat_instruction: {answers}"
        own_words = _own_words(error.body)
        option = next((name for name in options if re.search(rf"['\"`]{re.escape(name)}['\"`]", own_words)), "")
    if option:
        return CONFIGURATION, (
            f"api_options: {option} is not what {api_base} takes for model {settings.api_model} ({error.message}); change it, give "
            "it the name that the message asks for, or leave it out"
        )
    if UNKNOWN_MODEL.search(said):
        return CONFIGURATION, f"api_model: {answers}; expected the name of a model of this endpoint"
    if status == 404:
        return CONFIGURATION, f"api_base: {answers}; expected its address up to /v1 or the like, and an api_model that it has"
    if status == 405:
        return CONFIGURATION, f"api_base: {answers}; expected an endpoint of chat completions"
    if status == 403:
        return refused_key
    return "refused", f"api_base, api_model or api_options: {answers}"


def _own_words(body: Any) -> str:
    """The text of an error's body without the request that some endpoints echo beside it."""
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or ""
    if isinstance(body, list):  # of faults, each with its place in the request
        body = " ".join(f"{entry.get('loc')} {entry.get('msg')}" for entry in body if isinstance(entry, dict))
    return str(body)


def _secrets(key: str, api_base: str, options: Mapping[str, Any]) -> list[str]:
    """What a client must not tell: its key, the password and the keys of its address, and those among its options."""
    url = urlsplit(api_base)
    found = {key, *secrets_of(options)}
    found.update(value for name, value in parse_qsl(url.query) if masked_urls(f"?{name}=x") != f"?{name}=x")
    if url.password:
        plain = f"{unquote(url.username or '')}:{unquote(url.password)}"
        found |= {url.password, unquote(url.password), base64.b64encode(plain.encode()).decode()}
    # Headers say "Bearer KEY"; the key alone is one too.
    found |= {secret.split(" ", 1)[1] for secret in found if re.match(r"(bearer|basic) \S", secret, re.IGNORECASE)}
    return sorted((secret for secret in found if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)


def check_access(api_key_env: str) -> None:
    """Refuse, by a UserError, to begin without the package openai, or without a key in the environment."""
    if find_spec("openai") is None:
        raise UserError("ChatLLM needs the package openai, which is not installed: pip install recbole-llara[chat]")
    if api_key_env and not os.environ.get(api_key_env):
        is_name = re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", api_key_env)  # others may be a key that was given in its place
        raise UserError(
            f"api_key_env: the environment variable {api_key_env if is_name else MASK} holds no key; expected the name of one that "
            'does, such as OPENAI_API_KEY, or for an endpoint that wants none api_key_env: ""'
        )
