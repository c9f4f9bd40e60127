"""Beginnings of prompts that an LLM has read are kept, so that the next prompt with the same beginning is read from there on.

Prompts of one user begin alike: with the template's first words and the history. What is kept is each block's keys and values of these
tokens, for as many prompts as the memory allows; those asked for least recently go first. It is a memory of histories: it lies in
this process alone, on the LLM's device, and is never written. RecBole-free.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from threading import Lock

import torch
from torch import nn
from transformers import DynamicCache

from recbole_llara.llm.architecture import EmbeddedPrompts
from recbole_llara.llm.likelihood import AnswerReader, BeforePass, Past, trie_log_probs
from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.prompt.representation import ITEM_SLOT_PARTS, SLOT_PARTS, Part

FEWEST = 16  # tokens: fewer are read again rather than copied
PASS_COST = 64  # tokens that could be read in the time that a pass takes whatever it reads
# By their places in SLOT_PARTS: whether a slot's vector differs from item to item; and whether it follows from more than the part and the
# item, from all of the history and the candidates.
_HAS_ITEM = torch.tensor([part in ITEM_SLOT_PARTS for part in SLOT_PARTS])
_IS_CONCLUDED = torch.tensor([part in (Part.USER, Part.SCORE) for part in SLOT_PARTS])

Beginning = tuple[int, ...]  # what each token is: its id, or a number below 0 for a slot's part and item
Blocks = list[tuple[torch.Tensor, torch.Tensor]]  # of each decoder block the keys and the values, [H, P, d]


@dataclass
class PrefixStore:
    """What was read of prompts, by what was read.

    Args:
        limit: (int, bytes) of all keys and values together.

    Attributes:
        read, reused: tokens of prompts that passes read, and that were taken from the store instead; for those who measure.
    """

    limit: int
    read: int = 0
    reused: int = 0
    _kept: "OrderedDict[Beginning, Blocks]" = field(default_factory=OrderedDict)  # the latest used at the end
    _sorted: list[Beginning] = field(default_factory=list)
    _bytes: int = 0
    _holders: list[nn.Module] = field(default_factory=list)  # the parts of the model that have tensors of their own
    _made_by: tuple[object, ...] | None = None
    _lock: Lock = field(default_factory=Lock)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._sorted.clear()
            self._bytes = 0

    def longest(self, beginning: Beginning) -> tuple[int, Blocks]:
        """What was read of a prompt already: how many tokens at its beginning, and the blocks that hold at least these.

        Tokens are compared one by one. Of all that is kept, a neighbour in the order of tokens has the longest beginning in common.
        """
        with self._lock:
            place = bisect_left(self._sorted, beginning)
            near = self._sorted[max(place - 1, 0) : place + 1]
            count, found = max(((_in_common(beginning, each), each) for each in near), default=(0, ()))
            if not count:
                return 0, []
            if 2 * count >= len(found):  # else it is another user's prompt, of the same template
                self._kept.move_to_end(found)
            return count, self._kept[found]

    def keep(self, beginning: Beginning, blocks: Blocks) -> None:
        """Keep what was read, and forget what was used least recently where the limit asks for it."""
        size = _size(blocks)
        with self._lock:
            if size > self.limit or beginning in self._kept:
                return
            self._kept[beginning] = blocks
            insort(self._sorted, beginning)
            self._bytes += size
            while self._bytes > self.limit:
                oldest, forgotten = self._kept.popitem(last=False)
                self._sorted.pop(bisect_left(self._sorted, oldest))
                self._bytes -= _size(forgotten)

    def reader(self, model: nn.Module, prompts: EncodedPrompts) -> AnswerReader:
        """``trie_log_probs`` of these prompts, reading what is new of them.

        Args:
            model: the whole model, always the same one; where one of its weights or tables was replaced or written to, or products are
                made in another type than before, everything is forgotten.
            prompts: padded on the left.
        """
        if not self._holders:
            self._holders = [module for module in model.modules() if module._parameters or module._buffers]
        made_by = self._state(prompts.input_ids.device)
        if made_by != self._made_by:
            self.clear()
            self._made_by = made_by
        return partial(self.log_probs, beginnings(prompts))

    def _state(self, device: torch.device) -> tuple[object, ...]:
        """What is another where a tensor of the model is, or the type of its products."""
        tensors = chain.from_iterable((*module._parameters.values(), *module._buffers.values()) for module in self._holders)
        marks = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors if tensor is not None)
        return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type), marks

    def log_probs(
        self,
        begin: Sequence[Beginning],
        llm: nn.Module,
        prompts: EmbeddedPrompts,
        answer_ids: torch.Tensor,
        before_pass: BeforePass | None = None,
    ) -> torch.Tensor:
        """[B, C, A] as ``trie_log_probs`` gives them, up to rounding.

        Rows with little that is new are read apart from those with much, so that no short row is padded to a long one.

        Args:
            begin: of each row what its prompt begins with, up to where it is kept.
        """
        found = [self.longest(each) for each in begin]
        counts = [count if count >= FEWEST else 0 for count, _ in found]
        lengths = prompts.attention_mask.sum(1).tolist()
        new = [length - count for length, count in zip(lengths, counts, strict=True)]
        self.read, self.reused = self.read + sum(new), self.reused + sum(counts)
        log_probs = torch.empty(answer_ids.shape, device=prompts.inputs_embeds.device)
        for rows in _passes(new):
            own = [found[row][1] if counts[row] else [] for row in rows]
            past = _past([counts[row] for row in rows], own, prompts.attention_mask.device)
            log_probs[rows] = trie_log_probs(llm, _ends(prompts, rows, new), answer_ids[rows], before_pass, past)
            first = past.attention_mask.shape[1] + max(new[row] for row in rows)  # the column behind the prompts
            for number, row in enumerate(rows):
                count, length = counts[row], len(begin[row])
                if length >= FEWEST and length > count:
                    columns = slice(first - new[row], first - new[row] + length - count)
                    self.keep(begin[row], _kept_of(past, number, count, columns))
        return log_probs


def beginnings(prompts: EncodedPrompts) -> list[Beginning]:
    """Of each row the tokens before its second list of items, as far as their vectors follow from their own part and item.

    A slot's number tells both, so that equal numbers have equal vectors as long as the weights and tables stay.
    """
    names, starts = prompts.input_ids.cpu().clone(), (prompts.attention_mask.cpu() == 0).sum(1)  # [B, T], [B]
    rows, columns, parts = prompts.slot_rows.cpu(), prompts.slot_columns.cpu(), prompts.slot_parts
    names[rows, columns] = -1 - parts - len(SLOT_PARTS) * prompts.slot_items.cpu() * _HAS_ITEM[parts]
    ends = starts + prompts.head_lengths  # [B] columns
    concluded = _IS_CONCLUDED[parts]
    ends.scatter_reduce_(0, rows[concluded], columns[concluded], "amin")
    return [tuple(row[start:end]) for row, start, end in zip(names.tolist(), starts.tolist(), ends.tolist(), strict=True)]


def _in_common(one: Beginning, other: Beginning) -> int:
    """How many tokens two prompts have in common before they first differ."""
    return next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))  # noqa: B905


def _size(blocks: Blocks) -> int:
    return sum(tensor.nbytes for pair in blocks for tensor in pair)


def _passes(new: Sequence[int]) -> list[list[int]]:
    """Rows with so many new tokens each in one pass; or in two, where the padding that this saves is more than a pass costs."""
    order = sorted(range(len(new)), key=new.__getitem__)

    def cost(cut: int) -> int:
        return sum(PASS_COST + len(rows) * new[rows[-1]] for rows in (order[:cut], order[cut:]) if rows)

    best = min(range(len(order)), key=cost)
    return [rows for rows in (order[:best], order[best:]) if rows]


def _ends(prompts: EmbeddedPrompts, rows: Sequence[int], new: Sequence[int]) -> EmbeddedPrompts:
    """Some rows' last tokens, ``new`` of each, which a pass is to read."""
    counts = torch.tensor([new[row] for row in rows], device=prompts.attention_mask.device)
    width = int(counts.max())
    part = EmbeddedPrompts(*(values[rows, -width:] for values in vars(prompts).values()))
    is_new = torch.arange(width, 0, -1, device=counts.device) <= counts[:, None]  # [B, width]
    return replace(part, attention_mask=is_new.to(part.attention_mask.dtype))


def _past(counts: Sequence[int], blocks: Sequence[Blocks], device: torch.device) -> Past:
    """The first so many tokens of what was kept, a row each, padded on the right to P."""
    cache, places = DynamicCache(), torch.arange(max(counts), device=device)
    is_read = places < torch.tensor(counts, device=device)[:, None]  # [B, P]
    for number in range(max(map(len, blocks))):
        padded = []
        for which in range(2):  # keys, values
            kept = [
                (row, of_row[number][which][:, :count])
                for row, (of_row, count) in enumerate(zip(blocks, counts, strict=True))
                if count
            ]
            heads, _, width = kept[0][1].shape
            table = kept[0][1].new_zeros(len(counts), heads, len(places), width)
            for row, tensor in kept:
                table[row, :, : tensor.shape[1]] = tensor
            padded.append(table)
        cache.update(*padded, number)
    return Past(cache, is_read.long(), places.expand_as(is_read))


def _kept_of(past: Past, row: int, count: int, columns: slice) -> Blocks:
    """A row's keys and values: the first ``count`` columns, read before, and some that are new; as exact as products read them."""
    device = past.attention_mask.device.type
    halves = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([tensor[row, :, :count], tensor[row, :, columns]], 1)
        return whole if halves is None else whole.to(halves)

    return [(kept(layer.keys), kept(layer.values)) for layer in past.cache.layers]
