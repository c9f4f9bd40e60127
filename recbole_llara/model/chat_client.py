"""Questions to an OpenAI-compatible chat endpoint: side by side, retried, and never paid for twice. RecBole-free."""

import base64
import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from recbole_llara.errors import UserError
from recbole_llara.masking import MASK, masked_urls, secrets_of, without_secrets

Messages = Sequence[Mapping[str, str]]
# Loggers that tell addresses and, at the level of debug, whole requests.
TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(frozen=True)
class ChatAnswer:
    """What came back.

    Args:
        text: the message, "" where the model sent none.
        prompt_tokens, completion_tokens: (int, tokens) as the endpoint counts them, 0 where it does not.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class AnswerCache:
    """Answers on disk by the digest of the exact request; safe between threads and processes.

    Args:
        path: an SQLite file, made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        try:
            self._make_table()
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} cannot be used as the cache of answers ({error}): move it away to begin a new one, or mend it by "
                "sqlite3's .recover; the answers in it were paid for"
            ) from error

    def _make_table(self) -> None:
        with self._connection:
            self._connection.execute("SELECT count(*) FROM sqlite_master")  # reads the file's header
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, request TEXT, answer TEXT)")

    def get(self, digest: str) -> ChatAnswer | None:
        """The answer to a request that was made before."""
        with self._lock:
            row = self._connection.execute("SELECT answer FROM answers WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        try:
            return ChatAnswer(**json.loads(row[0]))
        except (ValueError, TypeError):
            logging.getLogger().warning(f"A damaged answer in {self.path}: it is asked for again")
            return None

    def put(self, digest: str, request: Mapping[str, Any], answer: ChatAnswer) -> None:
        """Keep an answer; on disk when this returns."""
        told = without_secrets(request)  # headers may be among the options
        values = (digest, json.dumps(told, ensure_ascii=False), json.dumps(vars(answer), ensure_ascii=False))
        with self._lock, self._connection:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)


class ChatClient:
    """A chat endpoint with a cache.

    Args:
        api_base: the endpoint, such as https://api.openai.com/v1; a query, such as ?api-version=1, is sent with every request.
        api_model: the model's name there.
        api_key_env: the environment variable that holds the key; "" = the endpoint wants none.
        cache: of answers.
        options: further fields of every request, such as temperature and max_tokens.
        concurrency: (int, requests) at most so many at a time.
        timeout: (float, seconds) of one try.
        max_retries: (int) tries after the first, on 429, 5xx, timeouts and cut connections, ever longer apart.
        max_requests: (int) requests that this client may make; 0 = any number.

    Attributes:
        api_base: without passwords and keys; this, not the real one, is told and hashed.
        requests: (int) made by this client; answers out of the cache are none.

    Raises:
        UserError: the package openai or the key is missing.
    """

    def __init__(
        self,
        api_base: str,
        api_model: str,
        api_key_env: str,
        cache: AnswerCache,
        options: Mapping[str, Any],
        concurrency: int,
        timeout: float,
        max_retries: int,
        max_requests: int,
    ) -> None:
        check_access(api_key_env)
        import openai

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        key = os.environ[api_key_env] if api_key_env else ""
        url = urlsplit(api_base)
        self._client = openai.OpenAI(
            base_url=urlunsplit(url._replace(query="", fragment="")),
            default_query=dict(parse_qsl(url.query)),
            api_key=key or "none",
            timeout=timeout,
            max_retries=max_retries,
        )
        self._secrets = _secrets(key, api_base, options)
        self.api_base, self.api_model, self.options = masked_urls(api_base), api_model, dict(options)
        self.cache, self.concurrency, self.max_requests = cache, concurrency, max_requests
        self.requests = 0
        self._lock = threading.Lock()

    def ask(self, prompts: Sequence[Messages]) -> list[ChatAnswer]:
        """The answers to prompts, equal ones asked once.

        Args:
            prompts: B lists of messages with ``role`` and ``content``.

        Raises:
            UserError: the endpoint refuses or does not answer, or ``max_requests`` is reached. What was answered is kept.
        """
        requests = [{"model": self.api_model, "messages": [dict(m) for m in prompt], **self.options} for prompt in prompts]
        digests = [self._digest(request) for request in requests]
        different = dict(zip(digests, requests, strict=True))
        answers = {digest: self.cache.get(digest) for digest in different}
        missing = [digest for digest, answer in answers.items() if answer is None]
        executor = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            futures = {digest: executor.submit(self._request, digest, different[digest]) for digest in missing}
            answers |= {digest: future.result() for digest, future in futures.items()}
        finally:  # on an error or Ctrl-C those under way are waited for and kept, the others never begin
            executor.shutdown(wait=True, cancel_futures=True)
        return [answers[digest] for digest in digests]

    def _digest(self, request: Mapping[str, Any]) -> str:
        exact = json.dumps({"api_base": self.api_base, **request}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(exact.encode()).hexdigest()

    def _request(self, digest: str, request: Mapping[str, Any]) -> ChatAnswer:
        import openai

        with self._lock:
            if self.max_requests and self.requests >= self.max_requests:
                raise UserError(
                    f"api_max_requests: {self.max_requests} requests were made and rows are left; their answers are kept in "
                    f"{self.cache.path}. Raise it, or set it to 0, and run again to go on."
                )
            self.requests += 1
        fault = None
        try:
            completion = self._client.chat.completions.create(**request)
        except (openai.OpenAIError, ValueError) as error:
            fault = self._explain(error)
        if fault is not None:  # raised here, where no exception hangs on it whose text holds the key
            raise UserError(fault)
        if not isinstance(completion, openai.types.chat.ChatCompletion) or not completion.choices:
            raise UserError(self._explain(ValueError(f"{str(completion)[:80]!r} has no choices")))
        usage = completion.usage
        answer = ChatAnswer(
            text=self._hide(completion.choices[0].message.content or ""),
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            completion_tokens=usage.completion_tokens if usage is not None else 0,
        )
        self.cache.put(digest, request, answer)
        return answer

    def _hide(self, text: str) -> str:
        """A text of the endpoint's, which may echo what it was sent, without this client's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def _explain(self, error: Exception) -> str:
        """What to say of a request that failed for good."""
        return self._hide(masked_urls(self._explanation(error)))

    def _explanation(self, error: Exception) -> str:
        import openai

        kept = f"Answers so far are kept in {self.cache.path}; run again to go on."
        tries = self._client.max_retries + 1
        if isinstance(error, openai.APITimeoutError):
            return f"api_timeout: no answer from {self.api_base} within {self._client.timeout} s, {tries} times. {kept}"
        if isinstance(error, openai.APIConnectionError):
            return f"api_base: {self.api_base} cannot be reached after {tries} tries ({error.__cause__ or error}). {kept}"
        if isinstance(error, openai.AuthenticationError):
            return f"api_key_env: {self.api_base} refuses the key ({error.message}). {kept}"
        if isinstance(error, openai.APIStatusError):
            return f"api_base: {self.api_base} answers {error.status_code} for model {self.api_model} ({error.message}). {kept}"
        return f"api_base: {self.api_base} answers what is no chat completion ({error}). {kept}"


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
    return sorted(found - {""}, key=len, reverse=True)


def check_access(api_key_env: str) -> None:
    """Refuse to begin without what every request needs.

    Raises:
        UserError: the package openai is not installed, or the environment holds no key.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError("ChatLLM needs the package openai, which is not installed: pip install recbole-llara[chat]") from error
    if api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
        raise UserError(
            "api_key_env: found what is no variable's name, and may be a key, so it is not shown; expected the name of an "
            "environment variable that holds the key, such as OPENAI_API_KEY"
        )
    if api_key_env and not os.environ.get(api_key_env):
        raise UserError(
            f"api_key_env: the environment variable {_name(api_key_env)} holds no key; set it, name another one, or for an endpoint "
            'that wants none set api_key_env to ""'
        )


def _name(api_key_env: str) -> str:
    """The variable's name, unless it is more likely a key that was given in its place."""
    return api_key_env if len(api_key_env) <= 64 and api_key_env.upper() == api_key_env else MASK
