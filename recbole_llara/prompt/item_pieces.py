"""The texts of N items as tokens: made once for a run, kept with it, and mapped into memory where it is loaded.

Texts are titles (cut, with their fields behind them), numbers where prompts show these, titles together with a mark that the tokenizer
reads with their last word, and answers where these are other tokens. Whoever keeps them tells by a ``key`` what they were made for;
with another tokenizer, other titles or other prompts they are made again. RecBole-free.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recbole_llara.data.text_table import TextTable
from recbole_llara.prompt.representation import Part
from recbole_llara.prompt.tokens import NOTHING, PieceBank

_TOKENS, _OFFSETS, _FOLLOWED, _CUT, _SHOWN, _FIELDS = "tokens", "offsets", "followed/", "cut", "shown", "fields"


@dataclass(frozen=True)
class ItemMap:
    """Pieces of some items: the others have none."""

    items: torch.Tensor  # [k] int64, ascending
    pieces: torch.Tensor  # [k] int64

    @classmethod
    def of(cls, pieces: Mapping[int, int]) -> "ItemMap":
        """That of pieces by item."""
        items = torch.tensor(sorted(pieces), dtype=torch.int64)
        return cls(items, torch.tensor([pieces[item] for item in items.tolist()], dtype=torch.int64))

    def __getitem__(self, items: torch.Tensor) -> torch.Tensor:
        """The pieces of items [...], ``NOTHING`` of those that have none."""
        if not len(self.items):
            return torch.full_like(items, NOTHING)
        places = torch.searchsorted(self.items, items).clamp(max=len(self.items) - 1)
        return torch.where(self.items[places] == items, self.pieces[places], NOTHING)

    def with_pieces(self, more: "ItemMap") -> "ItemMap":
        """Both, those of ``more`` being over these; a piece ``NOTHING`` takes an item away."""
        stay = ~torch.isin(self.items, more.items)
        items = torch.cat([self.items[stay], more.items])
        pieces = torch.cat([self.pieces[stay], more.pieces])
        order = items.argsort()
        kept = order[pieces[order] != NOTHING]
        return ItemMap(items[kept], pieces[kept])


class ShownTexts(Sequence[str]):
    """Texts of items of which some are shown otherwise than they stand in a table."""

    def __init__(self, texts: Sequence[str], changed: Mapping[int, str]) -> None:
        self.texts, self.changed = texts, dict(changed)

    def __len__(self) -> int:
        return max(len(self.texts), max(self.changed, default=-1) + 1)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        return self.changed[number] if number in self.changed else self.texts[number]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None


@dataclass(frozen=True, eq=False)
class ItemPieces:
    """Pieces of N items, the first of a bank.

    Attributes:
        bank: has them all; what is no item's is added behind them.
        first: part -> the piece of the padding item, behind which the others' stand in order.
        answers: the same of the texts that answer.
        followed: (part, mark) -> the pieces of items together with a mark behind them, where the tokenizer reads both as one.
        max_title_tokens: what titles were cut to.
        titles: N, as prompts and answers show them.
        fields: N texts behind the titles; none where there are no fields.
        changed: part -> pieces of items that have others by now, of items that came later too.
        changed_answers: the same of the texts that answer.
    """

    bank: PieceBank
    first: Mapping[Part, int]
    answers: Mapping[Part, int]
    followed: Mapping[tuple[Part, str], ItemMap]
    max_title_tokens: int
    titles: ShownTexts
    fields: Sequence[str]
    changed: Mapping[Part, ItemMap] = field(default_factory=dict)
    changed_answers: Mapping[Part, ItemMap] = field(default_factory=dict)

    def pieces(self, items: torch.Tensor, part: Part, in_answer: bool = False) -> torch.Tensor:
        """Piece numbers of the texts of items, of the shape of ``items``."""
        own = items + (self.answers if in_answer else self.first)[part]
        if (changed := (self.changed_answers if in_answer else self.changed).get(part)) is None:
            return own
        others = changed[items]
        return torch.where(others == NOTHING, own, others)

    def title_lengths(self) -> torch.Tensor:
        """[N - 1] tokens of the titles with their fields, of all but the padding item."""
        return self.bank.lengths(self.pieces(torch.arange(1, len(self.titles)), Part.TITLE))

    def save(self, path: Path, key: str) -> None:
        """Write them; of a catalogue that was changed since it was made, what it was made with."""
        (segment, *_), numbers = self.bank.segments, {}
        tensors = {_TOKENS: segment.tokens, _OFFSETS: segment.offsets}
        for number, ((part, mark), joined) in enumerate(self.followed.items()):
            numbers[str(number)] = [part.name, mark]
            tensors |= {f"{_FOLLOWED}{number}/items": joined.items, f"{_FOLLOWED}{number}/pieces": joined.pieces}
        cut = {item: text for item, text in self.titles.changed.items() if item < len(self.titles.texts)}
        tensors[_CUT] = torch.tensor(list(cut), dtype=torch.int64)
        tensors |= TextTable.of(list(cut.values())).tensors(_SHOWN)
        if len(self.fields):
            tensors |= TextTable.of(self.fields).tensors(_FIELDS)
        told = {
            "key": key,
            "first": {part.name: number for part, number in self.first.items()},
            "answers": {part.name: number for part, number in self.answers.items()},
            "followed": numbers,
            "max_title_tokens": self.max_title_tokens,
        }
        save_file(tensors, path, metadata={"told": json.dumps(told)})

    @classmethod
    def read(cls, path: Path, key: str, titles: Sequence[str]) -> "ItemPieces | None":
        """What ``save`` wrote, mapped into memory; None where they were made for another ``key``.

        Args:
            titles: N, as the catalogue has them.

        Raises:
            KeyError, TypeError, ValueError, SafetensorError, OSError: the file is not as it was written.
        """
        with safe_open(path, framework="pt", device="cpu") as file:
            told = json.loads((file.metadata() or {})["told"])
            if told["key"] != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        bank = PieceBank.of(tensors[_TOKENS], tensors[_OFFSETS])
        followed = {
            (Part[part], mark): ItemMap(tensors[f"{_FOLLOWED}{number}/items"], tensors[f"{_FOLLOWED}{number}/pieces"])
            for number, (part, mark) in told["followed"].items()
        }
        firsts = [{Part[part]: int(number) for part, number in told[name].items()} for name in ("first", "answers")]
        ends = [number + len(titles) for first in firsts for number in first.values()]
        maps = [tensor for joined in followed.values() for tensor in vars(joined).values()]
        if max(ends) > bank.count or any(
            len(pieces) and not 0 <= int(pieces.min()) <= int(pieces.max()) < bank.count for pieces in maps
        ):
            raise ValueError("pieces are named that are not there")
        shown = ShownTexts(titles, dict(zip(tensors[_CUT].tolist(), TextTable.from_tensors(tensors, _SHOWN), strict=True)))
        fields = TextTable.from_tensors(tensors, _FIELDS) if f"{_FIELDS}/offsets" in tensors else ()
        return cls(bank, *firsts, followed, int(told["max_title_tokens"]), shown, fields)

    def with_items(
        self,
        titles: Mapping[int, str],
        fields: Mapping[int, str],
        pieces: Mapping[Part, ItemMap],
        answers: Mapping[Part, ItemMap],
        followed: Mapping[tuple[Part, str], ItemMap],
    ) -> "ItemPieces":
        """These with other texts of some items, whose pieces are in the bank already; items behind the last are new ones."""

        def over(old: Mapping[Any, ItemMap], new: Mapping[Any, ItemMap]) -> dict[Any, ItemMap]:
            nothing = ItemMap.of({})
            return {name: old.get(name, nothing).with_pieces(new.get(name, nothing)) for name in {**old, **new}}

        shown = ShownTexts(self.titles.texts, {**self.titles.changed, **titles})
        told = self.fields
        if len(told):
            before = told.changed if isinstance(told, ShownTexts) else {}
            texts = told.texts if isinstance(told, ShownTexts) else told
            told = ShownTexts(texts, {**before, **{item: fields.get(item, "") for item in titles}})
        return replace(
            self,
            titles=shown,
            fields=told,
            changed=over(self.changed, pieces),
            changed_answers=over(self.changed_answers, answers),
            followed=over(self.followed, followed),
        )
