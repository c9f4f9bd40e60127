"""Questions to an OpenAI-compatible chat endpoint: side by side, retried, and never paid for twice. RecBole-free.

A prompt that gets no answer does not stop the others: its answer says why (``ChatAnswer.fault``), and ``faults`` says when
that is no prompt's fault and the run had better end.
"""

import base64
import hashlib
import inspect
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from recbole_llara.config.secrets import MASK, masked_urls, secrets_of, without_secrets
from recbole_llara.config.settings import ChatSettings
from recbole_llara.model.chat.faults import CONFIGURATION, Fault, fault_of
from recbole_llara.model.chat.wrapping import without_reasoning
from recbole_llara.utils.errors import RunError, UserError

Messages = Sequence[Mapping[str, str]]
# Endpoints that want no key are given one such as "none" or "x", which is part of many a title and no secret.
SHORTEST_SECRET = 8
# Loggers that tell addresses and, at the level of debug, whole requests.
TALKATIVE = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


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
    def is_worth_keeping(self) -> bool:
        """Whether something is said: no other answer is kept, so that it is asked for again."""
        return self.fault is None and without_reasoning(self.text) != ""


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
        """The answer to a request that was made before, where one is worth keeping."""
        with self._lock:
            row = self._connection.execute("SELECT answer FROM answers WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        try:
            answer = ChatAnswer(**json.loads(row[0]))
            return answer if answer.is_worth_keeping else None
        except (ValueError, TypeError, AttributeError):
            logging.getLogger().warning(f"A damaged answer in {self.path}: it is asked for again")
            return None

    def put(self, digest: str, request: Mapping[str, Any], answer: ChatAnswer) -> None:
        """Keep an answer; on disk when this returns.

        Raises:
            RunError: it cannot be written.
        """
        told = without_secrets(request)  # headers may be among the options
        values = (digest, json.dumps(told, ensure_ascii=False), json.dumps(vars(answer), ensure_ascii=False))
        try:
            with self._lock, self._connection:
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", values)
        except sqlite3.Error as error:
            raise RunError(
                f"an answer that was paid for cannot be kept in {self.path} ({error}): is the disk full or read-only? What is in it "
                "stays; run again to go on"
            ) from error


@dataclass
class Spent:
    """Requests and the tokens they took, as the endpoint counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, answer: ChatAnswer) -> None:
        """Count the tokens of an answer."""
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def cost(self, price_prompt: float | None, price_completion: float | None) -> float | None:
        """What it cost, by prices per million tokens; None where one is missing."""
        if price_prompt is None or price_completion is None:
            return None
        return (self.prompt_tokens * price_prompt + self.completion_tokens * price_completion) / 1_000_000


class ChatClient:
    """A chat endpoint with a cache.

    Args:
        settings: the ``api_`` keys; a query in ``api_base``, such as ?api-version=1, is sent with every request.
        cache: of answers.

    Attributes:
        api_base: without passwords and keys; this, not the real one, is told and hashed.
        paid, cached: what this client's requests took, and what answers out of the cache had taken before.

    Raises:
        UserError: the package openai or the key is missing.
    """

    def __init__(self, settings: ChatSettings, cache: AnswerCache) -> None:
        check_access(settings.api_key_env)
        import openai

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        key = os.environ[settings.api_key_env] if settings.api_key_env else ""
        url = urlsplit(settings.api_base)
        self._client = openai.OpenAI(
            base_url=urlunsplit(url._replace(query="", fragment="")),
            default_query=dict(parse_qsl(url.query)),
            api_key=key or "none",
            timeout=settings.api_timeout,
            max_retries=settings.api_max_retries,
        )
        self._secrets = _secrets(key, settings.api_base, settings.api_options)
        self.api_base, self.api_model, self.options = masked_urls(settings.api_base), settings.api_model, settings.api_options
        self.settings, self.cache = settings, cache
        self.paid, self.cached = Spent(), Spent()
        self._lock = threading.Lock()
        self._has_answered, self._failures, self._last_failure = False, 0, None
        self._told: set[str] = set()
        self._end: str | None = None  # why no request is made any more
        self._known = set(inspect.signature(self._client.chat.completions.create).parameters)

    def ask(self, prompts: Sequence[Messages]) -> list[ChatAnswer]:
        """The answers to prompts, equal ones asked once.

        Args:
            prompts: B lists of messages with ``role`` and ``content``.

        Returns:
            an answer each; where the endpoint gave none, one with a ``fault``.

        Raises:
            UserError: the configuration is at fault, ``max_failures`` or ``max_requests`` is reached. What was answered is kept.
        """
        requests = [{"model": self.api_model, "messages": [dict(m) for m in prompt], **self.options} for prompt in prompts]
        digests = [self._digest(request) for request in requests]
        different = dict(zip(digests, requests, strict=True))
        answers = {digest: self.cache.get(digest) for digest in different}
        for answer in answers.values():
            if answer is not None:
                self._has_answered = True
                self.cached.requests += 1
                self.cached.add(answer)
        missing = [digest for digest, answer in answers.items() if answer is None]
        executor = ThreadPoolExecutor(max_workers=self.settings.api_concurrency)
        try:
            futures = {digest: executor.submit(self._request, digest, different[digest]) for digest in missing}
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
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
            if self._end is not None:  # which the others learn of before they are cancelled
                raise UserError(self._end)
            if self.settings.api_max_requests and self.paid.requests >= self.settings.api_max_requests:
                raise UserError(
                    f"api_max_requests: {self.paid.requests} requests were made and rows are left; their answers are kept in "
                    f"{self.cache.path}. Raise it, or set it to 0, and run again to go on."
                )
            self.paid.requests += 1
        fault, answer = None, None
        try:
            answer = self._read(self._client.chat.completions.create(**self._arguments(request)))
        except (openai.OpenAIError, ValueError) as error:
            fault = self._fault(error)
        if answer is None:  # handled here, where no exception hangs on what is raised whose text holds the key
            return self._without_answer(fault)
        with self._lock:
            self._has_answered, self._failures = True, 0
            self.paid.add(answer)
        if answer.is_worth_keeping:
            self.cache.put(digest, request, answer)
        else:
            self._tell_empty(answer)
        return answer

    def _arguments(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request as the package openai takes it: fields that it does not know go into the body as they are."""
        known = {key: value for key, value in request.items() if key in self._known}
        others = {key: value for key, value in request.items() if key not in self._known}
        if others:
            known["extra_body"] = {**others, **(known.get("extra_body") or {})}
        return known

    def _read(self, completion: Any) -> ChatAnswer:
        """What an endpoint sent, which need not hold what the package openai says it does.

        Raises:
            ValueError: no chat completion.
        """
        told = completion.model_dump(warnings=False) if hasattr(completion, "model_dump") else {}
        choices, usage = told.get("choices"), told.get("usage")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or choice.get("finish_reason") == "error":
            raise ValueError(f"{str(completion)[:200]!r} has no message")
        usage = usage if isinstance(usage, dict) else {}
        text, refusal = _text_of(message.get("content")), message.get("refusal")
        return ChatAnswer(
            text=self._hide(text or str(refusal or "")),
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            finish_reason=choice.get("finish_reason"),
            fault="refused" if refusal and not text else None,
        )

    def _fault(self, error: Exception) -> Fault:
        """What is at fault, its message without secrets."""
        fault = fault_of(error, self.api_base, self.api_model, self.options, self._client.max_retries + 1, self._client.timeout)
        return replace(fault, message=self._hide(masked_urls(fault.message)))

    def _without_answer(self, fault: Fault) -> ChatAnswer:
        """An answer that only says what happened, unless the run had better end.

        Raises:
            UserError: it had: the configuration is at fault, or too many prompts in a row had the same fault.
        """
        kept = f"Answers so far are kept in {self.cache.path}; run again to go on."
        same = (fault.whose, fault.status)
        with self._lock:
            self._failures = self._failures + 1 if same == self._last_failure else 1
            self._last_failure = same
            if fault.whose == CONFIGURATION:
                self._end = f"{fault.message}. {kept}"
            elif self._failures >= self.settings.api_max_failures and (fault.whose == "failed" or not self._has_answered):
                self._end = f"{fault.message}, for {self._failures} prompts one after another (api_max_failures). {kept}"
            if self._end is not None:
                raise UserError(self._end)
        again = "; it is asked again by the next run" if fault.whose == "failed" else ""
        self._tell(fault.whose, f"{fault.message}: this prompt has no answer, which counts as an invalid one{again}")
        return ChatAnswer("", 0, 0, fault=fault.whose)

    def _tell_empty(self, answer: ChatAnswer) -> None:
        """Warn of an answer that was paid for and says nothing."""
        invalid = "which counts as an invalid"
        if answer.fault is not None:
            self._tell("refused", f"{self.api_model} refuses a prompt ({answer.text[:200]!r}), {invalid} answer")
        elif answer.finish_reason == "length":
            self._tell(
                "cut",
                f"api_options: {self.api_model} used up its limit of tokens ({answer.completion_tokens}) before it answered, as models do "
                "that think aloud: raise max_tokens, or switch the thinking off",
            )
        elif answer.finish_reason == "content_filter":
            self._tell("filtered", f"the filter of {self.api_base} took away an answer, {invalid} one")
        else:
            self._tell("empty", f"{self.api_model} gave an empty answer, {invalid} one")

    def _tell(self, what: str, message: str) -> None:
        """Warn once of each thing; ``answers`` in ``result.json`` counts them."""
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


def _text_of(content: Any) -> str:
    """The text of a message's content, which some endpoints send as a list of parts, thoughts among them."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


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
