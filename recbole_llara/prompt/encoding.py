"""Tokens of a prompt: titles tokenised once, prompts assembled as arrays, slots known by position.

A prompt is a row of *pieces* (``tokens.py``): texts of the template, items, the commas between them. Its tokens are those of the
whole text: where a tokenizer reads the end of a title together with the mark behind it, as "),", both are one piece. A slot is
found by its place in the row, never by searching text, so a title that reads "[ItemEmb]" is only a title. RecBole-free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.item_pieces import ItemPieces
from recbole_llara.prompt.item_tokeniser import ItemTokeniser
from recbole_llara.prompt.letters import letter_tokens
from recbole_llara.prompt.representation import ITEM_SLOT_PARTS, REPRESENTATIONS, SLOT_PARTS, Part, Representation
from recbole_llara.prompt.template import CANDIDATES, HISTORY, LISTS, SEPARATOR, PromptTemplate, marks_of
from recbole_llara.prompt.titles import ContextBudget, PromptLengths, fitting_title_tokens
from recbole_llara.prompt.tokens import NOTHING, ChatFrame, opening_tokens, tokenise, tokenise_inside
from recbole_llara.utils.errors import UserError


class PromptEncoder:
    """Turns histories and candidates into token ids and item slots.

    Args:
        titles: N texts, ``titles[0]`` belongs to the padding item and is never used.
        templates: the domain's templates.
        max_title_tokens: longer titles are cut, in the prompt and in the answer alike.
        budget: what every prompt must fit in, for which titles are cut further if need be; None = unlimited.
        representations: how items are going to be written; only for those that show or answer with the items' numbers
            are the numbers tokenised. None = in any way.
        chat: what stands around a prompt that is a user's turn of a chat; None = nothing.
        fields: N texts that stand behind the titles in prompts, and not in answers, see ``fields.bracketed``; none = titles alone.
        pieces: what an encoder of the same arguments made of the titles and fields, so that none is tokenised again.
        letters: C, how many candidates the letters of answers tell apart; only for representations that answer with them.
        history: how many items of a history a prompt shows at most, its latest; None = all that it is given.

    Attributes:
        pieces: the tokens of the items' texts.
        titles: N texts: what an answer must say to name an item, its title or as much of it as the prompt shows.
        fields: as given.
        max_title_tokens: what titles were cut to.
        beginning: the tokens with which a prompt of the first template begins, up to its first list.
        layouts: of each template, its pieces and the marks of its two lists; what follows a list at once, up to the next space,
            is a piece of its own, empty where there is nothing.

    Raises:
        UserError: the tokenizer has no EOS token, merges a text with what stands before it or makes special tokens of titles; prompts
            do not fit; or all titles are the same.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        templates: Sequence[PromptTemplate],
        max_title_tokens: int = 64,
        budget: ContextBudget | None = None,
        representations: Iterable[Representation] | None = None,
        chat: ChatFrame | None = None,
        fields: Sequence[str] = (),
        pieces: ItemPieces | None = None,
        letters: int = 0,
        history: int | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("llm_path: its tokenizer has no EOS token, expected one to end an answer")
        self.tokenizer, self.templates, self.budget, self.n_items = tokenizer, list(templates), budget, len(titles)
        self.chat, self.history = chat, history
        self.representations = tuple(REPRESENTATIONS.values() if representations is None else representations)
        end = tokenizer.eos_token_id
        self.pad_id = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        opening = opening_tokens(tokenizer)
        separator = tokenise_inside(tokenizer, [SEPARATOR])[0]
        layouts = [template.layout() for template in self.templates]
        tokens = [self._tokenise_layout(layout, opening, chat) for layout in layouts]
        self.beginning = tokens[0][0]
        length = max(sum(len(text) for text in layout if not isinstance(text, str)) for layout in tokens)
        self.n_letters = letters * any(each.answer is Part.LETTER for each in self.representations)
        has_space = chat is None or chat.has_space
        marks, answers = letter_tokens(tokenizer, self.n_letters, has_space) if self.n_letters else ([], [])
        self._item_tokeniser = ItemTokeniser(tokenizer, tuple(marks_of(layouts)), chat)
        if pieces is None:

            def fitting(texts: Mapping[Part, Sequence[str]], items: Mapping[Part, np.ndarray], fields: np.ndarray | int) -> int:
                added = 0 if chat is None else chat.most_added(tokenizer, texts)
                lengths = PromptLengths(length + added, len(separator), items, fields, max(map(len, marks), default=0))
                return fitting_title_tokens(budget, lengths, self.representations, max_title_tokens)

            has_numbers = any(Part.INDEX in representation.texts for representation in self.representations)
            pieces = self._item_tokeniser.pieces(titles, fields, has_numbers, max_title_tokens, budget and fitting)
        self._use(pieces)
        self._refuse_one_answer(titles)
        bank = self._bank
        self.separator_piece, self.eos_piece = bank.add([separator]), bank.add([[end]])
        self.first_slot, self.opening_piece = bank.add([[end]] * len(SLOT_PARTS)), bank.add([opening])
        self._first_mark, self._first_letter = bank.add(marks), bank.add(answers)
        self._letters = torch.tensor(answers, dtype=torch.int64).flatten()  # [C]
        self.layouts = [[text if isinstance(text, str) else bank.add([text]) for text in layout] for layout in tokens]
        bank.freeze()
        # A mark's piece in a layout -> the mark.
        self._mark_of = {self.separator_piece: SEPARATOR}
        for layout, of_layout in zip(layouts, self.layouts, strict=True):
            for (text, mark), piece in zip(pairwise(layout), of_layout[1:], strict=True):
                if text in LISTS:
                    self._mark_of[piece] = mark
        self.highest_token = bank.highest_token

    def _use(self, pieces: ItemPieces) -> None:
        self.pieces, self._bank, self.n_items = pieces, pieces.bank, len(pieces.titles)
        self.titles, self.fields, self.max_title_tokens = pieces.titles, pieces.fields, pieces.max_title_tokens

    def set_texts(self, titles: Mapping[int, str], fields: Mapping[int, str] | None = None) -> None:
        """Tokenise the texts of some items anew; arguments and errors as of ``ItemTokeniser.with_texts``."""
        self._use(self._item_tokeniser.with_texts(self.pieces, titles, fields or {}))
        self.highest_token = self._bank.highest_token

    def _refuse_one_answer(self, titles: Sequence[str]) -> None:
        """Raise where every item has the same answer: no likelihood and no text names one of them."""
        answers_with_titles = any(representation.answer is Part.TITLE for representation in self.representations)
        if answers_with_titles and self.n_items > 2 and _are_one(self.titles):
            found = "title_field" if _are_one(titles) else "max_title_tokens"
            raise UserError(
                f"{found}: all {self.n_items - 1} items have the same text {self.titles[1][:80]!r} in prompts and answers, expected "
                "titles that tell candidates apart: choose another title_field or a larger max_title_tokens"
            )

    def _tokenise_layout(self, layout: list[str], opening: list[int], chat: ChatFrame | None) -> list[list[int] | str]:
        """A template as the tokens of its texts and the two list marks."""
        inside = tokenise_inside(self.tokenizer, ["" if text in LISTS else text for text in layout])
        tokens = [text if text in LISTS else of_text for text, of_text in zip(layout, inside, strict=True)]
        if chat is None:
            tokens[0] = opening + tokenise(self.tokenizer, layout[:1])[0]
        else:
            tokens[0], tokens[-1] = chat.around(self.tokenizer, layout[0], layout[-1])
        return tokens

    def slot_piece(self, part: Part) -> int:
        """The piece number of a slot that holds ``part``."""
        return self.first_slot + SLOT_PARTS.index(part)

    @property
    def first_title(self) -> int:
        """The piece number of the padding item's title, before all others."""
        return self.pieces.first[Part.TITLE]

    def _text_pieces(self, items: torch.Tensor, part: Part, in_answer: bool = False) -> torch.Tensor:
        """Piece numbers of the items' titles or numbers, of the shape of ``items``; a ValueError for numbers not announced."""
        if part not in self.pieces.first:
            announced = ", ".join(representation.name for representation in self.representations)
            raise ValueError(
                f"a prompt or an answer with the items' {part.value}, but the encoder was made for {announced}: expected a "
                "representation with it among PromptEncoder's representations"
            )
        return self.pieces.pieces(items, part, in_answer)

    def answer_text(self, item: int, representation: Representation) -> str:
        """The text that names an item in an answer."""
        return str(item) if representation.answer is Part.INDEX else self.titles[item]

    def answer_ids(
        self, items: torch.Tensor, representation: Representation, listed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens [..., A] of the answers of items [...], each with its EOS, padded on the right with ``IGNORED_LABEL``.

        A letter is an answer without an EOS: one token tells it all.

        Args:
            listed: [B, C] the candidates as the rows' prompts list them, where letters answer; the items are [B, M] of them then.

        Raises:
            ValueError: letters, and no candidates, or items that are none.
        """
        if representation.answer is Part.LETTER:
            return self._letters[_places(items, listed)][..., None]
        pieces = self._text_pieces(items.reshape(-1), representation.answer, in_answer=True)
        pieces = torch.stack([pieces, torch.full_like(pieces, self.eos_piece)], dim=1)
        tokens, rows, columns, _, length = self._bank.gather(pieces, "right")
        answers = torch.full((pieces.shape[0], length), IGNORED_LABEL, dtype=torch.int64)
        answers[rows, columns] = tokens
        return answers.reshape(*items.shape, length)

    def answer_lengths(self, items: torch.Tensor, representation: Representation) -> torch.Tensor:
        """Tokens [...] of the answers of items [...]."""
        if representation.answer is Part.LETTER:
            return torch.ones_like(items)
        return (self.answer_ids(items, representation) != IGNORED_LABEL).sum(-1)

    def prompt_lengths(self, history: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """[B] tokens of the titles, with their fields, of each row's history [B, L] and candidates [B, C]: by these prompts differ."""
        items = torch.cat([self._shown(history), candidates], 1)
        return (self._bank.lengths(self.pieces.pieces(items, Part.TITLE)) * (items > 0)).sum(1)

    def _shown(self, history: torch.Tensor) -> torch.Tensor:
        """What prompts show of histories [B, L]: [B, min(L, H)]."""
        return history if self.history is None else latest(history, self.history)

    def longest_prompt(self, history: int, candidates: int) -> tuple[EncodedPrompts, torch.Tensor]:
        """A prompt as long as any of a run with L and C items, which need not occur together; and its candidates' answers [1, C, A]."""
        titles = self.pieces.title_lengths()
        ranked = 1 + titles.argsort(descending=True, stable=True)[None]  # [1, N - 1]
        rows, shown = ranked[:, :1].expand(1, history), ranked[:, :candidates]
        prompts = [
            (self.encode(rows, shown, None, representation, torch.tensor([number])), representation)
            for representation in self.representations
            for number in range(len(self.templates))
        ]
        longest, representation = max(prompts, key=lambda entry: entry[0].input_ids.shape[1])
        return longest, self.answer_ids(shown, representation, shown)

    def _pieces_of_part(self, items: torch.Tensor, part: Part) -> torch.Tensor:
        """Piece numbers of a part of the items [B, M] of lists; a UserError for more candidates than there are letters."""
        if part in SLOT_PARTS:
            return torch.full_like(items, self.slot_piece(part))
        if part is not Part.LETTER:
            return self._text_pieces(items, part)
        if items.shape[1] > self.n_letters:
            raise UserError(
                f"answer_form: found letter and {items.shape[1]} candidates, expected at most {self.n_letters}, as many as the run's prompts "
                "have (candidate_num): ask for fewer, or train with answer_form title"
            )
        return self._first_mark + torch.arange(items.shape[1]).expand_as(items)

    def _item_list(self, items: torch.Tensor, parts: Sequence[Part], mark: int, closing: Part | None = None) -> torch.Tensor:
        """A list of items [B, M], 0-padded on the right, as [3, B, M * (P + 1)] for P parts; see ``_pieces``.

        Behind each item stands a comma, behind the row's last one the piece ``mark``: where the tokenizer reads it together with
        the item's text, both are one piece. A slot of the part ``closing`` may stand behind the last item, in M more pieces.
        """
        present, nothing = items > 0, torch.zeros_like(items)
        listed = []
        for part in parts:
            of_items = self._pieces_of_part(items, part)
            slot_items = items if part in ITEM_SLOT_PARTS else nothing
            listed.append(torch.stack([torch.where(present, of_items, NOTHING), slot_items, present.long()]))
        is_last = present & ~nn.functional.pad(present, (0, 1))[:, 1:]
        if closing is not None:
            listed.append(torch.stack([torch.where(is_last, self.slot_piece(closing), NOTHING), nothing, nothing]))
        marks = torch.where(present, torch.where(is_last, mark, self.separator_piece), NOTHING)
        marks[~present.any(1), :1] = mark  # what follows an empty list
        last_part = listed[len(parts) - 1]
        for piece, where in ((self.separator_piece, present & ~is_last), (mark, is_last & (closing is None))):
            if (of_items := self.pieces.followed.get((parts[-1], self._mark_of.get(piece, "")))) is not None:
                joined = of_items[items]
                is_joined = where & (joined != NOTHING)
                last_part[0] = torch.where(is_joined, joined, last_part[0])
                marks = marks.masked_fill(is_joined, NOTHING)
        return torch.stack([*listed, torch.stack([marks, nothing, nothing])], 3).flatten(2)

    def encode(
        self,
        history: torch.Tensor,
        candidates: torch.Tensor,
        targets: torch.Tensor | None,
        representation: Representation | Sequence[Representation],
        template_index: torch.Tensor,
        padding_side: str = "left",
    ) -> EncodedPrompts:
        """Assemble prompts.

        Args:
            history: [B, L] item ids in order of time, 0-padded on the right; of longer ones the latest ``history`` of the encoder stand in the prompt.
            candidates: [B, C] item ids.
            targets: [B] item ids whose answers follow the prompts, or None for prompts alone.
            representation: of all rows, or B of them.
            template_index: [B] which template each row uses.
            padding_side: left or right.

        Raises:
            UserError: a prompt is longer than the LLM can hold, or it has more candidates than letters.
        """
        of_rows = [representation] * len(history) if isinstance(representation, Representation) else list(representation)
        distinct = list(dict.fromkeys(of_rows))
        which = torch.tensor([distinct.index(each) for each in of_rows], dtype=torch.int64)  # [B]
        lists = {HISTORY: self._shown(history), CANDIDATES: candidates}
        most_parts = max((len(each.parts) for each in distinct), default=0)
        width = (lists[HISTORY].shape[1] + candidates.shape[1]) * (3 + most_parts) + max(map(len, self.layouts))
        prompts = _pieces(len(history), width + 2, NOTHING)
        in_answer = torch.zeros_like(prompts[0], dtype=torch.bool)
        is_head = torch.zeros_like(in_answer)
        for number, place in torch.stack([template_index, which], 1).unique(dim=0).tolist():
            rows = ((template_index == number) & (which == place)).nonzero(as_tuple=True)[0]
            written = _written(distinct[place])
            layout, parts = iter(self.layouts[number]), []
            for element in layout:
                if isinstance(element, int):
                    parts.append(_pieces(len(rows), 1, element))
                    continue
                is_head[rows, : sum(part.shape[2] for part in parts)] = (
                    True  # so, in the end, what stands before the second list
                )
                of_item, closing = written[element]
                parts.append(self._item_list(lists[element][rows], of_item, next(layout), closing))
                if element == CANDIDATES:
                    parts[-1][2] = 0
            joined = torch.cat(parts, 2)
            prompts[:, rows, : joined.shape[2]] = joined
            if targets is not None:
                prompts[0, rows, -2:] = self._answer_pieces(targets[rows], candidates[rows], distinct[place].answer)
        pieces, slot_items, is_pooled = prompts
        if targets is not None:
            in_answer[:, -2:] = True
        prompts = self.assemble(pieces, slot_items, in_answer, padding_side, is_pooled)
        lengths = torch.where(is_head & (pieces != NOTHING), self._bank.lengths(pieces.clamp(min=0)), 0)
        prompts = replace(prompts, head_lengths=lengths.sum(1), listed=candidates)
        asks = any(each.conclusions for each in distinct)
        return replace(prompts, asked=(history, candidates)) if asks else prompts

    def _answer_pieces(self, targets: torch.Tensor, candidates: torch.Tensor, part: Part) -> torch.Tensor:
        """[B, 2] the answers of targets [B] among candidates [B, C]: a text and its EOS, or a letter."""
        if part is Part.LETTER:
            letters = self._first_letter + _places(targets[:, None], candidates)[:, 0]
            return torch.stack([letters, torch.full_like(targets, NOTHING)], 1)
        return torch.stack([self._text_pieces(targets, part, in_answer=True), torch.full_like(targets, self.eos_piece)], 1)

    def encode_items(self, items: torch.Tensor, representation: Representation, padding_side: str = "left") -> EncodedPrompts:
        """Each item [B] alone, as the prompts write it: what RSLLM's item tower reads."""
        opening = _pieces(len(items), 1, self.opening_piece)
        pieces, slot_items, is_pooled = torch.cat([opening, self._item_list(items[:, None], representation.parts, NOTHING)], 2)
        return self.assemble(pieces, slot_items, torch.zeros_like(pieces), padding_side, is_pooled)

    def assemble(
        self,
        pieces: torch.Tensor,
        slot_items: torch.Tensor,
        in_answer: torch.Tensor,
        padding_side: str,
        pooled: torch.Tensor | None = None,
    ) -> EncodedPrompts:
        """Token ids of rows of pieces.

        Args:
            pieces: [B, W] piece numbers, -1 = nothing.
            slot_items: [B, W] the item of each slot piece.
            in_answer: [B, W] whether tokens of the piece are labels.
            pooled: [B, W] whether they are pooled, see ``EncodedPrompts``; None = nothing is.

        Raises:
            UserError: a prompt is longer than the LLM can hold.
        """
        tokens, rows, columns, of_pieces, length = self._bank.gather(pieces, padding_side)
        if self.budget is not None and length > self.budget.tokens:
            raise UserError(
                f"a prompt of {length} tokens, but the LLM holds {self.budget.tokens}: lower max_title_tokens, "
                "MAX_ITEM_LIST_LENGTH or candidate_num, or leave out item_fields"
            )

        def laid_out(fill: int, values: torch.Tensor | int) -> torch.Tensor:
            table = torch.full((len(pieces), length), fill, dtype=torch.int64)
            table[rows, columns] = values
            return table

        attention_mask = laid_out(0, 1)
        is_label = in_answer.flatten()[of_pieces].bool()
        slot_parts = pieces.flatten()[of_pieces] - self.first_slot
        is_slot = (slot_parts >= 0) & (slot_parts < len(SLOT_PARTS))
        return EncodedPrompts(
            input_ids=laid_out(self.pad_id, tokens),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            labels=laid_out(IGNORED_LABEL, torch.where(is_label, tokens, IGNORED_LABEL)),
            slot_rows=rows[is_slot],
            slot_columns=columns[is_slot],
            slot_parts=slot_parts[is_slot],
            slot_items=slot_items.flatten()[of_pieces[is_slot]],
            pooled=laid_out(0, 0 if pooled is None else pooled.flatten()[of_pieces].long()).bool(),
            head_lengths=torch.zeros(len(pieces), dtype=torch.int64),
        )


def latest(history: torch.Tensor, most: int) -> torch.Tensor:
    """The last items [B, min(L, most)] of histories [B, L], 0-padded on the right: of [1, 2, 3, 0] and 2 the [2, 3]."""
    if history.shape[1] <= most:
        return history
    first = ((history > 0).sum(1, keepdim=True) - most).clamp(min=0)
    return history.gather(1, first + torch.arange(most)[None])


def _written(representation: Representation) -> dict[str, tuple[tuple[Part, ...], Part | None]]:
    """By list: the parts of an item, and what closes the list."""
    return {
        HISTORY: (representation.in_history, Part.USER if representation.has_user_token else None),
        CANDIDATES: (representation.in_candidates, None),
    }


def _places(items: torch.Tensor, listed: torch.Tensor | None) -> torch.Tensor:
    """[B, M] where items stand among candidates [B, C]."""
    if listed is None:
        raise ValueError("answers by letter, which depend on the candidates: expected listed")
    same = items[:, :, None] == listed[:, None]  # [B, M, C]
    if not bool(same.any(2).all()):
        raise ValueError("an answer by letter for an item that is no candidate of its row")
    return same.int().argmax(2)


def _pieces(rows: int, width: int, piece: int) -> torch.Tensor:
    """[3, B, W] rows of one piece: its number, the item of a slot that has one, and whether its tokens are pooled."""
    return torch.tensor([piece, 0, 0])[:, None, None].repeat(1, rows, width)


def _are_one(texts: Sequence[str]) -> bool:
    """Whether all texts but the first are the same."""
    return all(texts[place] == texts[1] for place in range(2, len(texts)))
