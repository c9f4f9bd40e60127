"""A few passes of a loaded LLM before anything is trained: whether it can be tuned and asked as the run is going to.

Seven passes over a prompt as long as the run's longest, so that every window is felt, and two short ones; one more with
``decoding: generate``. With a 7B model and prompts of 1,000 tokens these are, by count, some 100 TFLOP, a tenth of one training
step of 64 such rows. RecBole-free.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from recbole_llara.llm.adapters import TokenKeys
from recbole_llara.llm.architecture import EmbeddedPrompts, input_embeddings
from recbole_llara.llm.generation import decode_generate
from recbole_llara.llm.likelihood import AnswerReader, answer_pass, candidate_log_probs, trie_log_probs
from recbole_llara.llm.loading import first_line
from recbole_llara.llm.prefixes import FEWEST, PrefixStore
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.utils.errors import UserError

# What a tree may differ from plain passes by: nats, or shares of them where there are more; the largest difference in float32, the
# mean of all tokens' in halves, whose roundings of one token come to as much as a fault. In halves a large LLM rounds more than
# this: there the tree may differ by ROUNDINGS times as much as a pass that is right does.
TREE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROUNDINGS = 4
# A tree that is wrongly held for wrong costs time, a refusal the run: its limits are wider.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# What a later token may move the likelihoods of an earlier one by, in the mean over the vocabulary.
CAUSAL_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SHORT = 64  # tokens, of passes that ask nothing about length
PADDING = 8  # columns on the left, as shorter rows of a batch have
LENGTH_ROPES = {"dynamic", "longrope"}  # under which a token's keys depend on how long the prompt is
MEMORY = 1 << 30  # bytes, more than a short prompt takes
COMPARED = 3  # candidates that are also asked about one by one

# What models raise that were not written for such inputs; of what a GPU raises, running out of memory says nothing about them.
_NOT_WRITTEN_FOR_IT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

_logger = logging.getLogger()


@dataclass
class Probe:
    """Passes of an LLM over one prompt, each compared with plain passes over tokens.

    Args:
        llm: in evaluation mode, on its device.
        llm_path: for messages.
        prompt: of one row, without padding, as long as any of the run; slots count as the tokens that stand in for them.
        answer_ids: [1, C, A] its candidates' answers, on the CPU.
        end, pad: ids of the tokens that end an answer and fill a row.
        is_quantized: whether its weights are, so that a token's roundings depend on the tokens beside it.
        token_keys: where its dropout reads which tokens a pass holds.
    """

    llm: PreTrainedModel
    llm_path: str
    prompt: EncodedPrompts
    answer_ids: torch.Tensor
    end: int
    pad: int
    is_quantized: bool = False
    token_keys: TokenKeys = field(default_factory=TokenKeys)

    def __post_init__(self) -> None:
        self.prompt = self.prompt.to(self.llm.device)
        self.subject = f"llm_path is {self.llm_path!r}: {type(self.llm).__name__}"
        self.dtype = torch.bfloat16 if self.is_quantized else input_embeddings(self.llm).weight.dtype
        # The prompt as a row of a batch with a longer one.
        left = (PADDING, 0)
        mask, positions = pad(self.prompt.attention_mask, left), pad(self.prompt.position_ids, left)
        embeds = input_embeddings(self.llm)(pad(self.prompt.input_ids, left, value=self.pad)).detach()  # [1, P + T, D]
        self.padded = EmbeddedPrompts(embeds, mask, positions)

    @torch.no_grad()
    def run(self, generates: bool) -> AnswerReader:
        """Refuse an LLM that is not causal or does not read prompts as this package writes them; choose how it reads answers.

        Args:
            generates: whether the run lets the LLM write.

        Returns:
            ``trie_log_probs`` where it gives what a plain pass gives, else ``candidate_log_probs``, and the log says so.

        Raises:
            UserError: later tokens change earlier ones; the LLM takes no ``inputs_embeds``, or its answers change with them or
                with padding; it cannot run as in training, or cannot generate where it is to.
        """
        with self._asked("cannot read a row of tokens"):
            self._check_causal()
        count = self.answer_ids.shape[1]
        compared = sorted({0, count // 2, count - 1})[:COMPARED]
        few = self.answer_ids[:, compared]  # [1, K, A]
        with self._asked(f"cannot read a row of {self.prompt.input_ids.shape[1]} tokens and an answer"):
            plain = self._plain_log_probs(few)
        # The pass of training and of ``candidate_log_probs``: embedded prompts, padded on the left.
        with self._asked("does not read embedded prompts (inputs_embeds with attention_mask and position_ids)"):
            rounding = self._gap(candidate_log_probs(self.llm, self.padded, few), plain)
        if not rounding <= TOLERANCE[self.dtype]:
            raise UserError(
                f"{self.subject} answers differently for a prompt given as inputs_embeds with padding on its left (likelihoods "
                f"move by {rounding:.2g}), expected the same answers: choose another llm_path"
            )
        with self._asked("cannot make a pass of training"):
            self._train_once()
        if generates:
            self._check_generation()
        try:
            found = trie_log_probs(self.llm, self.padded, self.answer_ids)[:, compared]
        except _NOT_WRITTEN_FOR_IT as error:
            reason = first_line(error)
        else:
            gap, tolerance = self._gap(found, plain), TREE_TOLERANCE[self.dtype]
            if gap <= (tolerance if self.dtype == torch.float32 else max(tolerance, ROUNDINGS * rounding)):
                return trie_log_probs
            reason = f"likelihoods move by {gap:.2g}"
        _logger.warning(
            f"{self.subject} does not read all candidates' answers in one pass ({reason}): each is read by a pass of its own, "
            f"which takes about {count} times as long. Training is not affected"
        )
        return candidate_log_probs

    @torch.no_grad()
    def reads_on(self, reader: AnswerReader) -> bool:
        """Whether the LLM, asked by ``reader``, reads a prompt on from what a ``PrefixStore`` kept of it, as if it read it whole.

        If not, the log says why. The masks of windows are ours and were tried on the longest prompt: here a short one will do.
        """
        ids, few = self.prompt.input_ids[:, -SHORT:].expand(2, -1), self.answer_ids[:, :COMPARED].expand(2, -1, -1)
        embeds, mask = input_embeddings(self.llm)(ids).detach(), torch.ones_like(ids)
        short = EmbeddedPrompts(embeds, mask, mask.cumsum(1) - 1)
        store, names = PrefixStore(MEMORY), tuple(ids[0].tolist())
        begin = [names[: max(FEWEST, len(names) // 2)], names[:-1]]  # two rows that are read on from different places
        ropes = getattr(self.llm.config.get_text_config(), "rope_parameters", None) or {}
        # One for all blocks, or one for each type of them.
        scaling = LENGTH_ROPES & {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
        if reader is not trie_log_probs:
            reason = "candidates are read one by one"
        elif scaling:
            reason = f"its positions are scaled by the prompt's length: rope_type {min(scaling)}"
        else:
            try:
                whole = trie_log_probs(self.llm, short, few)
                store.log_probs(begin, self.llm, short, few)
                gap = self._gap(store.log_probs(begin, self.llm, short, few), whole)
                tolerance = TREE_TOLERANCE[self.dtype]
                if self.dtype != torch.float32:
                    tolerance = max(tolerance, ROUNDINGS * self._gap(candidate_log_probs(self.llm, short, few), whole))
            except _NOT_WRITTEN_FOR_IT as error:
                reason = first_line(error)
            else:
                if store.reused and gap <= tolerance:
                    return True
                reason = f"likelihoods move by {gap:.2g}"
        _logger.info(
            f"{self.subject} cannot read a prompt on from a beginning that it read before ({reason}): prefix_cache is not used, and every "
            "prompt is read whole"
        )
        return False

    @contextmanager
    def _asked(self, what: str, instead: str = "") -> Iterator[None]:
        """The user's error of an LLM that raises within; out of memory stays what it is."""
        try:
            yield
        except (UserError, torch.OutOfMemoryError):
            raise
        except _NOT_WRITTEN_FOR_IT as error:
            raise UserError(f"{self.subject} {what} ({first_line(error)}): {instead}choose another llm_path") from error

    def _gap(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """How far log-probabilities lie apart, as the tolerances are meant."""
        apart = (found - expected).abs() / expected.abs().clamp(min=1)
        return float(apart.max() if self.dtype == torch.float32 else apart.mean())

    def _check_causal(self) -> None:
        """Change the last quarter of a short row and look at the tokens before it."""
        ids = self.prompt.input_ids[:, -SHORT:]
        n_changed = max(1, ids.shape[1] // 4)
        changed = ids.clone()
        changed[:, -n_changed:] = torch.where(ids[:, -n_changed:] == self.end, int(self.answer_ids[0, 0, 0]), self.end)
        before = self.llm(input_ids=torch.cat([ids, changed])).logits[:, :-n_changed].float().log_softmax(2)
        # Both are rows of one pass: where the LLM is causal, even their roundings are alike.
        gap = float((before[1] - before[0]).abs().mean(1).max())
        if not gap <= CAUSAL_TOLERANCE[self.dtype]:
            raise UserError(
                f"{self.subject} lets a token see later ones, and so the answer that it should predict (likelihoods of earlier "
                f"tokens move by {gap:.2g}), expected a causal LM: choose another llm_path"
            )

    def _plain_log_probs(self, few: torch.Tensor) -> torch.Tensor:
        """[1, K, A] prompt and answer of a few candidates, each alone and as tokens: what every other pass is measured by."""
        found = torch.zeros(few.shape, device=self.llm.device)
        for number, padded in enumerate(few[0]):
            answer = padded[padded != IGNORED_LABEL].to(self.llm.device)
            ids = torch.cat([self.prompt.input_ids[0], answer])[None]
            log_probs = self.llm(input_ids=ids).logits[0, -len(answer) - 1 : -1].float().log_softmax(1)
            found[0, number, : len(answer)] = log_probs.gather(1, answer[:, None])[:, 0]
        return found

    def _train_once(self) -> None:
        """A pass in training mode, which some models refuse without further inputs; nothing is learned, no draw is used up."""
        mask = self.padded.attention_mask[:, -SHORT:]
        short = EmbeddedPrompts(self.padded.inputs_embeds[:, -SHORT:], mask, (mask.cumsum(1) - 1).clamp(min=0))
        labels = torch.full(mask.shape, IGNORED_LABEL)
        labels[:, -1] = self.end
        devices = [self.llm.device] if self.llm.device.type == "cuda" else []
        self.llm.train()
        try:
            with torch.random.fork_rng(devices), self.token_keys.reading(torch.zeros_like(mask)):
                answer_pass(self.llm, short, labels)
        finally:
            self.llm.eval()

    def _check_generation(self) -> None:
        """Let the LLM write one token behind the prompt: the likeliest one."""
        limit = torch.ones(1, dtype=torch.int64, device=self.llm.device)
        with self._asked("cannot generate from embedded prompts", "set decoding: score, or "):
            written = int(decode_generate(self.llm, self.padded, limit, self.end, self.pad)[0, 0])
        log_probs = self.llm(input_ids=self.prompt.input_ids).logits[0, -1].float().log_softmax(0)  # [V]
        gap = self._gap(log_probs[self.end if written == IGNORED_LABEL else written], log_probs.max())
        if not gap <= TOLERANCE[self.dtype]:
            raise UserError(
                f"{self.subject} generates a token behind an embedded prompt that is less likely than another (by {gap:.2g}), "
                "expected the likeliest: set decoding: score, or choose another llm_path"
            )
