"""Questions to a server of vLLM: the log-probabilities of the candidates' answers, behind prompts of token ids. RecBole-free.

A request of ``/v1/completions`` holds one row: its prompt followed by every beginning of an answer, once each, and asks for the
log-probabilities of the tokens that may come next (``logprob_token_ids``, max_tokens 1). The engine's prefix cache reads the prompt once.
``prompt_logprobs`` would need fewer prompts, but vLLM reads no prefix cache for it, and takes no prompt embeddings with it.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from recbole_llara.config.secrets import MASK, masked_text, masked_urls
from recbole_llara.config.settings import EngineSettings
from recbole_llara.llm.slot_rows import SlotRows
from recbole_llara.llm.widened import without_copies
from recbole_llara.model.chat_client import SHORTEST_SECRET, TALKATIVE, TOO_LONG, UNKNOWN_MODEL
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.utils.errors import RunError, UserError

FOLDER, FACTS = "vllm", "recbole_llara.json"  # of an exported run, and what that folder tells beside the LLM
FORMAT = 1
LEAST_VERSION = "0.28"  # the first seen to take logprob_token_ids here; 0.25 does not
PROMPTS_AT_ONCE = 512  # of a request; vLLM takes 1,024 unless told otherwise
TOKENS_AT_ONCE = 127  # whose log-probability a request asks for, one more being ``silent``; vLLM takes 128
MARK = "token_id:"  # before a token's number in an answer
_AGAIN = "see whether the server runs, then ask again"
DIFFERENCE = 0.5  # nats, in the mean: more than halves round a likelihood by, less than another model's differ by


@dataclass(frozen=True)
class Served:
    """What a client needs to know of an LLM that was exported for an engine."""

    name: str  # of the model, on the server
    checkpoint: str  # SHA-256 of meta.json of the checkpoint that it was made of
    n_items: int
    vocabulary: int  # V, the LLM's own tokens; the row r of the slots is the token V + r
    rows: int  # R, how many there are
    slots: SlotRows
    silent: int  # the token that has R copies
    prompts: tuple[tuple[int, ...], ...]  # a few, by which a server is told from one of another model
    answers: tuple[tuple[tuple[int, ...], ...], ...]  # of each its candidates'
    log_probs: tuple[tuple[float, ...], ...]  # of each answer, nats

    def write(self, folder: Path) -> None:
        """Write it beside the LLM."""
        (folder / FACTS).write_text(json.dumps({"format": FORMAT, **asdict(self)}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Served":
        """What ``write`` wrote; a UserError where it is not there or of another version."""
        try:
            told = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            if told.pop("format") != FORMAT:
                raise ValueError("of another version")
            slots = SlotRows(**told.pop("slots"))
            return cls(slots=slots, **{name: _as_tuples(value) for name, value in told.items()})
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"backend: found no {FACTS} that can be read in {folder} ({error}), expected the folder of a run that was exported by "
                "recbole-llara export --for=vllm"
            ) from error


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


class EngineClient:
    """A server of vLLM that serves one exported LLM.

    Args:
        settings: the ``backend_`` keys.
        served: what it is to serve.

    Raises:
        UserError: the package openai or the key is missing.
    """

    def __init__(self, settings: EngineSettings, served: Served) -> None:
        if find_spec("openai") is None:
            raise UserError('backend: vllm needs the package openai, which is not installed: pip install "recbole-llara[vllm]"')
        import openai

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.settings, self.served = settings, served
        self.url, self.model = masked_urls(settings.backend_url), settings.backend_model or served.name
        self._key = os.environ.get(settings.backend_key_env, "") if settings.backend_key_env else ""
        self._client = openai.OpenAI(
            base_url=settings.backend_url,
            api_key=self._key or "none",
            timeout=settings.backend_timeout,
            max_retries=settings.backend_max_retries,
        )

    def check(self, longest: int) -> None:
        """See whether the server is there, serves this LLM and holds a run's prompts.

        Args:
            longest: (int, tokens) of a prompt and an answer.

        Raises:
            UserError: it is not, it does not; what its own questions show is told.
        """
        try:
            models = {model.id: model for model in self._called(self._client.models.list)}
            if self.model not in models:
                raise UserError(
                    f"backend_url: {self.url} serves {', '.join(sorted(models)) or 'nothing'}, expected {self.model}: start it by "
                    f"vllm serve RUN/{FOLDER} --served-model-name={self.model}, or give the name that it has there by backend_model"
                )
            holds = getattr(models[self.model], "max_model_len", None)
            if isinstance(holds, int) and holds <= longest:
                raise UserError(
                    f"backend_url: {self.url} holds {holds} tokens, expected more than {longest}, a prompt of this run and its answer: start it "
                    f"with --max-model-len={longest + 1} or more, or leave that out"
                )
            found = self._log_probs(self.served.prompts, self.served.answers)
        except RunError as error:
            raise UserError(str(error)) from None
        pairs = [
            (sum(of), told)
            for row, own in zip(found, self.served.log_probs, strict=True)
            for of, told in zip(row, own, strict=True)
        ]
        gap = sum(abs(here - there) for here, there in pairs) / len(pairs)
        if not gap <= DIFFERENCE:
            raise UserError(
                f"backend_url: {self.url} serves another LLM as {self.model}: its likelihoods differ from those of this run by {gap:.3g} nats "
                f"in the mean, expected at most {DIFFERENCE}: start it with the folder {FOLDER} of this run"
            )

    def log_probs(self, prompts: Sequence[Sequence[int]], answer_ids: torch.Tensor) -> torch.Tensor:
        """[B, C, A] float32, nats, 0 on padding: the log-probability of every token of every answer.

        Args:
            prompts: B rows of token ids.
            answer_ids: [B, C, A] token ids, padded with -100.

        Raises:
            UserError: a prompt is too long for the server.
            RunError: it does not answer, or not as it did when it was checked.
        """
        answers = [[[token for token in answer if token != IGNORED_LABEL] for answer in row] for row in answer_ids.tolist()]
        found, width = self._log_probs(prompts, answers), answer_ids.shape[2]
        return torch.tensor([[[*answer, *[0.0] * (width - len(answer))] for answer in row] for row in found])

    def write(self, prompts: Sequence[Sequence[int]], most: Sequence[int], end: int) -> list[list[int]]:
        """What the LLM writes behind each of B prompts, greedily: tokens before ``end``, at most so many, that one included."""

        def written(row: int) -> list[int]:
            more = {"return_token_ids": True, "stop_token_ids": [end], "add_special_tokens": False}
            (choice,) = self._completed([list(prompts[row])], max_tokens=most[row], temperature=0, extra_body=more)
            tokens = getattr(choice, "token_ids", None)
            if not isinstance(tokens, list):
                raise RunError(
                    f"backend_url: {self.url} tells no tokens of its answers, expected a server of vLLM {LEAST_VERSION} or later"
                )
            return tokens[: tokens.index(end)] if end in tokens else tokens

        with ThreadPoolExecutor(self.settings.backend_concurrency) as executor:
            return list(executor.map(written, range(len(prompts))))

    def _log_probs(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[float]]]:
        """B rows of C lists: the log-probability of each token of an answer."""
        executor = ThreadPoolExecutor(self.settings.backend_concurrency)
        try:
            return list(executor.map(self._row, prompts, answers))
        finally:  # on an error those under way are waited for, the others never begin
            executor.shutdown(wait=True, cancel_futures=True)

    def _row(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        told: dict[tuple[tuple[int, ...], int], float] = {}
        for beginnings in parts(next_tokens(answers)):
            tokens = sorted(set().union(*beginnings.values()) | ({self.served.silent} if self.served.rows else set()))
            more = {"logprob_token_ids": tokens, "return_tokens_as_token_ids": True, "add_special_tokens": False}
            asked = [[*prompt, *beginning] for beginning in beginnings]
            choices = self._completed(asked, max_tokens=1, temperature=0, logprobs=1, extra_body=more)
            for (beginning, wanted), choice in zip(beginnings.items(), choices, strict=True):
                found = self._read(choice, tokens)
                for token in wanted:
                    own = found[token]
                    if self.served.rows:
                        own = without_copies(own, found[self.served.silent], self.served.rows)
                    told[beginning, token] = own
        return [[told[tuple(answer[:place]), token] for place, token in enumerate(answer)] for answer in answers]

    def _completed(self, prompts: list[list[int]], **given: Any) -> list[Any]:
        """What comes back for each of some prompts, in their order."""
        completion = self._called(self._client.completions.create, model=self.model, prompt=prompts, **given)
        choices = sorted(getattr(completion, "choices", None) or [], key=lambda choice: choice.index)
        if len(choices) != len(prompts):
            raise RunError(f"backend_url: {self.url} answered {len(choices)} of {len(prompts)} prompts; {_AGAIN}")
        return choices

    def _read(self, choice: Any, tokens: Sequence[int]) -> dict[int, float]:
        """The log-probabilities of tokens that a choice tells."""
        try:
            told = {name: float(value) for name, value in choice.logprobs.top_logprobs[0].items()}
            return {token: told[f"{MARK}{token}"] for token in tokens}
        except (AttributeError, LookupError, TypeError, ValueError):
            raise RunError(
                f"backend_url: {self.url} does not tell the log-probabilities of the tokens that it was asked for (logprob_token_ids), expected "
                f"a server of vLLM {LEAST_VERSION} or later"
            ) from None

    def _called(self, call: Callable[..., Any], **given: Any) -> Any:
        """What a call of the package openai gives, its errors in words."""
        import openai

        try:
            return call(**given)
        except openai.OpenAIError as error:
            failure = self._failure(error)
        raise failure  # where no exception hangs on it whose text holds the key

    def _failure(self, error: Exception) -> UserError | RunError:
        import openai

        tries = self.settings.backend_max_retries + 1
        if isinstance(error, openai.APITimeoutError):
            seconds = self.settings.backend_timeout
            return RunError(f"backend_timeout: no answer from {self.url} within {seconds} s, {tries} times; {_AGAIN}")
        if isinstance(error, openai.APIConnectionError):
            return RunError(
                f"backend_url: {self.url} cannot be reached after {tries} tries ({error.__cause__ or error}); {_AGAIN}"
            )
        if not isinstance(error, openai.APIStatusError):
            return RunError(f"backend_url: {self.url} answers what is no completion ({self._hidden(error)})")
        status, said = error.status_code, self._hidden(error.message)
        if status in (408, 409, 429) or status >= 500:
            return RunError(f"backend_url: {self.url} answers {status} after {tries} tries ({said}); {_AGAIN}")
        if status in (401, 403):
            variable = self.settings.backend_key_env
            return RunError(f"backend_key_env: {self.url} refuses the key of {variable or 'no variable'} ({said})")
        if status == 413 or TOO_LONG.search(said) or "maximum context length" in said:
            return UserError(
                f"history or candidates: the prompt is too long for the server that reads it ({said}); ask with fewer or shorter items, or start "
                "it with a larger --max-model-len"
            )
        if UNKNOWN_MODEL.search(said):
            return RunError(f"backend_model: {self.url} does not serve {self.model} ({said})")
        hint = ", expected its address up to /v1" if status == 404 else ""
        return RunError(f"backend_url: {self.url} answers {status} ({said}){hint}")

    def _hidden(self, text: object) -> str:
        """A text of the server's, which may echo what it was sent, without the key."""
        told = masked_text(str(text))[:500]
        return told.replace(self._key, MASK) if len(self._key) >= SHORTEST_SECRET else told


def next_tokens(answers: Sequence[Sequence[int]]) -> dict[tuple[int, ...], set[int]]:
    """Every beginning of some answers, and the tokens that come next.

    Example: the answers 5 6 9, 5 7 9 and 8 9 begin with nothing (then 5 or 8), 5 (then 6 or 7), 5 6, 5 7 and 8 (then 9).
    """
    found: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for place, token in enumerate(answer):
            found.setdefault(tuple(answer[:place]), set()).add(token)
    return found


def parts(beginnings: Mapping[tuple[int, ...], set[int]]) -> Iterator[dict[tuple[int, ...], set[int]]]:
    """The same in as few parts as a request's limits allow, shorter beginnings first; tokens that are too many for one are asked in turn."""
    part: dict[tuple[int, ...], set[int]] = {}
    tokens: set[int] = set()
    for beginning in sorted(beginnings, key=len):
        wanted = sorted(beginnings[beginning])
        for first in range(0, len(wanted), TOKENS_AT_ONCE):
            some = set(wanted[first : first + TOKENS_AT_ONCE])
            if beginning in part or len(part) == PROMPTS_AT_ONCE or len(tokens | some) > TOKENS_AT_ONCE:
                yield part
                part, tokens = {}, set()
            part[beginning] = some
            tokens |= some
    if part:
        yield part
