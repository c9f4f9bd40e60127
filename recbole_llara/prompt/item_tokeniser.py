"""The texts of items as tokens: titles cut, fields behind them, and words that a tokenizer reads together with a mark. RecBole-free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.item_pieces import ItemMap, ItemPieces, ShownTexts
from recbole_llara.prompt.representation import Part
from recbole_llara.prompt.titles import cut_titles, tokenise_items
from recbole_llara.prompt.tokens import NOTHING, ChatFrame, PieceBank, Texts, tokenise_followed, tokenise_inside

# The most tokens that titles may have, of the items' texts by part, their tokens [N - 1] by part, and those of the fields.
Fitting = Callable[[Mapping[Part, Sequence[str]], Mapping[Part, np.ndarray], np.ndarray | int], int]


@dataclass(frozen=True)
class ItemTokeniser:
    """Makes ``ItemPieces``.

    Args:
        marks: what may stand behind an item in a prompt.
        chat: what stands around a prompt that is a user's turn of a chat; None = nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    marks: tuple[str, ...]
    chat: ChatFrame | None = None

    def pieces(
        self, titles: Sequence[str], fields: Sequence[str], has_numbers: bool, most: int, fitting: Fitting | None = None
    ) -> ItemPieces:
        """Tokenise N titles and fields, and the items' numbers where prompts or answers have them.

        Args:
            most: title tokens; longer titles are cut.
            fitting: tells how many there are room for; None = for all.

        Raises:
            UserError: a text without tokens, or with special ones; or no room.
        """
        texts = {Part.TITLE: list(titles)}
        if has_numbers:
            texts[Part.INDEX] = [str(number) for number in range(len(titles))]
        whole = {part: tokenise_items(self.tokenizer, of_part, most) for part, of_part in texts.items()}
        behind = Texts.joined(tokenise_items(self.tokenizer, fields)) if len(fields) else None
        if fitting is not None:
            items = {part: Texts.joined(parts).lengths[1:] for part, parts in whole.items()}
            most = fitting(texts, items, 0 if behind is None else behind.lengths[1:])
        cut, shown = cut_titles(self.tokenizer, titles, whole.pop(Part.TITLE), most)
        bank, tables = PieceBank(), {part: tables[0].joined(tables) for part, tables in whole.items()}
        firsts, answers = self._add(bank, texts, cut, behind, tables, shown)
        numbers = {}
        for name, joined in self._joined(texts, shown, cut, fields).items():
            start = bank.add(list(joined.values()))
            numbers[name] = ItemMap.of(dict(zip(joined, range(start, start + len(joined)), strict=True)))
        bank.freeze()
        changed = {item: kept for item, (kept, title) in enumerate(zip(shown, titles, strict=True)) if kept != title}
        return ItemPieces(bank, firsts, answers, numbers, most, ShownTexts(titles, changed), fields)

    def with_texts(self, pieces: ItemPieces, titles: Mapping[int, str], fields: Mapping[int, str]) -> ItemPieces:
        """The texts of some items anew: of items that are renamed, and of those that come behind the last one.

        Titles are cut as those of the other items, by the number of tokens that fitted them; of long ones that begin alike, those
        that come together are told apart, and not from the items that were there before.

        Args:
            pieces: so far; their bank gets what is new.
            titles: by item; new items are numbered on from N, without a gap.
            fields: the texts behind these titles, by item; of an item without one, none.

        Raises:
            ValueError: a number is left out.
            UserError: as of ``pieces``.
        """
        items, n_items = sorted(titles), len(pieces.titles)
        new = [item for item in items if item >= n_items]
        if new != list(range(n_items, n_items + len(new))) or not items or items[0] < 1:
            raise ValueError(f"titles of items {items[:5]}, expected items from 1, and new ones numbered on from {n_items}")
        tokenizer = self.tokenizer
        texts = {Part.TITLE: [titles[item] for item in items]}
        if Part.INDEX in pieces.first:
            texts[Part.INDEX] = [str(item) for item in items]
        behind = [fields.get(item, "") for item in items] if len(pieces.fields) else []
        whole = tokenise_items(tokenizer, texts[Part.TITLE], pieces.max_title_tokens)
        others = {part: Texts.joined(tokenise_items(tokenizer, of)) for part, of in texts.items() if part is not Part.TITLE}
        cut, shown = cut_titles(tokenizer, texts[Part.TITLE], whole, pieces.max_title_tokens)
        bank, after = pieces.bank, Texts.joined(tokenise_items(tokenizer, behind)) if behind else None
        firsts, answers = (
            {part: ItemMap.of({item: first + row for row, item in enumerate(items)}) for part, first in of.items()}
            for of in self._add(bank, texts, cut, after, others, shown)
        )
        # Of a renamed item no longer what its old title made with a mark.
        followed = {name: dict.fromkeys(items, NOTHING) for name in pieces.followed}
        for name, joined in self._joined(texts, shown, cut, behind).items():
            start = bank.add(list(joined.values()))
            of_items = {items[row]: start + number for number, row in enumerate(joined)}
            followed[name] = {**followed.get(name, {}), **of_items}
        bank.freeze()
        maps = {name: ItemMap.of(of_items) for name, of_items in followed.items()}
        return pieces.with_items(dict(zip(items, shown, strict=True)), fields, firsts, answers, maps)

    def _add(
        self,
        bank: PieceBank,
        texts: Mapping[Part, Sequence[str]],
        cut: Texts,
        behind: Texts | None,
        others: Mapping[Part, Texts],
        shown: Sequence[str],
    ) -> tuple[dict[Part, int], dict[Part, int]]:
        """Add the texts of items to a bank: by part the first piece of prompts, and of answers."""
        whole = {Part.TITLE: cut if behind is None else cut.followed_by(behind), **others}
        firsts = {part: bank.add_texts(of_part) for part, of_part in whole.items()}
        if self.chat is not None and not self.chat.has_space:
            spelt = {**texts, Part.TITLE: shown}
            return firsts, {part: bank.add(tokenise_inside(self.tokenizer, of_part)) for part, of_part in spelt.items()}
        return firsts, firsts if behind is None else {**firsts, Part.TITLE: bank.add_texts(cut)}

    def _joined(
        self, texts: Mapping[Part, Sequence[str]], shown: Sequence[str], cut: Texts, fields: Sequence[str]
    ) -> dict[tuple[Part, str], dict[int, list[int]]]:
        """Tokens of items together with the mark behind them, where the tokenizer reads both as one.

        Args:
            texts: n of each part, titles being whole.
            shown: n titles as they are shown.
            cut: n, the tokens of these.
            fields: n texts behind the titles; none where there are no fields.

        Returns:
            by part and mark: the tokens, by the item's place.
        """
        # What is cut ends otherwise.
        titles = [kept if kept == title else "" for kept, title in zip(shown, texts[Part.TITLE], strict=True)]
        before: dict[int, np.ndarray] = {}  # the title's tokens, of items that end with their fields
        if len(fields):
            titles = [told or title for told, title in zip(fields, titles, strict=True)]
            split = np.split(cut.tokens, cut.lengths.cumsum()[:-1])
            before = {item: tokens for item, tokens in enumerate(split) if fields[item]}
        joined: dict[tuple[Part, str], dict[int, list[int]]] = {}
        for mark in self.marks:
            for part, of_part in {**texts, Part.TITLE: titles}.items():
                if followed := tokenise_followed(self.tokenizer, of_part, mark):
                    if part is Part.TITLE:
                        followed = {item: [*before.get(item, ()), *tokens] for item, tokens in followed.items()}
                    joined[part, mark] = followed
        return joined
