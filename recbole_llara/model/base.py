"""Where the engine meets RecBole: a recommender that has an LLM, item embeddings, a projector and prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llara.checkpoint.weights import data_facts, rows_digest, tokenizer_digest
from recbole_llara.config.models import Kind
from recbole_llara.config.run_config import ChecksConfig, check_titles
from recbole_llara.config.settings import (
    EARLIER,
    EvaluationSettings,
    LLMSettings,
    LossSettings,
    PromptSettings,
    RecommenderSettings,
)
from recbole_llara.data.dataset import CANDIDATE_FIELD, PLACE_FIELD, ROW_FIELD, PreparedData
from recbole_llara.data.rows import Rows
from recbole_llara.evaluator.answer import DECODINGS, CandidateAnswers
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.llm.adapters import token_keys
from recbole_llara.llm.answer_tree import with_mask_of_pairs
from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm, embedded_vocabulary, input_embeddings, uncompiled
from recbole_llara.llm.cpu import training_attention
from recbole_llara.llm.generation import decode_generate
from recbole_llara.llm.item_tokens import ItemTokens, merge_item_embeddings, number_vectors, standard_of
from recbole_llara.llm.likelihood import answer_pass, answers_among, trie_log_probs
from recbole_llara.llm.loading import evaluation_dtype, resolve_compute_dtype
from recbole_llara.llm.prefixes import PrefixStore
from recbole_llara.llm.text_states import text_states
from recbole_llara.model.answering import Questions, answer_context, score
from recbole_llara.model.build import prepare_llm
from recbole_llara.model.checks import check_llm_keys, is_tuned
from recbole_llara.model.losses import LOSSES, ForwardPass, Step, TrainingRows
from recbole_llara.model.reading import Readings, draws_embeddings, has_prior, read_recommenders
from recbole_llara.prompt.curriculum import Stage, shown_parts, stages_of
from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.representation import Representation
from recbole_llara.prompt.template import draw_templates, prompts_digest
from recbole_llara.recommender.frozen import Recommender
from recbole_llara.recommender.proposals import with_proposals
from recbole_llara.utils.hashing import numbers, row_keys
from recbole_llara.utils.processes import processes_of
from recbole_llara.utils.transfer import send

# What dropout calls the passes over prompts and their answers, and over prompts and the answers of all candidates.
ROWS, CANDIDATES = "training rows", "candidates"


class LLMRecommender(ChecksConfig, SequentialRecommender):
    """An LLM that names one of C candidates, its prompts holding items' titles, embeddings or both.

    Args:
        config: the run's RunConfig.
        data: what ``prepare_data`` returned.

    Attributes:
        reads_words_only, is_trained: whether prompts with vectors are refused, and whether it may have epochs.
        recommender: the frozen one that answers; None where no prompt shows what it knows.
        answering: the recommender that answers, its network and its configuration, in a tuple, so that it is no part of this model.
        recommender_of_training: the one with which training rows are read, where it is another; in training mode the model reads it.
        proposing: the one whose proposals training candidates are drawn from; None where they are uniform, or nothing is trained.
        has_prior: whether listwise adds what the recommender says of the candidates to the answers'.
        needs_previews: whether the losses of a pass read something of the rows of all other passes of the step, which
            ``preview(rows, step)`` gives as [B, D] by a pass without gradients.
        needs_states: whether the losses read the decoder's states, ``ForwardPass.answers.states``.
        prefixes: what was read of earlier prompts, kept for later ones; None = nothing is kept.
        settles_near_ties: whether rows whose order could turn on the rows beside them are scored again, alone.

    Raises:
        UserError: an LLM that cannot be loaded, or prompts that it cannot hold.
    """

    kind = Kind.LLM
    input_type = InputType.POINTWISE  # RecBole's word for rows that bring no negative of their own
    reads_words_only, is_trained = False, True
    needs_previews = needs_states = False

    def __init__(self, config: Any, data: PreparedData) -> None:
        super().__init__(config, data.dataset)
        settings, prompt = LLMSettings.from_config(config), PromptSettings.from_config(config)
        self.seed, self.item_token_dropout = config["seed"], prompt.item_token_dropout
        self.decoding, self.eval_template = EvaluationSettings.from_config(config).decoding, prompt.eval_template
        self.loss_settings, self.stages = LossSettings.from_config(config), stages_of(config)
        self.reference: dict[str, torch.Tensor] | None = None
        self.enter(self.stages[-1])
        self.llm_path, self.llm_tuning = settings.llm_path, settings.llm_tuning
        self.llm_quantization, self.llm_layers = settings.llm_quantization, settings.llm_layers
        self.is_sharded, self.is_compiled = settings.fsdp and processes_of(config).count > 1, settings.torch_compile
        prepared = prepare_llm(config, data, self.is_sharded)
        self.llm, self.llm_digest, self.encoder, self._token_keys, self.read_answers, self.pieces_key, self.probed = prepared
        self.prefixes: PrefixStore | None = None
        self.tokenizer, llm = self.encoder.tokenizer, causal_lm(self.llm)
        self._weight_dtype = input_embeddings(llm).weight.dtype
        self.compute_dtype = resolve_compute_dtype(settings.llm_dtype, self.device)
        self.eval_dtype = evaluation_dtype(settings.eval_dtype, self._weight_dtype)
        # In halves nearly all rows would be near ties; where weights are sharded, every process must pass as often.
        self.settles_near_ties = self.eval_dtype == torch.float32 and not self.is_sharded
        attention = settings.attn_implementation or training_attention(llm, self.compute_dtype, self.device)
        self._attention = {True: attention, False: llm.config._attn_implementation}
        asks = any(stage.hard.tells_conclusions for stage in self.stages) or has_prior(config)
        readings = read_recommenders(config, data, shown_parts(config), asks, self.read_texts)
        own, of_training = readings.own, readings.of_training
        self.recommender = None if own is None else own.recommender
        self.answering = None if own is None else (own.recommender, own.network, own.config)
        self.recommender_of_training = None if of_training is None else of_training.recommender
        self.has_prior, self.as_new_share, self._drift = has_prior(config), readings.as_new_share, readings.drift()
        self._conclude_by_mode = readings.conclude_by_mode()
        self.conclude = self._conclude_by_mode[self.training]
        # What stands for items that the recommender never learned (None = its own row), and how many they are.
        self.new_item_token, self.n_new_items = (None, 0) if own is None else own.new_items()
        self._is_dealt = config["shuffle_item_embeddings"]
        self.item_tokens = self._item_tokens(config, data, readings)
        self.proposing: Recommender | None = None
        if is_tuned(config):
            data, self.proposing = with_proposals(config, data)
            self._tell_of_training(config)
        self.sampler = data.sampler
        self.tokenizer_digest = tokenizer_digest(self.tokenizer)
        self.item_fields = tuple(data.catalogue.fields)
        self.prompts_digest = self.trained_prompts = prompts_digest(data.catalogue.domain, prompt.prompt_file)
        self.data_facts = data_facts(config, data)
        if data.train_data is not None:
            self.rows_digest = rows_digest(data, None if of_training is None else of_training.recommender.sha256)
            self.steps_an_epoch = len(data.train_data)
        self.steps_taken = 0  # by ``calculate_loss``
        self.other_parameter_name = ["steps_taken"]  # what RecBole's own checkpoints keep beside the weights

    def _item_tokens(self, config: Any, data: PreparedData, readings: Readings) -> ItemTokens:
        """What fills the slots, over the frozen recommender's table, one that is drawn and learned, or none."""
        shown, own, of_training = shown_parts(config), readings.own, readings.of_training
        table = None if own is None else own.table
        standard: tuple[torch.Tensor, torch.Tensor] | None = None
        if is_drawn := draws_embeddings(config, shown):
            table = torch.randn(self.n_items, RecommenderSettings.from_config(config).item_embedding_size)
        elif table is not None:
            # Those of a run that is loaded come with its weights: over a large table they take a while.
            is_kept = data.kept is not None
            standard = (torch.zeros(table.shape[1]), torch.ones(1)) if is_kept else standard_of(table, own.learned)
        vocabulary, ranks = embedded_vocabulary(self.llm), None
        if config["recommender_score_token"] == "rank":
            ranks = number_vectors(self.tokenizer, vocabulary, config["candidate_num"])
        return ItemTokens(
            vocabulary,
            self.n_items,
            shown,
            table,
            is_drawn,
            None if self.conclude is None else self.conclude.output_size,
            ranks,
            readings.training_table(),
            None if own is None else own.lacking,
            None if of_training is None else of_training.lacking,
            standard,
            None if own is None else own.made,
        )

    def _tell_of_training(self, config: Any) -> None:
        """Log which recommender training rows are read with, where it learned from earlier ones."""
        own = self.recommender_of_training or self.recommender or self.proposing
        if config["recommender_rows"] == EARLIER and own is not None:
            drifted = "" if self._drift is None else f"; drift of item embeddings to the one that answers: {self._drift}"
            getLogger().info(
                f"recommender_rows earlier: training rows are read with a {own.model} of earlier rows, {own.sha256[:16]}, for which "
                f"{own.unlearned_items} items that occur in later rows only are new{drifted}"
            )

    def made_items_were_loaded(self) -> None:
        """Have the recommender that answers score new items by their vectors, as they came with a checkpoint."""
        conclude = self._conclude_by_mode[False]
        if conclude is not None and self.item_tokens.made is not None and not self._is_dealt:
            conclude.score_new_items(self.item_tokens.item_embeddings)

    def read_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, D] what the LLM knows of n texts, see ``text_states``: the LLM as it came, but for one that is tuned whole."""
        with uncompiled(self.is_compiled):
            return text_states(self.llm, self.tokenizer, self.encoder.beginning, texts, is_whole_pass=self.is_sharded)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse what the model cannot read, stages that cannot be, and text where scores are to be averaged."""
        check_titles(config)
        check_llm_keys(cls, config)

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells of this model; see ``HasResultFields``."""
        fields = {
            "llm": self.llm_path,
            "llm_digest": self.llm_digest,
            "decoding": self.decoding,
            "representation": self.representation.name,
            "item_fields": list(self.item_fields),
            "prompts_digest": self.prompts_digest,
            "max_title_tokens": self.encoder.max_title_tokens,  # fewer than asked for, where the LLM holds no more
        }
        if self.proposing is not None:
            fields["proposing"] = self.proposing.result_fields()
        if self.recommender_of_training is not None:
            fields["recommender_of_training"] = self.recommender_of_training.result_fields()
            fields["recommender_drift"] = self._drift
        if self.new_item_token is not None:
            fields |= {"new_item_token": self.new_item_token, "new_items": self.n_new_items}
        if self.recommender is None:
            return {**fields, "recommender": None}
        return {**fields, "rec_model": self.recommender.model, "recommender": self.recommender.result_fields()}

    def train(self, mode: bool = True) -> "LLMRecommender":
        """Training mode, with the attention that is fastest there, and the recommender that training rows are read with."""
        super().train(mode)
        self.conclude = self._conclude_by_mode[mode]
        causal_lm(self.llm).set_attn_implementation(self._attention[mode])
        return self

    def enter(self, stage: Stage) -> None:
        """Answer as the stage's hard task asks, and learn by its loss. What is evaluated is that of the stage entered last."""
        self.representation, self.answer_loss = stage.hard, LOSSES[stage.answer_loss]

    def take_reference(self) -> None:
        """Keep a copy of what is trained, as it is now, for ``as_reference``."""
        self.reference = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Have the weights of ``reference`` within, no dropout and no gradients."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        own, was_training = {name: p.data for name, p in trained.items()}, self.llm.training
        torch.clear_autocast_cache()  # it would hand out the one's rounded weights as the other's
        try:
            for name, parameter in trained.items():
                parameter.data = self.reference[name]
            self.llm.eval()
            with torch.no_grad(), uncompiled(self.is_compiled):
                yield
        finally:
            for name, parameter in trained.items():
                parameter.data = own[name]
            self.llm.train(was_training)
            torch.clear_autocast_cache()

    def template_index(self, rows: torch.Tensor, purpose: str, epoch: int) -> torch.Tensor:
        """[B] a template for each row, drawn by (seed, purpose, epoch, row)."""
        return torch.from_numpy(draw_templates(self.seed, purpose, epoch, rows.cpu().numpy(), len(self.encoder.templates)))

    def training_rows(self, interaction: Interaction, epoch: int) -> TrainingRows:
        """Histories and targets of training rows with this epoch's candidates and templates."""
        row_ids, fields = interaction[ROW_FIELD].cpu(), (self.USER_ID, self.POS_ITEM_ID, self.ITEM_SEQ, PLACE_FIELD)
        users, targets, history, places = (interaction[field].cpu() for field in fields)
        rows = Rows(users.numpy(), targets.numpy(), history.numpy(), places.numpy())
        candidates = torch.from_numpy(self.sampler.draw(row_ids.numpy(), rows, "train", epoch))
        templates = self.template_index(row_ids, "train", epoch)
        draws = torch.from_numpy(row_keys(self.seed, "dropped item tokens", epoch, row_ids.numpy()).view(np.int64))
        read_as = self._read_as(row_ids, history, candidates, epoch)
        return TrainingRows(history, candidates, targets, templates, torch.arange(len(row_ids)), row_ids, read_as, draws)

    def _read_as(self, row_ids: torch.Tensor, history: torch.Tensor, candidates: torch.Tensor, epoch: int) -> torch.Tensor:
        """[B, C] the candidates, numbered on from N in a share of the rows; what a row's history holds is new in none."""
        if not self.as_new_share:
            return candidates
        keys = row_keys(self.seed, "items as if new", epoch, row_ids.numpy())
        is_drawn = torch.from_numpy((numbers(keys, np.zeros(len(keys))) >> np.uint64(11)) * 2.0**-53 < self.as_new_share)  # [B]
        is_known = (candidates[:, :, None] == history[:, None]).any(2)
        return candidates + self.n_items * (is_drawn[:, None] & ~is_known)

    def embed(self, prompts: EncodedPrompts) -> EmbeddedPrompts:
        """What the decoder reads: behavioural tokens and placeholders stand in their slots (LLaRA eq. 6)."""
        inputs = input_embeddings(self.llm)(prompts.input_ids)  # [B, T, D]
        if len(prompts.slot_items):
            concluded = None if prompts.asked is None else self.conclude(*prompts.asked)
            slots = self.item_tokens(prompts.slot_parts, prompts.slot_items, prompts.slot_rows, concluded)  # [S, D]
            inputs = merge_item_embeddings(inputs, prompts.slot_rows, prompts.slot_columns, slots)
        return EmbeddedPrompts(inputs, prompts.attention_mask, prompts.position_ids)

    def training_inputs(self, prompts: EncodedPrompts) -> EmbeddedPrompts:
        """What the decoder reads in training; on a GPU, if the LLM can, under a mask that the host need not inspect."""
        embedded, attention = self.embed(prompts), causal_lm(self.llm).config._attn_implementation
        reads_pairs = self.read_answers is trie_log_probs and attention == "sdpa"
        return with_mask_of_pairs(self.llm, embedded) if reads_pairs and self.device.type == "cuda" else embedded

    def training_arithmetic(self) -> torch.autocast:
        """The arithmetic of ``llm_dtype``, as a context."""
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's interface, for its own Trainer: the loss [] of an optimiser step that reads these rows in one pass.

        Call it once an optimiser step: ``steps_taken`` counts the calls, and from it follow the epoch (with a loader of
        ``train_batch_size`` rows), and so candidates and templates, the stage and what it trains, and dropout.
        """
        epoch, ends, number = self.steps_taken // self.steps_an_epoch, 0, self.steps_taken
        for stage in self.stages:
            begins, ends = ends, ends + stage.epochs
            if epoch < ends:
                break
        self.enter(stage)
        if self.answer_loss.reads_reference and (self.reference is None or number == begins * self.steps_an_epoch):
            self.take_reference()
        representation = stage.representation(number - begins * self.steps_an_epoch, stage.epochs * self.steps_an_epoch)
        self.steps_taken += 1
        with self.training_arithmetic():
            rows = self.training_rows(interaction, epoch)
            step = self.begin_step(rows, representation, number).as_one_pass()
            return torch.stack(list(self.step_losses(rows, step).values())).sum()

    def encode_training(self, rows: TrainingRows, representation: Representation, with_answers: bool = True) -> EncodedPrompts:
        """Prompts, with their answers or without, on the model's device."""
        targets = rows.targets if with_answers else None
        listed = self.listed(rows.history, rows.candidates, representation, rows.read_as)
        prompts = self.encoder.encode(rows.history, listed, targets, representation, rows.template_index)
        prompts = prompts.with_dropped_tokens(rows.draws, self.item_token_dropout)
        if self.as_new_share:
            prompts = prompts.read_as(listed, rows.candidates, rows.read_as)
        return prompts.to(self.device)

    def listed(
        self,
        history: torch.Tensor,
        candidates: torch.Tensor,
        representation: Representation,
        read_as: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Candidates [B, C], of histories [B, L], in the order in which prompts list them; on the CPU.

        Args:
            read_as: [B, C] see ``TrainingRows``; None = as they are.
        """
        if not representation.in_recommender_order:
            return candidates
        asked = (send(items, self.device) for items in (history, candidates if read_as is None else read_as))
        return rank_candidates(self.conclude(*asked).log_probs.cpu(), candidates, question_keys(history))

    def key_dropout(self, purpose: str, step: int, rows: torch.Tensor, position_ids: torch.Tensor) -> None:
        """Tell dropout which tokens the next pass holds; see ``llm.adapters.token_keys``."""
        self._token_keys.values = token_keys(self.seed, purpose, step, rows, position_ids)

    def begin_step(
        self, rows: TrainingRows, representation: Representation, number: int = 0, pass_rows: int | None = None
    ) -> Step:
        """What the passes of an optimiser step share.

        Args:
            rows: all rows of the step.
            representation, number: see ``Step``.
            pass_rows: how many rows a pass holds at most, by which memory is kept bounded; None = all.
        """
        tokens = int(self.encoder.answer_lengths(rows.targets, representation).sum())
        return Step(representation, tokens, rows.targets, number)

    def step_losses(self, rows: TrainingRows, step: Step) -> dict[str, torch.Tensor]:
        """What one forward pass over rows adds to the losses of its optimiser step, by name; their sum is what is minimised."""
        if self.answer_loss.reads_candidates and not self.needs_states:
            prompts, answer_ids, log_probs = self.candidates_pass(rows, step)
            answers = answers_among(log_probs, answer_ids, rows.target_columns)
            return self.losses(ForwardPass(self, step, rows, prompts, answers, log_probs))
        prompts = self.encode_training(rows, step.representation)
        self.key_dropout(ROWS, step.number, rows.row_ids, prompts.position_ids)
        answers = answer_pass(self.llm, self.training_inputs(prompts), prompts.labels, self.needs_states)
        return self.losses(ForwardPass(self, step, rows, prompts, answers))

    def candidates_pass(self, rows: TrainingRows, step: Step) -> tuple[EncodedPrompts, torch.Tensor, torch.Tensor]:
        """One pass over prompts and the answers of all candidates.

        Returns:
            the prompts; on the CPU, the answers' tokens [B, C, A]; and their log-probabilities [B, C, A], with gradient.
        """
        prompts = self.encode_training(rows, step.representation, with_answers=False)
        context = answer_context(self, prompts, rows.candidates, step.representation)

        def key_dropout(position_ids: torch.Tensor) -> None:
            self.key_dropout(CANDIDATES, step.number, rows.row_ids, position_ids)

        return prompts, context[-1], self.read_answers(*context, key_dropout)

    def losses(self, forward: ForwardPass) -> dict[str, torch.Tensor]:
        """The losses of a forward pass: ``answer_loss``, to which a model may add its own."""
        return self.answer_loss.function(forward)

    def evaluation_arithmetic(self) -> torch.autocast:
        """The arithmetic of ``eval_dtype``, as a context."""
        return torch.autocast(self.device.type, dtype=self.eval_dtype, enabled=self.eval_dtype != self._weight_dtype)

    def write_tokens(self, prompts: EmbeddedPrompts, lengths: torch.Tensor) -> torch.Tensor:
        """What the LLM writes freely behind prompts, [B] tokens at most; see ``decode_generate``."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        with uncompiled(self.is_compiled):  # with a cache, every block would be compiled by itself
            return decode_generate(self.llm, prompts, lengths, end, pad, in_step=self.is_sharded)

    @torch.no_grad()
    def answer_candidates(self, interaction: Interaction) -> CandidateAnswers:
        """Answer each row, which brings its history and its candidates, by the configured decoding."""
        with self.evaluation_arithmetic():
            return DECODINGS[self.decoding].function(self, self._questions(interaction))

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's interface: scores [B, N] of all items, by the likelihood of the row's own candidates, whatever ``decoding``.

        Items that are no candidates of the row have minus infinity. Candidates of equal likelihood, as items of one title are,
        differ by the least float there is, in the order of ``rank_candidates``, so that ``topk`` finds our ranking.

        Raises:
            ValueError: rows without candidates. ``serving.load`` ranks the whole catalogue.
        """
        questions = self._questions(interaction)
        with self.evaluation_arithmetic():
            answers = score(self, questions)
        ranking = rank_candidates(answers.scores, questions.candidates, question_keys(questions.history), answers.items)
        values = answers.scores.sort(1, descending=True).values  # [B, C]
        tiny = torch.finfo(values.dtype).tiny
        for place in range(1, values.shape[1]):
            below = torch.nextafter(values[:, place - 1], torch.tensor(-torch.inf))
            below = torch.where(below.abs() < tiny, -tiny, below)  # numbers nearer to 0 may count as 0
            values[:, place] = torch.minimum(values[:, place], below)
        rows = torch.full((len(values), self.n_items), -torch.inf)
        return rows.scatter_(1, ranking, values).to(self.device)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's interface: the score [B] of each row's item as ``full_sort_predict`` has it, minus infinity for no candidate."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].to(self.device)[:, None])[:, 0]

    def _questions(self, interaction: Interaction) -> Questions:
        if CANDIDATE_FIELD not in interaction:
            raise ValueError(
                f"rows of {', '.join(interaction.columns)}: expected {CANDIDATE_FIELD} too, the items to choose from, as the loaders of "
                "prepare_data have it; to rank the whole catalogue, load the run with recbole_llara.load and call recommend"
            )
        return Questions(*(interaction[field].cpu() for field in (self.ITEM_SEQ, CANDIDATE_FIELD, ROW_FIELD)))
