"""Prompts over titles that spell anything: examples, and what must hold of each. ``make test-fuzz`` runs many.

    python tests/title_fuzz.py [--examples 20000]

Everything is compared with a plain loop that puts a prompt together token by token.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from byte_level import train_byte_level
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import recbole_llara
from recbole_llara.data.titles import TITLE_RULES, clean_title, is_visible
from recbole_llara.evaluator.answer import match_titles, normalise_title
from recbole_llara.llm.answer_tree import build_trie
from recbole_llara.llm.generation import answer_texts
from recbole_llara.prompt.encoded import IGNORED_LABEL, EncodedPrompts
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.fields import bracketed
from recbole_llara.prompt.representation import ITEM_SLOT_PARTS, REPRESENTATIONS, SLOT_PARTS, Part, Representation
from recbole_llara.prompt.template import CANDIDATES, HISTORY, SEPARATOR, PromptTemplate, load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import is_text

LLAMA_2 = Path(__file__).parents[2] / "shared" / "tokenizers" / "llama-2"
L = 4
MARKS = (
    "[ItemEmb]", "[PH]", "[DSR]", "[IID1]", "[HistoryHere]", "[CansHere]", "{history}", "{candidates}", "{candidate_num}",
    "<s>", "</s>", "<unk>", "<pad>", "<|eot|>", "<|eot_id|>", "<|endoftext|>", "<0x0A>", "Answer:", ", ", ",", "1", "12",
    "\n", "\r\n", "\t", "\0", "\x1b[0m", "\x85", "\u2028", "\u3000", "\xa0", "  ", "\u2581", "\ufeff", "\u200b", "\u200f", "\u202e",
    "\u0301", "e\u0301", "é", "שלום", "مرحبا", "🎬", "👩‍👩‍👧", "™", "ﬁ", "Matrix", "Matrix, The", " (1999)", "M",
)  # fmt: skip

_WORD = st.sampled_from(MARKS) | st.text(st.characters(), max_size=12)
_SHORT = st.lists(_WORD, max_size=5).map("".join)
_LONG = st.builds(lambda text, length: (text * length)[:length], _SHORT, st.sampled_from([80, 600, 10_000]))
_RAW = st.one_of(_SHORT, _SHORT, _SHORT, _LONG)


@dataclass(frozen=True)
class Example:
    """Two rows over a catalogue.

    Args:
        titles: ``titles[0]`` the padding item's.
        history, candidates: item ids of each row.
        targets: a candidate of each row.
        templates: a template of each row.
        padding_side: left or right.
        max_title_tokens: as the key.
        held: tokens that the LLM holds, or None.
        fields: what stands behind each title in prompts, or nothing.
    """

    titles: list[str]
    history: list[list[int]]
    candidates: list[list[int]]
    targets: list[int]
    templates: list[int]
    padding_side: str
    max_title_tokens: int
    held: int | None
    fields: tuple[str, ...] = ()


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Catalogues of titles that passed the gate of ``data.titles``, many of them alike."""
    raw = draw(st.lists(_RAW, min_size=1, max_size=4))
    for kind in draw(st.lists(st.sampled_from(["same", "part", "list"]), max_size=3)):
        one, other = draw(st.sampled_from(raw)), draw(st.sampled_from(raw))
        raw.append({"same": one, "part": one[: len(one) // 2], "list": f"{one}, {other}"}[kind])
    rules = draw(st.sampled_from([(), tuple(TITLE_RULES)]))
    titles = ["", *(title for title in (clean_title(text, rules) for text in raw) if is_text(title) and is_visible(title))]
    titles += ["M", "Matrix"][: max(0, 3 - len(titles))]
    items = range(1, len(titles))
    candidate_num = draw(st.integers(2, len(items)))
    candidates = [draw(st.permutations(items))[:candidate_num] for _ in range(2)]
    cells = st.builds(clean_title, _SHORT, st.just(())).filter(is_text)
    columns = draw(st.lists(st.lists(cells, min_size=len(items), max_size=len(items)), max_size=2))
    return Example(
        titles=titles,
        history=[draw(st.lists(st.sampled_from(items), max_size=L)) for _ in range(2)],
        candidates=candidates,
        targets=[draw(st.sampled_from(row)) for row in candidates],
        templates=[draw(st.integers(0, 3)) for _ in range(2)],
        padding_side=draw(st.sampled_from(["left", "right"])),
        max_title_tokens=draw(st.sampled_from([64, 64, 12, 4, 2])),
        held=draw(st.none() | st.integers(80, 800)),
        fields=tuple(bracketed({str(number): ["", *column] for number, column in enumerate(columns)})),
    )


@cache
def templates_of(candidate_num: int) -> list[PromptTemplate]:
    """The films'."""
    return load_templates("movie", candidate_num)


class PlainLoop:
    """Prompts put together one token after another."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: PromptEncoder, titles: list[str]) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self.opening = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
        self.whole_titles = self.tokens(f" {title}" for title in titles)
        self.shown = {
            Part.TITLE: self.cut_titles(titles),
            Part.INDEX: self.tokens(f" {number}" for number in range(len(titles))),
        }

    def cut_titles(self, titles: list[str]) -> list[list[int]]:
        """What the encoder shows of each title: its beginning, or where that is another title's too, half of it and a later part."""
        most = self.encoder.max_title_tokens
        answers = self.encoder.answer_ids(torch.arange(1, len(titles)), REPRESENTATIONS["textual"]).tolist()
        shown = [self.whole_titles[0]] + [[token for token in answer if token != IGNORED_LABEL][:-1] for answer in answers]
        for title, tokens, whole in zip(titles, shown, self.whole_titles, strict=True):
            begin_alike = [
                other for other, of_other in zip(titles, self.whole_titles, strict=True) if of_other[:most] == whole[:most]
            ]
            if len(whole) <= most or len(set(begin_alike)) == 1:
                assert tokens == whole[:most], title
            else:
                head, tail = tokens[: most // 2], tokens[most // 2 :]
                assert len(tokens) == most and head == whole[: most // 2]
                assert any(whole[start : start + len(tail)] == tail for start in range(most // 2, len(whole)))
        return shown

    def tokens(self, texts: Iterable[str]) -> list[list[int]]:
        """Of texts behind a letter or, where they begin with one, a line break."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        found = []
        for text in texts:
            anchor = "x" if text[:1].isspace() else "\n"
            before, both = self.tokenizer([anchor, anchor + text], **options)["input_ids"]
            assert both[: len(before)] == before
            found.append(both[len(before) :])
        return found

    def prompt(self, example: Example, row: int, representation: Representation) -> list[int | tuple[Part, int]]:
        """A row's tokens, those of whole stretches of text; a slot is what it holds and of which item."""
        stretches: list[str | list[int] | tuple[Part, int]] = [""]

        def write(text: str) -> None:
            if isinstance(stretches[-1], str):
                stretches[-1] += text
            else:
                stretches.append(text)

        for segment in self.encoder.templates[example.templates[row]].segments:
            if segment not in (HISTORY, CANDIDATES):
                write(segment)
                continue
            items = (example.history if segment == HISTORY else example.candidates)[row]
            if not items:  # the texts around an empty list are read apart
                stretches.append([])
            for place, item in enumerate(items):
                write(SEPARATOR if place else "")
                for part in representation.parts:
                    if part in SLOT_PARTS:
                        stretches.append((part, item if part in ITEM_SLOT_PARTS else 0))
                    elif part is Part.INDEX:
                        write(f" {item}")
                    else:
                        if len(self.whole_titles[item]) <= self.encoder.max_title_tokens:
                            write(f" {example.titles[item]}")
                        else:
                            stretches.append(self.shown[part][item])
                        if example.fields and example.fields[item]:
                            write(f" {example.fields[item]}")
        found: list[int | tuple[Part, int]] = list(self.opening)
        for number, stretch in enumerate(stretches):
            if isinstance(stretch, tuple):
                found.append(stretch)
            elif isinstance(stretch, list):
                found += stretch
            elif number == 0:
                found += self.tokenizer(stretch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            else:
                found += self.tokens([stretch])[0]
        return found

    def answer(self, item: int, representation: Representation) -> list[int]:
        """An item's answer with its EOS."""
        return [*self.shown[representation.answer][item], self.tokenizer.eos_token_id]


def prompts_of(encoder: PromptEncoder, example: Example, representation: Representation) -> EncodedPrompts:
    """What the encoder makes of an example."""
    history = torch.tensor([row + [0] * (L - len(row)) for row in example.history])
    rows = (history, torch.tensor(example.candidates), torch.tensor(example.targets))
    return encoder.encode(*rows, representation, torch.tensor(example.templates), example.padding_side)


def check_prompts(loop: PlainLoop, example: Example, representation: Representation) -> None:
    """Tokens, slots and labels are those of the plain loop, whatever the titles spell."""
    prompts = prompts_of(loop.encoder, example, representation)
    special = set(loop.tokenizer.all_special_ids)
    for row in range(2):
        is_present = prompts.attention_mask[row].bool()
        found = prompts.input_ids[row][is_present].tolist()
        answer = loop.answer(example.targets[row], representation)
        expected = loop.prompt(example, row, representation) + answer
        assert len(found) == len(expected)
        assert example.held is None or len(found) <= example.held
        of_row = prompts.slot_rows == row
        first = int(is_present.int().argmax())
        slots = zip(
            *(each[of_row].tolist() for each in (prompts.slot_columns, prompts.slot_parts, prompts.slot_items)), strict=True
        )
        held = {column - first: (SLOT_PARTS[part], item) for column, part, item in slots}
        assert held == {place: token for place, token in enumerate(expected) if isinstance(token, tuple)}
        words = [(place, token) for place, token in enumerate(found) if place not in held]
        assert all(token == expected[place] for place, token in words)
        opening = len(loop.opening)
        assert not special.intersection(token for place, token in words if opening <= place < len(found) - 1)
        assert prompts.labels[row][is_present].tolist() == [IGNORED_LABEL] * (len(found) - len(answer)) + answer


def check_answers(loop: PlainLoop, example: Example, representation: Representation) -> None:
    """An answer's text names its own item or, where another candidate's is the same, none."""
    candidates = torch.tensor(example.candidates)
    answers = loop.encoder.answer_ids(candidates, representation)
    build_trie(answers)  # refuses empty answers, and one that another continues
    assert bool(((answers != IGNORED_LABEL).sum(2) > 1).all())
    for row, items in enumerate(example.candidates):
        tokens = answers[row].masked_fill(answers[row] == loop.tokenizer.eos_token_id, IGNORED_LABEL)
        texts = answer_texts(loop.tokenizer, tokens)
        named = match_titles(texts, [texts] * len(items), candidates[row : row + 1].expand(len(items), -1)).tolist()
        plain = [normalise_title(text) for text in texts]
        assert named == [item if text and plain.count(text) == 1 else 0 for item, text in zip(items, plain, strict=True)]
        if representation.answer is Part.INDEX:
            assert named == items
            continue
        for item, text in zip(items, texts, strict=True):
            shown, title = loop.encoder.titles[item], example.titles[item]
            # Llama-2 writes a space as U+2581 and cannot tell the two apart.
            assert normalise_title(text.replace("\u2581", " ")) == normalise_title(shown.replace("\u2581", " "))
            assert shown or "\u2581" in title
            if len(loop.whole_titles[item]) <= loop.encoder.max_title_tokens:
                assert shown == title


def check_example(tokenizer: PreTrainedTokenizerBase, example: Example) -> None:
    """All that must hold of an example."""
    for title in example.titles[1:]:
        assert title == title.strip() and not set(title).intersection("\n\r\t\0\x0b\x0c\x7f\x85\u2028\u2029")
    candidate_num = len(example.candidates[0])
    budget = None if example.held is None else ContextBudget(example.held, L, candidate_num)
    try:
        encoder = PromptEncoder(
            tokenizer, example.titles, templates_of(candidate_num), example.max_title_tokens, budget, fields=example.fields
        )
    except UserError as error:
        is_one_text = len(example.titles) > 2 and "have the same text" in str(error)
        assert is_one_text or (budget is not None and "but the LLM holds" in str(error))
        return
    assert 0 < encoder.max_title_tokens <= example.max_title_tokens
    loop = PlainLoop(tokenizer, encoder, example.titles)
    for representation in REPRESENTATIONS.values():
        check_prompts(loop, example, representation)
    for name in ("numerical", "hybrid"):
        check_answers(loop, example, REPRESENTATIONS[name])


def make_tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """By name: the embedded Llama's, one that knows every mark, and Llama-2's where it lies beside the checkout."""
    tiny = Path(recbole_llara.__file__).parent / "tiny_llama" / "weights"
    marks = [f" {one}{other}" for one in MARKS for other in MARKS]
    found = {"tiny": AutoTokenizer.from_pretrained(tiny), "byte_level": train_byte_level(marks, 600)}
    return found | ({"llama_2": AutoTokenizer.from_pretrained(LLAMA_2)} if LLAMA_2.is_dir() else {})


def fuzz(tokenizer: PreTrainedTokenizerBase, count: int, **options: Any) -> int:
    """Check so many examples; returns how many there were."""
    seen: list[None] = []

    def check(example: Example) -> None:
        check_example(tokenizer, example)
        seen.append(None)

    limits = {"max_examples": count, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    run: Callable[[], None] = settings(**limits, **options)(given(examples())(check))
    run()
    return len(seen)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--examples", type=int, default=20_000, help="of all tokenizers together")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # tensors of a few numbers each
    logging.disable(logging.WARNING)  # a line for every catalogue whose titles are cut
    tokenizers, total = make_tokenizers(), 0
    for name, tokenizer in tokenizers.items():
        count = fuzz(tokenizer, -(-arguments.examples // len(tokenizers)))
        total += count
        sys.stdout.write(f"{name}: {count:,} examples\n")
        sys.stdout.flush()
    sys.stdout.write(f"{total:,} examples of two rows in {len(REPRESENTATIONS)} representations: no slot lost or forged\n")


if __name__ == "__main__":
    main(sys.argv[1:])
