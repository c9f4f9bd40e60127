"""A chat model behind an API, the tables' "GPT-4": the same question in words, and how a message names a candidate."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn
from transformers import AutoTokenizer

from recbole_llara.config.run_config import ChecksConfig, check_titles
from recbole_llara.config.settings import ChatSettings
from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD
from recbole_llara.data.titles import load_catalogue
from recbole_llara.evaluator.answer import CandidateAnswers, normalise_title
from recbole_llara.llm.source import resolve_llm_path
from recbole_llara.model.chat_client import CUT, AnswerCache, ChatClient, check_access, without_reasoning
from recbole_llara.model.checks import check_item_fields, check_untrained, check_words_only
from recbole_llara.prompt.fields import bracketed
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import draw_templates, load_templates, prompts_digest
from recbole_llara.utils.errors import UserError

_AROUND = (*((mark, mark) for mark in "\"'`*_"), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"))
_FULL_STOPS = (".", "。")
MOST_WRAPPINGS = 8  # of one text; "**" around it is two
_LIST_MARK = re.compile(r"(?:[-*•–—>]|#{1,6}|#?\(?\d{1,3}[.):]|\[\d{1,3}\]|#\d{1,3})\s+")
_LABEL = re.compile(
    r"[*_]*(?:(?:my|the|your|final|best|next|top|recommended|predicted)\s+)*"
    r"(?:answer|choice|pick|title|recommendation|prediction|item|movie|film|game|artist)(?:[*_\s]*[:：]|\s+is\b[*_\s]*:?)",
    re.IGNORECASE,
)


class ChatLLM(ChecksConfig, SequentialRecommender):
    """Asks a chat endpoint which candidate comes next; trains nothing.

    Every answer is kept in ``<checkpoint_dir>/chat/answers.sqlite`` by the exact request, so a run that was interrupted
    continues without paying twice.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = ChatSettings.from_config(config)
        self.seed = config["seed"]
        catalogue = load_catalogue(dataset, config)
        answers_by_number = REPRESENTATIONS[settings.representation].answer is Part.INDEX
        self.names = [str(item) for item in range(len(catalogue.titles))] if answers_by_number else catalogue.titles
        self.item_fields, behind = tuple(catalogue.fields), bracketed(catalogue.fields)
        self.shown = [f"{name} {told}".strip() for name, told in zip(self.names, behind, strict=True)] if behind else self.names
        self.prompts_digest = prompts_digest(catalogue.domain, settings.prompt_file)
        self.templates = load_templates(catalogue.domain, config["candidate_num"], settings.prompt_file)
        self.client = ChatClient(settings, AnswerCache(Path(config["checkpoint_dir"]) / "chat" / "answers.sqlite"))
        self.unused = nn.Parameter(torch.zeros(1))  # an optimiser wants one parameter

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a run without titles, prompts that hold vectors, training, and a run without access."""
        check_titles(config)
        settings = ChatSettings.from_config(config)
        check_words_only(cls, config, REPRESENTATIONS[settings.representation].parts)
        check_item_fields(config, REPRESENTATIONS[settings.representation].parts)
        load_templates(config["domain"], config["candidate_num"], settings.prompt_file)
        check_untrained(cls, config)
        check_access(settings.api_key_env)

    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Ask every row of ``interaction``."""
        rows, candidates = interaction[ROW_FIELD].cpu(), interaction[CANDIDATE_FIELD].tolist()
        templates = [0] * len(rows)
        if self.settings.eval_template == "sampled":
            templates = draw_templates(self.seed, "evaluation", 0, rows.numpy(), len(self.templates)).tolist()
        titles, listed = ([[names[item] for item in row] for row in candidates] for names in (self.names, self.shown))
        prompts = []
        for history, shown, template in zip(interaction[self.ITEM_SEQ].tolist(), listed, templates, strict=True):
            text = self.templates[template].render([self.shown[item] for item in history if item], shown)
            # The instruction first, so that the message ends where the answer begins: models that were never taught to chat go
            # on from there.
            prompts.append([{"role": "user", "content": f"{self.settings.chat_instruction}\n{text}".strip()}])
        answers, items, outcomes = self.client.ask(prompts), [], []
        for answer, row, shown, as_listed in zip(answers, candidates, titles, listed, strict=True):
            is_cut = answer.finish_reason in CUT
            place, is_wrapped = (None, False) if answer.fault else read_answer(answer.text, shown, is_cut, as_listed)
            items.append(0 if place is None else row[place])
            if place is None:
                outcomes.append(answer.silence or CUT.get(answer.finish_reason, "unmatched"))
            else:
                outcomes.append("unwrapped" if is_wrapped else "exact")
        texts = [answer.text for answer in answers]
        return CandidateAnswers(torch.tensor(items, dtype=torch.int64), scores=None, texts=texts, outcomes=outcomes)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Zero: there is nothing to train."""
        return self.unused.sum()

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``HasResultFields``."""
        settings = self.settings
        chat: dict[str, Any] = {"api_base": self.client.api_base}
        prices = (settings.api_price_prompt, settings.api_price_completion)  # a million tokens
        for name, spent in (("paid", self.client.paid), ("cached", self.client.cached)):
            cost = None
            if None not in prices:
                cost = (spent["prompt_tokens"] * prices[0] + spent["completion_tokens"] * prices[1]) / 1_000_000
            chat[name] = {**spent, "cost": cost}
        return {
            "llm": settings.api_model,
            "decoding": "chat",
            "representation": settings.representation,
            "item_fields": list(self.item_fields),
            "prompts_digest": self.prompts_digest,
            "chat": chat,
        }


def read_answer(
    message: str, titles: Sequence[str], is_cut: bool = False, listed: Sequence[str] = ()
) -> tuple[int | None, bool]:
    """Which candidate a chat model's message names: such models think aloud, number, label, quote and embellish.

    1. Reasoning is no answer; see ``without_reasoning``.
    2. The whole message is read first, then its lines: lines that name one candidate between them name it, lines that name
       several name none. A last line that the endpoint has cut off is not read, since more may have followed.
    3. A text is read as it stands, then without one wrapping after the other. The least unwrapped reading that is a candidate's
       title counts: where "1. FC Köln" is a candidate, "1. FC Köln" names it and not "FC Köln". Titles are never searched for
       inside a text, as everywhere (``answer.match_titles``).
    4. Only where none of these readings is a title are they compared again without regard to case.

    Args:
        message: what the model wrote.
        titles: of the candidates.
        is_cut: whether the endpoint ended the message before the model did.
        listed: the candidates as the prompt lists them, where more stands there than the titles: that names one as a title does.

    Returns:
        the candidate's place among ``titles``, None where none or several are named; and whether anything was taken off, or
        case disregarded, to find it.

    Example, candidates "Alien" and "M":

        "M"                                     0 wrappings, names M
        "<think>Alien?</think> **Answer:** m."  names M: without reasoning, emphasis, label and full stop, and in any case
        "1. Alien\\n2. M"                        names none: its lines name two
    """
    whole = message[: message.rfind("\n") + 1] if is_cut else message
    if places := _places(titles, listed, normalise_title).get(normalise_title(whole)):
        return (places[0] if len(places) == 1 else None), whole != message
    text = without_reasoning(whole)
    lines = text.splitlines()
    for compared in (normalise_title, _folded):
        by_title = _places(titles, listed, compared)
        found = _named(text, by_title, compared) or set().union(*(_named(line, by_title, compared) for line in lines))
        if found:
            return (found.pop() if len(found) == 1 else None), True
    return None, False


def _folded(text: str) -> str:
    return normalise_title(normalise_title(text).casefold())


def _places(titles: Sequence[str], listed: Sequence[str], compared: Callable[[str], str]) -> dict[str, list[int]]:
    """Where each text stands among the candidates, by the form in which it is compared; an empty one is no name."""
    places: dict[str, list[int]] = {}
    for place, text in dict.fromkeys((place, compared(text)) for texts in (titles, listed) for place, text in enumerate(texts)):
        places.setdefault(text, []).append(place)
    places.pop("", None)
    return places


def _named(text: str, by_title: dict[str, list[int]], compared: Callable[[str], str]) -> set[int]:
    """The candidates that the least unwrapped readings of a text name."""
    readings = {text.strip()}
    for _ in range(MOST_WRAPPINGS + 1):
        named = {place for reading in readings for place in by_title.get(compared(reading), ())}
        if named:
            return named
        readings = {shorter for reading in readings for shorter in _unwrapped(reading)}
    return set()


def _unwrapped(text: str) -> Iterator[str]:
    """A text without one of its wrappings, in every way that there is."""
    for opening, closing in _AROUND:
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            yield text[1:-1].strip()
    if text.endswith(_FULL_STOPS):
        yield text[:-1].strip()
    if found := _LIST_MARK.match(text):
        yield text[found.end() :].strip()
    if found := _LABEL.match(text):
        yield text[found.end() :].strip()
        yield text[found.end() :].lstrip("*_ \t")  # of **Answer:** Title


# For models that were never taught to chat: the messages as they are.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SERVE = "from transformers.cli.transformers import main; main()"  # the script of that name, wherever it was installed
PATIENCE = 600.0  # seconds to load a model


@contextmanager
def served(llm_path: str) -> Iterator[dict[str, str]]:
    """Serve a causal LM on loopback by ``transformers serve``; yields the ``api_`` keys that ask it.

    Args:
        llm_path: "tiny" or a folder; a model without a chat template gets one that changes nothing.

    Raises:
        UserError: the server cannot be started.
    """
    found = resolve_llm_path(llm_path)
    source = found.where
    if not isinstance(source, Path) or found.adapter is not None:
        raise UserError(f"llm_path: found {llm_path!r}, expected an LLM's folder or file, to be served for api_base: local")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, Path(llm_path).name)  # the server knows a model by its path: seen from the folder, its name
        model.mkdir()
        for file in source.iterdir():
            if file.is_file():
                (model / file.name).symlink_to(file.resolve())
        if AutoTokenizer.from_pretrained(source, local_files_only=True).chat_template is None:
            (model / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
        command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port), model.name]
        log = Path(folder) / "serve.log"
        with open(log, "w", encoding="utf-8") as output:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            _wait_until_healthy(process, port, log)
            yield {"api_base": f"http://127.0.0.1:{port}/v1", "api_model": model.name, "api_key_env": ""}
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_healthy(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
                if json.load(response).get("status") == "ok":
                    return
        except (OSError, ValueError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["it said nothing"]
            raise UserError(
                f"api_base: local needs transformers serve, which did not start ({last[0]}): pip install recbole-llara[chat]"
            )
        time.sleep(0.2)
