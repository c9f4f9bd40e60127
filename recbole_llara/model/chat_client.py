"""Questions to an OpenAI-compatible chat endpoint: side by side, retried, and never paid for twice. RecBole-free."""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.errors import UserError

Messages = Sequence[Mapping[str, str]]


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
        with self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (digest TEXT PRIMARY KEY, request TEXT, answer TEXT)")

    def get(self, digest: str) -> ChatAnswer | None:
        """The answer to a request that was made before."""
        with self._lock:
            row = self._connection.execute("SELECT answer FROM answers WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else ChatAnswer(**json.loads(row[0]))

    def put(self, digest: str, request: Mapping[str, Any], answer: ChatAnswer) -> None:
        """Keep an answer; on disk when this returns."""
        values = (digest, json.dumps(request, ensure_ascii=False), json.dumps(vars(answer), ensure_ascii=False))
        with self._lock, self._connection:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)


class ChatClient:
    """A chat endpoint with a cache.

    Args:
        api_base: the endpoint, such as https://api.openai.com/v1.
        api_model: the model's name there.
        api_key_env: the environment variable that holds the key; "" = the endpoint wants none.
        cache: of answers.
        options: further fields of every request, such as temperature and max_tokens.
        concurrency: (int, requests) at most so many at a time.
        timeout: (float, seconds) of one try.
        max_retries: (int) tries after the first, on 429, 5xx, timeouts and cut connections, ever longer apart.
        max_requests: (int) requests that this client may make; 0 = any number.

    Attributes:
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

        key = os.environ[api_key_env] if api_key_env else "none"
        self._client = openai.OpenAI(base_url=api_base, api_key=key, timeout=timeout, max_retries=max_retries)
        self.api_base, self.api_model, self.options = api_base, api_model, dict(options)
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
        try:
            completion = self._client.chat.completions.create(**request)
        except (openai.OpenAIError, ValueError) as error:
            raise UserError(self._explain(error)) from error
        if not isinstance(completion, openai.types.chat.ChatCompletion) or not completion.choices:
            raise UserError(self._explain(ValueError(f"{str(completion)[:80]!r} has no choices")))
        usage = completion.usage
        answer = ChatAnswer(
            text=completion.choices[0].message.content or "",
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            completion_tokens=usage.completion_tokens if usage is not None else 0,
        )
        self.cache.put(digest, request, answer)
        return answer

    def _explain(self, error: Exception) -> str:
        """What to say of a request that failed for good."""
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


def check_access(api_key_env: str) -> None:
    """Refuse to begin without what every request needs.

    Raises:
        UserError: the package openai is not installed, or the environment holds no key.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError("ChatLLM needs the package openai, which is not installed: pip install recbole-llara[chat]") from error
    if api_key_env and not os.environ.get(api_key_env):
        raise UserError(
            f"api_key_env: the environment variable {api_key_env} holds no key; set it, name another one, or for an endpoint "
            'that wants none set api_key_env to ""'
        )
