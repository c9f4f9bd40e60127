"""Prompts as arrays against prompts as text: the same tokens, the same slots, the same loss."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from recbole_llara.llm.architecture import EmbeddedPrompts
from recbole_llara.llm.item_tokens import merge_item_embeddings
from recbole_llara.llm.likelihood import answer_pass
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.representation import ITEM_SLOT_PARTS, REPRESENTATIONS, SLOT_PARTS, Part
from recbole_llara.prompt.template import CANDIDATES, HISTORY, PromptTemplate, load_templates
from recbole_llara.prompt.titles import ContextBudget
from recbole_llara.utils.errors import UserError

SLOT = "[ItemEmb]"
TITLES = (
    "",
    "The Matrix",
    "M",
    "[ItemEmb]",
    "Cité, or: «Ж»",
    "a , b",
    "</s> <s>",
    "The Matrix",
    "Heat (1995)",
    "b",
    "line\nbreak",
)
# Behind the titles; of items 3 and 9 nothing is known.
FIELDS = (
    "", "(1999, Action Sci-Fi, popular)", "(1931)", "", "(Ж, [PH])", "(known)", "(</s>)", "(little known)", "(Crime)", "", "(b, very popular)",
)  # fmt: skip
HISTORY_ITEMS = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]])
CANDIDATE_ITEMS = torch.tensor([[7, 8, 9, 4], [5, 2, 10, 8], [3, 1, 9, 2]])
TARGETS = torch.tensor([8, 10, 3])
LLAMA_2 = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama-2"


@pytest.fixture(params=["byte_level", "llama_2"])
def tokenizer(request, make_tokenizer):
    if request.param == "byte_level":
        return make_tokenizer([*TITLES, "This user has watched in the previous. Choose one of these movies Answer:"])
    if not LLAMA_2.is_dir():
        pytest.skip("the Llama-2 tokenizer is not at ../shared/tokenizers/llama-2")
    return AutoTokenizer.from_pretrained(LLAMA_2)


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(tokenizer, TITLES, load_templates("movie", 4))


@pytest.fixture
def with_fields(tokenizer):
    return PromptEncoder(tokenizer, TITLES, load_templates("movie", 4), fields=FIELDS)


def _text(
    template: PromptTemplate, history: list[int], candidates: list[int], slot: str, fields: Sequence[str] = ("",) * len(TITLES)
) -> str:
    """The prompt as a person would write it."""
    lists = {HISTORY: history, CANDIDATES: candidates}
    shown = [f" {title} {told}" if told else f" {title}" for title, told in zip(TITLES, fields, strict=True)]
    return "".join(
        ",".join(f"{shown[item]}{slot}" for item in lists[segment] if item) if segment in lists else segment
        for segment in template.segments
    )


@pytest.mark.parametrize("fields", [(), FIELDS])
@pytest.mark.parametrize("name", ["hybrid", "text_only", "textual"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_tokens_are_those_of_the_whole_text(tokenizer, name, padding_side, fields):
    templates = torch.tensor([0, 2, 1])
    encoder = PromptEncoder(tokenizer, TITLES, load_templates("movie", 4), fields=fields)
    slot = "\0" if name != "textual" else ""
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, REPRESENTATIONS[name], templates, padding_side)
    for row in range(3):
        # "\0" marks a slot in the text: it stands in no title and is cut out of the tokens again.
        lists = HISTORY_ITEMS[row].tolist(), CANDIDATE_ITEMS[row].tolist()
        pieces = _text(encoder.templates[templates[row]], *lists, slot, fields or ("",) * len(TITLES)).split("\0")
        expected = list(tokenizer(pieces[0], split_special_tokens=True)["input_ids"])
        anchor = tokenizer("\n", add_special_tokens=False)["input_ids"]
        for piece in pieces[1:]:
            tokens = tokenizer("\n" + piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            expected += [None, *tokens[len(anchor) :]]
        found = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        assert len(found) == len(expected)
        assert all(token is None or token == seen for token, seen in zip(expected, found, strict=True))
        slots = prompts.slot_columns[prompts.slot_rows == row] - (
            0 if padding_side == "right" else prompts.input_ids.shape[1] - len(found)
        )
        assert slots.tolist() == [place for place, token in enumerate(expected) if token is None]


def test_slots_hold_the_items_in_the_order_of_the_prompt(encoder):
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, REPRESENTATIONS["hybrid"], torch.zeros(3, dtype=torch.int64))
    for row in range(3):
        wanted = [item for item in HISTORY_ITEMS[row].tolist() if item] + CANDIDATE_ITEMS[row].tolist()
        assert prompts.slot_items[prompts.slot_rows == row].tolist() == wanted


def test_placeholders_stand_where_the_behavioural_tokens_stand(encoder):
    index = torch.zeros(3, dtype=torch.int64)
    hybrid = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, REPRESENTATIONS["hybrid"], index)
    text_only = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, REPRESENTATIONS["text_only"], index)
    assert torch.equal(hybrid.input_ids, text_only.input_ids)
    assert torch.equal(hybrid.slot_columns, text_only.slot_columns)
    assert text_only.slot_items.eq(0).all()


@pytest.mark.parametrize("name", ["hybrid", "textual"])
def test_the_head_ends_where_the_second_list_begins(tokenizer, name):
    candidates_first = [PromptTemplate.parse("Of these: {candidates} choose one for who has seen {history}, now:", 3)]
    for templates in (load_templates("movie", 3), candidates_first):
        encoder = PromptEncoder(tokenizer, TITLES, templates)
        second = HISTORY if templates is candidates_first else CANDIDATES
        for number, template in enumerate(templates):
            lists = (torch.tensor([[1, 8, 2], [8, 0, 0]]), torch.tensor([[8, 9, 2], [8, 1, 2]]))[
                :: 1 if second == CANDIDATES else -1
            ]
            prompts = encoder.encode(*lists, None, REPRESENTATIONS[name], torch.tensor([number] * 2))
            for ids, mask, head in zip(prompts.input_ids, prompts.attention_mask, prompts.head_lengths.tolist(), strict=True):
                tokens = ids[mask.bool()].tolist()
                assert tokenizer.decode(tokens[:head]).endswith(template.segments[template.segments.index(second) - 1])
                assert tokenizer.decode(tokens[head:]).lstrip().startswith("Heat (1995)")


@pytest.mark.parametrize("name", list(REPRESENTATIONS))
def test_labels_are_the_answer_and_its_eos(encoder, tokenizer, name):
    representation = REPRESENTATIONS[name]
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, representation, torch.zeros(3, dtype=torch.int64))
    answers = encoder.answer_ids(TARGETS, representation)
    for row in range(3):
        labels = prompts.labels[row][prompts.labels[row] != IGNORED_LABEL].tolist()
        assert labels == answers[row][answers[row] != IGNORED_LABEL].tolist()
        assert labels[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(labels[:-1]).strip()
        assert text == (str(int(TARGETS[row])) if name == "numerical" else TITLES[TARGETS[row]])
        assert prompts.labels[row, -1] == tokenizer.eos_token_id  # nothing follows the answer


def test_a_row_is_the_same_in_any_batch(encoder):
    representation, templates = REPRESENTATIONS["hybrid"], torch.tensor([3, 0, 1])
    together = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, representation, templates)
    for row in range(3):
        one = slice(row, row + 1)
        alone = encoder.encode(HISTORY_ITEMS[one], CANDIDATE_ITEMS[one], TARGETS[one], representation, templates[one])
        kept = together.attention_mask[row].bool()
        assert torch.equal(together.input_ids[row][kept], alone.input_ids[0])
        assert torch.equal(together.position_ids[row][kept], alone.position_ids[0])
        assert torch.equal(together.slot_items[together.slot_rows == row], alone.slot_items)


def test_rows_of_several_representations_are_those_of_each(encoder):
    """Also with answers, and with one row between others of its own."""
    names = ["hybrid", "numerical", "hybrid"]
    of_rows = [REPRESENTATIONS[name] for name in names]
    of_rows[2] = replace(of_rows[2].without_history_titles(), has_score_tokens=True)
    template_index = torch.tensor([1, 0, 1])
    together = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, of_rows, template_index)
    assert together.asked is not None and torch.equal(together.asked[1], CANDIDATE_ITEMS)
    for row, representation in enumerate(of_rows):
        one = slice(row, row + 1)
        alone = encoder.encode(HISTORY_ITEMS[one], CANDIDATE_ITEMS[one], TARGETS[one], representation, template_index[one])
        is_token, own = together.attention_mask[row].bool(), together.slot_rows == row
        for name in ("input_ids", "position_ids", "labels", "pooled"):
            assert torch.equal(getattr(together, name)[row][is_token], getattr(alone, name)[0])
        assert torch.equal(together.slot_parts[own], alone.slot_parts) and torch.equal(
            together.slot_items[own], alone.slot_items
        )
        width = len(is_token) - int(is_token.sum())
        assert torch.equal(together.slot_columns[own] - width, alone.slot_columns)


def test_a_prompt_shows_the_latest_items_and_the_recommender_is_asked_about_all(tokenizer, encoder):
    """Histories of 3, 1 and no items, of which two are shown."""
    history = torch.tensor([[3, 5, 2], [4, 0, 0], [0, 0, 0]])
    shown = torch.tensor([[5, 2], [4, 0], [0, 0]])
    short = PromptEncoder(tokenizer, TITLES, encoder.templates, history=2)
    told = replace(REPRESENTATIONS["hybrid"], has_user_token=True)
    found = short.encode(history, CANDIDATE_ITEMS, TARGETS, told, torch.tensor([0, 1, 2]))
    expected = encoder.encode(shown, CANDIDATE_ITEMS, TARGETS, told, torch.tensor([0, 1, 2]))
    for name in ("input_ids", "labels", "slot_rows", "slot_columns", "slot_parts", "slot_items", "pooled", "head_lengths"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.asked[0], history)
    assert torch.equal(short.prompt_lengths(history, CANDIDATE_ITEMS), encoder.prompt_lengths(shown, CANDIDATE_ITEMS))


@pytest.mark.parametrize("name", list(REPRESENTATIONS))
def test_what_a_representation_can_lack(name, encoder):
    """Without the recommender nothing of it is left, without the history's titles none of these; else there is nothing to lack."""
    whole = replace(REPRESENTATIONS[name], has_user_token=True, has_score_tokens=True, in_recommender_order=True)
    without, untitled = whole.without_recommender(), whole.without_history_titles()
    tells_itself = {Part.TITLE, Part.INDEX, Part.ITEM_ID} & set(whole.parts)
    assert (without is None) == (not tells_itself)
    assert (untitled is None) == (Part.TITLE not in whole.parts or not {Part.ITEM_EMBEDDING, Part.ITEM_ID} & set(whole.parts))
    if without is not None:
        assert not without.reads_recommender and without.answer == whole.answer and without.without_recommender() is None
    if untitled is not None:
        assert (untitled.parts, untitled.conclusions) == (whole.parts, whole.conclusions)
        assert Part.TITLE not in untitled.in_history and untitled.without_history_titles() is None
    if name == "hybrid":
        asked = (HISTORY_ITEMS, CANDIDATE_ITEMS, None)
        found, easy = (encoder.encode(*asked, each, TARGETS * 0) for each in (without, REPRESENTATIONS["text_only"]))
        assert found.asked is None and torch.equal(found.input_ids, easy.input_ids)
        assert torch.equal(found.slot_parts, easy.slot_parts) and torch.equal(found.slot_columns, easy.slot_columns)


def test_titles_are_cut_in_prompt_and_answer_alike(tokenizer):
    encoder = PromptEncoder(tokenizer, TITLES, load_templates("movie", 4), max_title_tokens=2)
    answers = encoder.answer_ids(torch.arange(1, len(TITLES)), REPRESENTATIONS["textual"])
    assert answers.shape[1] == 3  # two tokens and EOS
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, REPRESENTATIONS["hybrid"], torch.zeros(3, dtype=torch.int64))
    assert len(prompts.slot_rows) == int((HISTORY_ITEMS > 0).sum()) + CANDIDATE_ITEMS.numel()


def test_a_prompt_longer_than_the_llm_holds_is_refused(tokenizer, encoder):
    many = CANDIDATE_ITEMS.repeat(1, 10)
    every = (HISTORY_ITEMS, many, None, REPRESENTATIONS["textual"], torch.zeros(3, dtype=torch.int64))
    budget = ContextBudget(encoder.encode(*every).input_ids.shape[1] - 1, history=1, candidates=1)  # of shorter lists than come
    encoder = PromptEncoder(tokenizer, TITLES, load_templates("movie", 4), budget=budget, representations=[every[3]])
    with pytest.raises(UserError, match="max_title_tokens"):
        encoder.encode(*every)


def test_lengths_order_prompts_as_their_tokens_do(encoder):
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, REPRESENTATIONS["hybrid"], torch.zeros(3, dtype=torch.int64))
    separators = 2 * (HISTORY_ITEMS > 0).sum(1) - 1  # and a slot each
    counted = prompts.attention_mask.sum(1) - separators
    lengths = encoder.prompt_lengths(HISTORY_ITEMS, CANDIDATE_ITEMS)
    assert torch.equal(counted - counted[0], lengths - lengths[0])


@pytest.mark.parametrize("name", ["text_id", "hybrid_with_dsr", "item_id"])
def test_slots_tell_their_parts_and_items(encoder, name):
    representation = REPRESENTATIONS[name]
    slots = [part for part in representation.parts if part in SLOT_PARTS]
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, representation, torch.zeros(3, dtype=torch.int64))
    for row in range(3):
        items = [item for item in HISTORY_ITEMS[row].tolist() if item] + CANDIDATE_ITEMS[row].tolist()
        of_row = prompts.slot_rows == row
        found = [SLOT_PARTS[number] for number in prompts.slot_parts[of_row].tolist()]
        assert found == slots * len(items)
        assert prompts.slot_items[of_row].tolist() == [
            item if part in ITEM_SLOT_PARTS else 0 for item in items for part in slots
        ]


@pytest.mark.parametrize("name", ["text_id", "textual", "item_id"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_pooled_tokens_are_all_parts_of_the_history_s_items(encoder, name, padding_side):
    """Counted through the text: titles, with a separator where both are one token, and slots; the candidates hold none."""
    representation, template = REPRESENTATIONS[name], torch.tensor([1, 0, 3])
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, representation, template, padding_side)
    for row in range(3):
        history = HISTORY_ITEMS[row][HISTORY_ITEMS[row] > 0]
        is_slot = torch.zeros_like(prompts.pooled[row])
        is_slot[prompts.slot_columns[prompts.slot_rows == row]] = True
        found = [
            None if is_slot[column] else int(prompts.input_ids[row, column]) for column in prompts.pooled[row].nonzero()[:, 0]
        ]
        texts, anchor = [], encoder.tokenizer("x", add_special_tokens=False)["input_ids"]
        for item in history.tolist():
            for part in representation.parts:
                if part is not Part.TITLE:
                    texts.append(None)
                    continue
                behind = (
                    ""
                    if part is not representation.parts[-1]
                    else ","
                    if item != history[-1]
                    else {0: "", 1: ".", 3: ","}[int(template[row])]
                )
                apart, joined = encoder.tokenizer(
                    [f"x {TITLES[item]}", f"x {TITLES[item]}{behind}"], add_special_tokens=False, split_special_tokens=True
                )["input_ids"]
                is_joined = behind and joined[: len(apart)] != apart
                texts += (joined if is_joined else apart)[len(anchor) :]
        assert found == texts


def test_an_item_alone_is_all_pooled_but_the_opening(encoder, tokenizer):
    items = torch.tensor([1, 4, 9])
    prompts = encoder.encode_items(items, REPRESENTATIONS["text_id"])
    opening = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    for row, item in enumerate(items.tolist()):
        tokens = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        title = [t for t in encoder.answer_ids(items, REPRESENTATIONS["textual"])[row].tolist() if t != IGNORED_LABEL][:-1]
        assert tokens[: len(opening)] == opening and tokens[len(opening) : -2] == title
        assert int(prompts.pooled[row].sum()) == len(title) + 2
        assert prompts.slot_items[prompts.slot_rows == row].tolist() == [0, item]
    assert prompts.labels.eq(IGNORED_LABEL).all()


def test_what_stands_behind_the_titles_is_no_part_of_answers(encoder, with_fields, tokenizer):
    """Neither as labels nor as what candidates are scored by; the prompts alone are longer."""
    items, templates = torch.arange(1, len(TITLES)), torch.tensor([0, 2, 1])
    assert with_fields.titles == encoder.titles
    for name in ("hybrid", "textual", "hybrid_with_dsr"):
        shown = REPRESENTATIONS[name]
        assert torch.equal(with_fields.answer_ids(items, shown), encoder.answer_ids(items, shown))
        plain, told = (
            each.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, shown, templates) for each in (encoder, with_fields)
        )
        assert [row[row >= 0].tolist() for row in told.labels] == [row[row >= 0].tolist() for row in plain.labels]
        assert (told.attention_mask.sum(1) > plain.attention_mask.sum(1)).all()
        assert torch.equal(told.slot_items, plain.slot_items) and torch.equal(told.slot_parts, plain.slot_parts)
    nothing = PromptEncoder(tokenizer, TITLES, load_templates("movie", 4), fields=("",) * len(TITLES))
    every = (HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, REPRESENTATIONS["hybrid"], templates)
    assert torch.equal(nothing.encode(*every).input_ids, encoder.encode(*every).input_ids)


def test_an_item_alone_stands_with_its_fields(with_fields, tokenizer):
    items = torch.tensor([1, 3, 8])
    prompts = with_fields.encode_items(items, REPRESENTATIONS["hybrid_with_dsr"])
    opening = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    for row, item in enumerate(items.tolist()):
        text = f" {TITLES[item]} {FIELDS[item]}" if FIELDS[item] else f" {TITLES[item]}"
        x, whole = tokenizer(["x", f"x{text}"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        tokens = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        assert tokens[:-2] == [*opening, *whole[len(x) :]] and int(prompts.pooled[row].sum()) == len(tokens) - len(opening)


def test_lengths_count_what_stands_behind_the_titles(with_fields):
    prompts = with_fields.encode(
        HISTORY_ITEMS, CANDIDATE_ITEMS, None, REPRESENTATIONS["hybrid"], torch.zeros(3, dtype=torch.int64)
    )
    counted = prompts.attention_mask.sum(1) - (2 * (HISTORY_ITEMS > 0).sum(1) - 1)
    lengths = with_fields.prompt_lengths(HISTORY_ITEMS, CANDIDATE_ITEMS)
    assert torch.equal(counted - counted[0], lengths - lengths[0])


def test_a_title_that_is_cut_keeps_its_fields(tokenizer):
    templates, shown = load_templates("movie", 4), REPRESENTATIONS["textual"]
    encoder = PromptEncoder(tokenizer, TITLES, templates, max_title_tokens=1, fields=FIELDS)
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, None, shown, torch.zeros(3, dtype=torch.int64))
    text = tokenizer.decode(prompts.input_ids[0][prompts.attention_mask[0].bool()])
    for item in (1, 7, 8):
        assert FIELDS[item] in text and f"{encoder.titles[item]} {FIELDS[item]}" in text
    assert encoder.answer_ids(torch.arange(1, len(TITLES)), shown).shape[1] == 2


def test_hybrid_loss_equals_a_plain_loop(make_llm, make_tokenizer, architecture):
    """Whole-text tokenisation, slots found and written item by item, full logits, one row at a time."""
    tokenizer = make_tokenizer([*TITLES, "This user has watched"])
    tokenizer.add_special_tokens({"additional_special_tokens": [SLOT]})  # the plain loop alone needs it
    llm = make_llm(architecture, vocab_size=len(tokenizer))
    embeddings = llm.get_input_embeddings()
    vectors = torch.randn(len(TITLES), embeddings.weight.shape[1], generator=torch.Generator().manual_seed(3))
    templates = load_templates("movie", 4)
    titles_without_mark = ["", *(title if title != SLOT else "Slot" for title in TITLES[1:])]

    sums, count = 0.0, 0
    for row in range(3):
        lists = {HISTORY: HISTORY_ITEMS[row].tolist(), CANDIDATES: CANDIDATE_ITEMS[row].tolist()}
        items = [item for segment in templates[row].segments if segment in lists for item in lists[segment] if item]
        text = "".join(
            ",".join(f" {titles_without_mark[item]}{SLOT}" for item in lists[segment] if item) if segment in lists else segment
            for segment in templates[row].segments
        )
        slot_id = tokenizer.convert_tokens_to_ids(SLOT)
        prompt = []
        for number, piece in enumerate(text.split(SLOT)):
            prompt += ([slot_id] if number else []) + tokenizer(piece, split_special_tokens=True)["input_ids"]
        answer = tokenizer(f" {titles_without_mark[TARGETS[row]]}", split_special_tokens=True)["input_ids"] + [
            tokenizer.eos_token_id
        ]
        inputs = embeddings(torch.tensor([prompt + answer])).clone()
        place = 0
        for column, token in enumerate(prompt):
            if token == slot_id:
                inputs[0, column] = vectors[items[place]]
                place += 1
        assert place == len(items)
        logits = llm(inputs_embeds=inputs).logits[0]
        for offset, token in enumerate(answer):
            sums += cross_entropy(logits[len(prompt) + offset - 1][None], torch.tensor([token])).item()
            count += 1

    encoder = PromptEncoder(tokenizer, titles_without_mark, templates)
    prompts = encoder.encode(HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, REPRESENTATIONS["hybrid"], torch.arange(3))
    inputs = merge_item_embeddings(
        embeddings(prompts.input_ids), prompts.slot_rows, prompts.slot_columns, vectors[prompts.slot_items]
    )
    answers = answer_pass(llm, EmbeddedPrompts(inputs, prompts.attention_mask, prompts.position_ids), prompts.labels)
    assert (answers.sums.sum() / answers.counts.sum()).item() == pytest.approx(sums / count, abs=1e-5)


def test_titles_are_tokenised_some_at_a_time_with_the_same_tokens(tokenizer, encoder, monkeypatch):
    monkeypatch.setattr("recbole_llara.prompt.titles.TOKENISED_AT_ONCE", 4)
    by_four = PromptEncoder(tokenizer, TITLES, load_templates("movie", 4))
    assert by_four.titles == encoder.titles
    for name in ("numerical", "hybrid"):
        every = (HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS, REPRESENTATIONS[name], torch.zeros(3, dtype=torch.int64))
        assert torch.equal(by_four.encode(*every).input_ids, encoder.encode(*every).input_ids)


def test_numbers_are_tokenised_only_where_they_are_shown(tokenizer, encoder):
    every = (HISTORY_ITEMS, CANDIDATE_ITEMS, TARGETS)
    index = torch.zeros(3, dtype=torch.int64)
    shown = [REPRESENTATIONS["hybrid"], REPRESENTATIONS["text_only"]]
    templates = load_templates("movie", 4)
    lean = PromptEncoder(tokenizer, TITLES, templates, representations=shown)
    assert encoder._bank.count == lean._bank.count + len(TITLES)
    for representation in shown:
        ours, theirs = (each.encode(*every, representation, index) for each in (lean, encoder))
        assert ours.asked is theirs.asked is None
        tensors = ({**vars(each), "asked": torch.zeros(0)}.values() for each in (ours, theirs))
        assert all(torch.equal(one, other) for one, other in zip(*tensors, strict=True))
    numerical = REPRESENTATIONS["numerical"]
    for ask in (lambda: lean.encode(*every, numerical, index), lambda: lean.answer_ids(TARGETS, numerical)):
        with pytest.raises(ValueError, match="made for hybrid, text_only"):
            ask()
    ready = PromptEncoder(tokenizer, TITLES, templates, representations=[*shown, numerical])
    assert torch.equal(ready.answer_ids(TARGETS, numerical), encoder.answer_ids(TARGETS, numerical))
