"""LLaRA as it is usually written with Hugging Face and peft, for comparison: the same model, rows and loss, no more.

Prompts are put together as text and tokenised whole at every step, behavioural tokens are written item by item, batches
are in the order in which they come and padded to their longest row, ``model(inputs_embeds, labels=...)`` runs the head
over all positions, adapters are computed by peft's own layers, and evaluation is ``generate(max_new_tokens=64)`` on
right-padded prompts, whose text is then searched for candidates' titles. RecBole-free.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from recbole_llara.llm.adapters import LeanLoraLinear

SLOT = "[ItemEmb]"
IGNORED = -100


@contextmanager
def pefts_own_layers(llm: nn.Module, is_compiled: bool = False) -> Iterator[None]:
    """Within, LoRA layers compute as peft wrote them, and blocks that compile do so only where ``is_compiled``."""
    lean = [module for module in llm.modules() if type(module) is LeanLoraLinear]
    for module in lean:
        module.__class__ = Linear
    try:
        with torch.compiler.set_stance("default" if is_compiled else "force_eager"):
            yield
    finally:
        for module in lean:
            module.__class__ = LeanLoraLinear


@dataclass(frozen=True)
class PlainRow:
    """One row as the recipe holds it: item numbers and a template's segments, of which two are item lists."""

    history: Sequence[int]
    candidates: Sequence[int]
    target: int
    segments: Sequence[str]


class PlainRecipe:
    """Training steps and answers.

    Args:
        llm: a causal LM, wrapped by peft or not.
        tokenizer: its tokenizer; a copy gets the mark of a behavioural token.
        projector: from d_rec to D.
        item_embeddings: [N, d_rec].
        titles: N texts.
    """

    def __init__(
        self, llm: nn.Module, tokenizer, projector: nn.Module, item_embeddings: torch.Tensor, titles: Sequence[str]
    ) -> None:
        self.llm, self.projector, self.item_embeddings, self.titles = llm, projector, item_embeddings, titles
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [SLOT]})
        self.slot_id = self.tokenizer.convert_tokens_to_ids(SLOT)

    def text(self, row: PlainRow) -> str:
        """A prompt as text, with a mark for each behavioural token."""
        lists = {"{history}": row.history, "{candidates}": row.candidates}
        return "".join(
            ",".join(f" {self.titles[item]}{SLOT}" for item in lists[segment]) if segment in lists else segment
            for segment in row.segments
        )

    def batch(self, rows: Sequence[PlainRow], with_answers: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input embeddings [B, T, D], attention mask [B, T] and labels [B, T], padded on the right."""
        sequences, labels = [], []
        for row in rows:
            prompt = self.tokenizer(self.text(row))["input_ids"]
            answer = self.tokenizer(f" {self.titles[row.target]}", add_special_tokens=False)["input_ids"]
            answer = [*answer, self.tokenizer.eos_token_id] if with_answers else []
            sequences.append(prompt + answer)
            labels.append([IGNORED] * len(prompt) + answer)
        longest = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id
        device = self.item_embeddings.device
        ids = torch.tensor([sequence + [pad] * (longest - len(sequence)) for sequence in sequences], device=device)
        mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences], device=device)
        targets = torch.tensor([label + [IGNORED] * (longest - len(label)) for label in labels], device=device)
        is_slot = ids == self.slot_id
        inputs = self.llm.get_input_embeddings()(ids.masked_fill(is_slot, pad)).clone()
        for number, row in enumerate(rows):
            items = [item for segment in row.segments for item in self._listed(segment, row)]
            for column, item in zip(is_slot[number].nonzero()[:, 0].tolist(), items, strict=True):
                inputs[number, column] = self.projector(self.item_embeddings[item]).to(inputs.dtype)
        return inputs, mask, targets

    @staticmethod
    def _listed(segment: str, row: PlainRow) -> Sequence[int]:
        return {"{history}": row.history, "{candidates}": row.candidates}.get(segment, ())

    def loss(self, rows: Sequence[PlainRow], step_tokens: int, is_compiled: bool = False) -> torch.Tensor:
        """This micro-batch's share of the mean loss over the step's answer tokens, as Hugging Face's Trainer takes it.

        Args:
            rows: of the micro-batch.
            step_tokens: answer tokens of the step.
            is_compiled: whether decoder blocks that compile do so.
        """
        inputs, mask, labels = self.batch(rows, with_answers=True)
        with pefts_own_layers(self.llm, is_compiled):
            return self.llm(inputs_embeds=inputs, attention_mask=mask, labels=labels, num_items_in_batch=step_tokens).loss

    def step_tokens(self, rows: Sequence[PlainRow]) -> int:
        """Answer tokens of a step."""
        return sum(
            len(self.tokenizer(f" {self.titles[row.target]}", add_special_tokens=False)["input_ids"]) + 1 for row in rows
        )

    @torch.no_grad()
    def answers(self, rows: Sequence[PlainRow], stops: bool = True) -> list[int]:
        """The one candidate whose title stands in the generated text, or 0.

        Args:
            stops: whether generation ends with the batch's last EOS; else it takes all 64 tokens, as it does where one row
                of the batch goes on.
        """
        inputs, mask, _ = self.batch(rows, with_answers=False)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id if stops else None
        with pefts_own_layers(self.llm):
            tokens = self.llm.generate(
                inputs_embeds=inputs,
                attention_mask=mask,
                max_new_tokens=64,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=end,
            )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        found = [[item for item in row.candidates if self.titles[item] in text] for row, text in zip(rows, texts, strict=True)]
        return [items[0] if len(items) == 1 else 0 for items in found]
