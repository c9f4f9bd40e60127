"""An LLM recommender whose LLM a server reads: prompts, recommender and rankings are made here, likelihoods are asked for there."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recbole_llara.checkpoint.weights import META, read_checkpoint, tokenizer_digest
from recbole_llara.config.settings import OWN, EngineSettings, PromptSettings, RecommenderSettings
from recbole_llara.data.dataset import PreparedData
from recbole_llara.llm.item_tokens import MADE, with_rows
from recbole_llara.llm.loading import read_files
from recbole_llara.llm.slot_rows import token_rows
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import prompt_encoder, shown_lists
from recbole_llara.model.engine_client import EngineClient, Served
from recbole_llara.prompt.curriculum import stages_of
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.template import prompts_digest
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.frozen import recommender_model
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import file_sha256


class EngineRecommender(nn.Module):
    """What ``LLMRecommender`` is to those who ask it; it holds no weight of an LLM.

    Args:
        config: the run's.
        data: what it is asked about.
        checkpoint: the run's, whose tokens the server holds.
        folder: the LLM that was exported, of which its configuration, its tokenizer and ``Served`` are read.

    Raises:
        UserError: the folder belongs to another run, or what ``EngineClient.check`` raises.
    """

    is_compiled = is_sharded = settles_near_ties = False
    prefixes = None  # the server keeps what it has read
    template_index, listed = LLMRecommender.template_index, LLMRecommender.listed

    def __init__(self, config: Any, data: PreparedData, checkpoint: Path, folder: Path) -> None:
        super().__init__()
        prompt = PromptSettings.from_config(config)
        self.served = Served.read(folder)
        if self.served.checkpoint != file_sha256(checkpoint / META) or self.served.n_items != len(data.catalogue.titles):
            raise UserError(
                f"backend: {folder} holds the LLM of another run than {checkpoint}, expected the folder that export --for=vllm made beside it"
            )
        self.seed, self.device, self.eval_template = config["seed"], config["device"], prompt.eval_template
        self.stages = stages_of(config)
        self.representation = self.stages[-1].hard
        llm_config, self.tokenizer = read_files(str(folder), False)
        told = read_checkpoint(checkpoint).facts["belongs_to"]["tokenizer_digest"]
        if tokenizer_digest(self.tokenizer) != told:
            raise UserError(f"backend: the tokenizer in {folder} is not that of the run, expected the one that was exported")
        self.encoder, _ = prompt_encoder(config, data, llm_config, self.tokenizer)
        self.item_fields = tuple(data.catalogue.fields)
        self.prompts_digest = self.trained_prompts = prompts_digest(data.catalogue.domain, prompt.prompt_file)
        self.conclude = self._concluding(config, data, checkpoint) if self.representation.tells_conclusions else None
        self.llm = EngineClient(EngineSettings.from_config(config), self.served)
        longest, answers = self.encoder.longest_prompt(*shown_lists(config))
        self.llm.check(longest.input_ids.shape[1] + answers.shape[2])

    @staticmethod
    def _concluding(config: Any, data: PreparedData, checkpoint: Path) -> Concluding:
        recommender, network, own = recommender_model(config, data)
        is_new = None if RecommenderSettings.from_config(config).new_item_token == OWN else recommender.is_new
        concluding = Concluding(network, own, False, is_new)
        made = read_checkpoint(checkpoint).read_tensors().get(MADE)
        if made is not None and not config["shuffle_item_embeddings"]:
            table = recommender.item_embeddings
            concluding.score_new_items(with_rows(table, is_new.nonzero()[1:, 0], made))
        return concluding

    def evaluation_arithmetic(self) -> AbstractContextManager:
        """A context that changes nothing: the server computes."""
        return nullcontext()

    def embed(self, prompts: EncodedPrompts) -> list[list[int]]:
        """Prompts of B rows as the server's token ids, without padding."""
        conclusions = None if prompts.asked is None else self.conclude(*prompts.asked)
        return token_rows(prompts, self.served.slots, self.served.vocabulary, conclusions)

    @staticmethod
    def read_answers(
        llm: EngineClient, prompts: Sequence[Sequence[int]], answer_ids: torch.Tensor, before_pass: None = None
    ) -> torch.Tensor:
        """[B, C, A] as an ``AnswerReader`` gives them."""
        return llm.log_probs(prompts, answer_ids)

    def write_tokens(self, prompts: Sequence[Sequence[int]], lengths: torch.Tensor) -> torch.Tensor:
        """What ``LLMRecommender.write_tokens`` gives."""
        rows = self.llm.write(prompts, lengths.tolist(), self.tokenizer.eos_token_id)
        width = max(1, *map(len, rows))
        return torch.tensor([[*row, *[IGNORED_LABEL] * (width - len(row))] for row in rows])
