"""A chat model behind an API, the tables' "GPT-4": the same question in words, its answer matched like any other."""

from pathlib import Path
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_llara.config.run_config import check_titles
from recbole_llara.config.settings import ChatSettings, TrainingSettings
from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD
from recbole_llara.data.titles import load_catalogue
from recbole_llara.evaluator.answer import CandidateAnswers
from recbole_llara.model.chat.client import AnswerCache, ChatAnswer, ChatClient, check_access
from recbole_llara.model.chat.wrapping import read_answer, without_reasoning
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import draw_templates, load_templates, prompts_digest
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.protocols import ChecksConfig

CUT = {"length": "cut", "content_filter": "filtered"}  # finish_reason of a message that the endpoint ended -> its outcome


class ChatLLM(ChecksConfig, SequentialRecommender):
    """Asks a chat endpoint which candidate comes next; trains nothing.

    Every answer is kept in ``<checkpoint_dir>/chat/answers.sqlite`` by the exact request, so a run that was interrupted
    goes on without paying twice.

    Args:
        config: the run's RunConfig.
        dataset: the training split.

    Raises:
        UserError: no titles, no key, or no package openai.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        self.settings = settings = ChatSettings.from_config(config)
        self.seed = config["seed"]
        catalogue = load_catalogue(dataset, config)
        representation = REPRESENTATIONS[settings.representation]
        self.names = [
            str(item) if representation.answer is Part.INDEX else title for item, title in enumerate(catalogue.titles)
        ]
        self.prompts_digest = prompts_digest(catalogue.domain, settings.prompt_file)
        self.templates = load_templates(catalogue.domain, config["candidate_num"], settings.prompt_file)
        self.client = ChatClient(settings, AnswerCache(Path(config["checkpoint_dir"]) / "chat" / "answers.sqlite"))
        self.unused = nn.Parameter(torch.zeros(1))  # an optimiser wants one parameter

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a run without titles, prompts that hold vectors, training, and a run without access."""
        check_titles(config)
        settings = ChatSettings.from_config(config)
        worded = [name for name, representation in REPRESENTATIONS.items() if not representation.has_slot]
        if settings.representation not in worded:
            raise UserError(
                f"representation: found {settings.representation}, expected one of {', '.join(worded)}: a chat model behind an API "
                "reads words, no vectors; for those choose LLaRA or RSLLM"
            )
        load_templates(config["domain"], config["candidate_num"], settings.prompt_file)
        epochs = TrainingSettings.from_config(config).epochs
        if epochs:
            raise UserError(f"epochs: found {epochs}, expected 0: ChatLLM is not trained")
        check_access(settings.api_key_env)

    def messages(self, history: list[int], candidates: list[int], template: int) -> list[dict[str, str]]:
        """What one row asks: history without padding and candidates, by item ids, in the domain's template of this number."""
        text = self.templates[template].render(
            [self.names[item] for item in history], [self.names[item] for item in candidates]
        )
        # First, so that the message ends where the answer begins: models that were never taught to chat go on from there.
        return [{"role": "user", "content": f"{self.settings.chat_instruction}\n{text}".strip()}]

    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Ask every row of ``interaction``."""
        candidates, rows = interaction[CANDIDATE_FIELD].cpu(), interaction[ROW_FIELD].cpu()
        templates = [0] * len(rows)
        if self.settings.eval_template == "sampled":
            templates = draw_templates(self.seed, "evaluation", 0, rows.numpy(), len(self.templates)).tolist()
        histories = [[item for item in history if item] for history in interaction[self.ITEM_SEQ].tolist()]
        prompts = [self.messages(*row) for row in zip(histories, candidates.tolist(), templates, strict=True)]
        answers = self.client.ask(prompts)
        names = [[self.names[item] for item in row] for row in candidates.tolist()]
        read = [
            (None, False) if answer.fault else read_answer(answer.text, titles, answer.finish_reason in CUT)
            for answer, titles in zip(answers, names, strict=True)
        ]
        items = [0 if place is None else row[place] for (place, _), row in zip(read, candidates.tolist(), strict=True)]
        outcomes = [
            outcome(answer, place is not None, is_wrapped) for answer, (place, is_wrapped) in zip(answers, read, strict=True)
        ]
        texts = [answer.text for answer in answers]
        return CandidateAnswers(torch.tensor(items, dtype=torch.int64), scores=None, texts=texts, outcomes=outcomes)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Zero: there is nothing to train."""
        return self.unused.sum()

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``HasResultFields``."""
        settings = self.settings
        chat: dict[str, Any] = {"api_base": self.client.api_base}
        for name in ("paid", "cached"):
            spent = getattr(self.client, name)
            chat[name] = {**vars(spent), "cost": spent.cost(settings.api_price_prompt, settings.api_price_completion)}
        return {
            "llm": settings.api_model,
            "decoding": "chat",
            "representation": settings.representation,
            "prompts_digest": self.prompts_digest,
            "chat": chat,
        }


def outcome(answer: ChatAnswer, is_valid: bool, is_wrapped: bool) -> str:
    """How an answer came out, of ``answer.OUTCOMES``: whether it names a candidate, and only once something was taken off."""
    if answer.fault is not None:
        return answer.fault
    if is_valid:
        return "unwrapped" if is_wrapped else "exact"
    if answer.finish_reason in CUT:
        return CUT[answer.finish_reason]
    return "unmatched" if without_reasoning(answer.text) else "empty"
