"""Where the engine meets RecBole: a recommender that has an LLM, item embeddings, a projector and prompts."""

from dataclasses import dataclass
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llara.checkpoint.identity import data_facts, rows_digest, tokenizer_digest
from recbole_llara.config.checks import check_titles
from recbole_llara.config.settings import EvaluationSettings, LLMSettings, PromptSettings, RecommenderSettings
from recbole_llara.data.candidates import CandidateSampler
from recbole_llara.data.dataset import CANDIDATE_FIELD, PLACE_FIELD, ROW_FIELD, PreparedData
from recbole_llara.evaluator.answer import CandidateAnswers
from recbole_llara.llm.answer_loss import AnswerPass, answer_pass
from recbole_llara.llm.attention import training_attention
from recbole_llara.llm.compilation import compile_blocks
from recbole_llara.llm.dropout import token_keys
from recbole_llara.llm.hybrid import merge_item_embeddings
from recbole_llara.llm.item_tokens import ItemTokens, centred, shuffled
from recbole_llara.llm.loading import causal_lm, embedded_vocabulary, input_embeddings
from recbole_llara.llm.precision import evaluation_dtype, resolve_compute_dtype
from recbole_llara.llm.sharding import shard_frozen
from recbole_llara.model.answering import answer_rows
from recbole_llara.model.readiness import ReadyLLM, answer_reader, ready_llm
from recbole_llara.prompt.curriculum import shown_parts, stages_of
from recbole_llara.prompt.encoding import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.representation import Part, Representation
from recbole_llara.prompt.template import draw_templates
from recbole_llara.recommender.frozen import Recommender, TrainStock, prepare_recommender
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import processes_of
from recbole_llara.utils.protocols import ChecksConfig

# RecBole's keys that have no part in training an LLM: the value they keep, and what takes their place.
REPLACED_KEYS = {
    "learner": ("adam", "an LLM is trained by Adam"),
    "clip_grad_norm": (None, "an LLM's gradients are clipped by max_grad_norm"),
    "enable_amp": (False, "an LLM's arithmetic is llm_dtype"),
}

ROWS = "training rows"  # what dropout calls the passes over prompts and answers


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one forward pass, as the prompt encoder wants them.

    Args:
        history: [B, L] item ids, 0-padded on the right.
        candidates: [B, C].
        targets: [B].
        template_index: [B].
        places: [B] which rows of the optimiser step these are.
        row_ids: [B] which rows of the training split.
    """

    history: torch.Tensor
    candidates: torch.Tensor
    targets: torch.Tensor
    template_index: torch.Tensor
    places: torch.Tensor
    row_ids: torch.Tensor

    def take(self, rows: torch.Tensor) -> "TrainingRows":
        """Some of the rows."""
        return TrainingRows(**{name: tensor[rows] for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Step:
    """What the forward passes of one optimiser step share.

    Args:
        representation: how items stand in its prompts.
        tokens: answer tokens of all its rows, over which the answers' loss is averaged.
        targets: [B] of all its rows.
        number: of the step, counted over the whole training: dropout's draws differ from step to step.
    """

    representation: Representation
    tokens: int
    targets: torch.Tensor
    number: int

    def with_previews(self, places: torch.Tensor, previews: torch.Tensor) -> "Step":
        """The step once every row has been previewed; see ``LLMRecommender.preview``.

        Args:
            places: [B] of the rows in the step; a row may come twice.
            previews: [B, D].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Backpropagate through what the passes share, after the backward pass of each."""


class LLMRecommender(ChecksConfig, SequentialRecommender):
    """An LLM that names one of C candidates, its prompts holding items' titles, embeddings or both.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.
        recommender: the frozen recommender; None where the representation shows no item embedding.
        ready: its LLM; None = loaded here.

    Raises:
        UserError: no titles, an LLM that cannot be loaded, or prompts that it cannot hold.
    """

    input_type = InputType.POINTWISE  # RecBole's word for rows that bring no negative of their own

    def __init__(self, config: Any, data: PreparedData, recommender: Recommender | None, ready: ReadyLLM | None = None) -> None:
        super().__init__(config, data.dataset)
        ready = ready or ready_llm(config, data)
        llm_settings, prompt = LLMSettings.from_config(config), PromptSettings.from_config(config)
        self.decoding = EvaluationSettings.from_config(config).decoding
        self.representation = stages_of(config)[-1].hard  # what is evaluated; the trainer sets that of an earlier stage
        self.test_prompt = prompt.test_prompt
        self.seed = config["seed"]
        self.sampler: CandidateSampler = data.sampler
        self.recommender = recommender
        self.compute_dtype = resolve_compute_dtype(llm_settings.llm_dtype, config["device"])
        self.llm, self.tokenizer, self.encoder = ready.llm, ready.tokenizer, ready.encoder
        self._token_keys = ready.token_keys
        self.llm_digest, self.tokenizer_digest = ready.digest, tokenizer_digest(self.tokenizer)
        self.data_facts, self.rows_digest = data_facts(config, data), rows_digest(data)
        llm = causal_lm(self.llm)
        self._weight_dtype = input_embeddings(llm).weight.dtype
        self.eval_dtype = evaluation_dtype(llm_settings.eval_dtype, self._weight_dtype)
        self._attention = {
            True: training_attention(llm, self.compute_dtype, config["device"]),
            False: llm.config._attn_implementation,
        }
        self.llm_path, self.llm_tuning = llm_settings.llm_path, llm_settings.llm_tuning
        self.llm_quantization = llm_settings.llm_quantization
        processes = processes_of(config)
        self.is_sharded = llm_settings.fsdp and processes.count > 1
        if self.is_sharded:
            shard_frozen(self.llm, config["device"], processes.count)
        self.is_compiled = llm_settings.torch_compile
        if self.is_compiled:
            compile_blocks(self.llm, config["device"])
        self.read_answers = ready.read_answers or answer_reader(config, self.llm, self.encoder, self._token_keys)
        self.item_tokens = ItemTokens(
            embedded_vocabulary(llm), self.n_items, shown_parts(config), self._item_embeddings(config), recommender is None
        )

    def _item_embeddings(self, config: Any) -> torch.Tensor | None:
        """[N, d_rec] what the projector reads, or None where no prompt shows a behavioural token."""
        settings = RecommenderSettings.from_config(config)
        if self.recommender is not None:
            table = self.recommender.item_embeddings
            return centred(shuffled(table, self.seed) if settings.shuffle_item_embeddings else table)
        if Part.ITEM_EMBEDDING not in shown_parts(config):
            return None
        return torch.randn(self.n_items, settings.item_embedding_size)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse stages that cannot be, and text where scores are to be averaged; see ``ChecksConfig``."""
        check_titles(config)
        for key, (value, instead) in REPLACED_KEYS.items():
            if config[key] != value:
                raise UserError(f"{key}: found {config[key]!r}, expected {value}: {instead}")
        stages_of(config)
        prompt, decoding = PromptSettings.from_config(config), EvaluationSettings.from_config(config).decoding
        if prompt.test_prompt == "all" and decoding != "score":
            raise UserError(
                f"test_prompt: found all with decoding {decoding}, expected decoding score: texts cannot be averaged; "
                "or choose first or sampled"
            )

    @classmethod
    def from_data(cls, config: Any, data: PreparedData, train: TrainStock) -> "LLMRecommender":
        """Make the model of a run, its frozen recommender trained by ``train`` or taken from the cache where one is needed."""
        ready = ready_llm(config, data)
        pretrained = RecommenderSettings.from_config(config).item_embeddings != "random"
        wanted = pretrained and Part.ITEM_EMBEDDING in shown_parts(config)
        return cls(config, data, prepare_recommender(config, data, train) if wanted else None, ready)

    def facts(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``TellsFacts``."""
        facts: dict[str, Any] = {"llm": self.llm_path, "decoding": self.decoding, "representation": self.representation.name}
        facts["max_title_tokens"] = self.encoder.max_title_tokens  # fewer than asked for, where the LLM holds no more
        if self.recommender is None:
            return {**facts, "recommender": None}
        return {**facts, "rec_model": self.recommender.model, "recommender": self.recommender.facts()}

    def train(self, mode: bool = True) -> "LLMRecommender":
        """Training mode, with the attention that is fastest there."""
        super().train(mode)
        causal_lm(self.llm).set_attn_implementation(self._attention[mode])
        return self

    # --- prompts -------------------------------------------------------------------------------

    def template_index(self, rows: torch.Tensor, purpose: str, epoch: int) -> torch.Tensor:
        """[B] a template for each row, drawn by (seed, purpose, epoch, row)."""
        return torch.from_numpy(draw_templates(self.seed, purpose, epoch, rows.cpu().numpy(), len(self.encoder.templates)))

    def training_rows(self, interaction: Interaction, epoch: int) -> TrainingRows:
        """Histories and targets of training rows with this epoch's candidates and templates."""
        rows, users = interaction[ROW_FIELD].cpu(), interaction[self.USER_ID].cpu()
        history, targets = interaction[self.ITEM_SEQ].cpu(), interaction[self.POS_ITEM_ID].cpu()
        places = interaction[PLACE_FIELD].cpu().numpy() if PLACE_FIELD in interaction else None
        drawn_for = (rows.numpy(), users.numpy(), targets.numpy())
        candidates = self.sampler.draw(*drawn_for, "train", epoch, history=history.numpy(), places=places)
        templates, places = self.template_index(rows, "train", epoch), torch.arange(len(rows))
        return TrainingRows(history, torch.from_numpy(candidates), targets, templates, places, rows)

    def embed(self, prompts: EncodedPrompts) -> torch.Tensor:
        """Input embeddings [B, T, D], behavioural tokens and placeholders in their slots (LLaRA eq. 6)."""
        inputs = input_embeddings(self.llm)(prompts.input_ids)
        if not len(prompts.slot_items):
            return inputs
        slots = self.item_tokens(prompts.slot_parts, prompts.slot_items)  # [S, D]
        return merge_item_embeddings(inputs, prompts.slot_rows, prompts.slot_columns, slots)

    # --- training ------------------------------------------------------------------------------

    def encode_training(self, rows: TrainingRows, representation: Representation) -> EncodedPrompts:
        """Prompts with their answers, on the model's device."""
        prompts = self.encoder.encode(rows.history, rows.candidates, rows.targets, representation, rows.template_index)
        return prompts.to(self.device)

    def answer_pass(self, prompts: EncodedPrompts, with_states: bool = False) -> AnswerPass:
        """The negative log-likelihood of the answers (LLaRA eq. 7, RSLLM eq. 2)."""
        inputs = self.embed(prompts)
        return answer_pass(self.llm, inputs, prompts.attention_mask, prompts.position_ids, prompts.labels, with_states)

    def key_dropout(self, purpose: str, step: int, rows: torch.Tensor, prompts: EncodedPrompts) -> None:
        """Tell dropout which tokens the next pass holds; see ``llm.dropout``.

        Args:
            purpose: what the pass is.
            step: number of the optimiser step.
            rows: [B] what its rows are called, on the CPU.
            prompts: what it reads.
        """
        self._token_keys.values = token_keys(self.seed, purpose, step, rows, prompts.position_ids)

    @property
    def needs_previews(self) -> bool:
        """Whether the losses of a pass read something of the rows of all other passes of the step."""
        return False

    def preview(self, rows: TrainingRows, step: Step) -> torch.Tensor:
        """[B, D] what the losses of other passes read of these rows, by a pass without gradients.

        Args:
            rows: of this pass.
            step: what ``begin_step`` gave.
        """
        raise NotImplementedError

    def begin_step(
        self, rows: TrainingRows, representation: Representation, number: int = 0, pass_rows: int | None = None
    ) -> Step:
        """What the passes of an optimiser step share.

        Args:
            rows: all rows of the step.
            representation: how items stand in its prompts.
            number: of the step, counted over the whole training.
            pass_rows: how many rows a pass holds at most, by which memory is kept bounded; None = all.
        """
        tokens = int((self.encoder.answer_ids(rows.targets, representation) != IGNORED_LABEL).sum())
        return Step(representation, tokens, rows.targets, number)

    def step_losses(self, rows: TrainingRows, step: Step) -> dict[str, torch.Tensor]:
        """What one forward pass adds to the loss of its optimiser step, by name; their sum is what is minimised.

        Args:
            rows: of this pass.
            step: what ``begin_step`` gave.
        """
        prompts = self.encode_training(rows, step.representation)
        self.key_dropout(ROWS, step.number, rows.row_ids, prompts)
        answers = self.answer_pass(prompts)
        return {"answer": answers.sums.sum() / step.tokens}

    # --- evaluation ----------------------------------------------------------------------------

    @property
    def settles_near_ties(self) -> bool:
        """Whether rows whose order could turn on the rows beside them are scored again, alone.

        In halves nearly all rows would be; where weights are dealt out, every process must pass as often.
        """
        return self.eval_dtype == torch.float32 and not self.is_sharded

    def evaluation_arithmetic(self) -> torch.autocast:
        """The arithmetic of ``eval_dtype``, as a context."""
        return torch.autocast(self.device.type, dtype=self.eval_dtype, enabled=self.eval_dtype != self._weight_dtype)

    @torch.no_grad()
    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Answer each row by the configured decoding.

        Args:
            interaction: rows with histories and candidates.
        """
        candidates, rows = interaction[CANDIDATE_FIELD].cpu(), interaction[ROW_FIELD].cpu()  # [B, C], [B]
        with self.evaluation_arithmetic():
            return answer_rows(self, interaction[self.ITEM_SEQ].cpu(), candidates, rows)
