"""The tokens of items' texts: kept and read again they are the same, and items may come and be renamed."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recbole_llara.llm.loading import read_files
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.prompt.item_pieces import ItemMap, ItemPieces
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import load_templates
from recbole_llara.prompt.tokens import NOTHING, ChatFrame

TITLES = ["", "Heat", "Toy Story (1995)", "Amélie", "M", "The Long Kiss Goodnight of the Very Long Title", "Fargo"]
NEW = ["Alien (1979)", "Big, the film"]
FIELDS = ["", "(1995)", "", "(comedy)", "", "(thriller, known)", ""]
NEW_FIELDS = ["(horror)", ""]
SHOWN = ["hybrid", "textual", "numerical", "hybrid_with_dsr"]
HISTORY = torch.tensor([[1, 2, 5], [3, 4, 0]])
CANDIDATES = torch.tensor([[3, 6, 4, 1], [1, 2, 5, 6]])


class Bare(ChatFrame):
    """A chat whose answers begin without a space."""


@pytest.fixture(scope="module", params=["tiny", "byte level"])
def tokenizer(request, make_tokenizer):
    """The embedded LLM's, and one that reads the end of a title together with the mark behind it."""
    if request.param == "tiny":
        return read_files("tiny", trust_remote_code=False)[1]
    return make_tokenizer([f" {text}, {text}." for text in (*TITLES[1:], *NEW)] * 4, 400)


def chat_of(has_space):
    return Bare("[USER] ", " [END]", has_space)


def encoder_of(tokenizer, titles, fields=(), chat=None, most=6, pieces=None):
    shown = [REPRESENTATIONS[name] for name in SHOWN]
    return PromptEncoder(tokenizer, titles, load_templates("movie", 4), most, None, shown, chat, fields, pieces)


def told(encoder, history, candidates):
    """All that prompts, answers and lengths hold."""
    found = [encoder.prompt_lengths(history, candidates)]
    for name in SHOWN:
        for template in range(len(encoder.templates)):
            index = torch.full((len(history),), template)
            prompts = encoder.encode(history, candidates, candidates[:, 0], REPRESENTATIONS[name], index)
            found += [prompts.input_ids, prompts.labels, prompts.slot_columns, prompts.slot_items]
        found += [encoder.answer_ids(candidates, REPRESENTATIONS[name])]
        found += [encoder.encode_items(candidates.flatten(), REPRESENTATIONS[name]).input_ids]
    return found


def same(one, other):
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


KINDS = {
    "plain": {},
    "fields": {"fields": FIELDS},
    "chat": {"chat": chat_of(False)},
    "both": {"fields": FIELDS, "chat": chat_of(False)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kept_pieces_make_the_same_prompts_without_the_tokenizer(kind, tokenizer, tmp_path, monkeypatch):
    made = encoder_of(tokenizer, TITLES, **KINDS[kind])
    made.pieces.save(tmp_path / "pieces.safetensors", "the key")
    kept = ItemPieces.read(tmp_path / "pieces.safetensors", "the key", TITLES)
    monkeypatch.setattr("recbole_llara.prompt.item_tokeniser.tokenise_items", None)
    again = encoder_of(tokenizer, TITLES, chat=KINDS[kind].get("chat"), pieces=kept)
    assert list(again.titles) == list(made.titles) and list(again.fields) == list(made.fields)
    assert again.max_title_tokens == made.max_title_tokens and again.highest_token == made.highest_token
    assert same(told(again, HISTORY, CANDIDATES), told(made, HISTORY, CANDIDATES))
    assert torch.equal(again.longest_prompt(3, 4)[0].input_ids, made.longest_prompt(3, 4)[0].input_ids)
    assert ItemPieces.read(tmp_path / "pieces.safetensors", "another key", TITLES) is None


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_come_later_stand_as_if_they_had_been_there(kind, tokenizer, tmp_path):
    """One at a time, one of them renamed before, out of a file that is mapped."""
    given = dict(KINDS[kind])
    whole_fields = [*FIELDS, *NEW_FIELDS] if "fields" in given else ()
    whole = encoder_of(tokenizer, [*TITLES[:3], "Amelie of Montmartre,", *TITLES[4:], *NEW], whole_fields, given.get("chat"))
    encoder_of(tokenizer, TITLES, **given).pieces.save(tmp_path / "pieces.safetensors", "key")
    kept = ItemPieces.read(tmp_path / "pieces.safetensors", "key", TITLES)
    grown = encoder_of(tokenizer, TITLES, chat=given.get("chat"), pieces=kept)
    grown.set_texts({7: "Another name."}, {7: "(another)"})
    grown.set_texts({3: "Amelie of Montmartre,", 7: NEW[0]}, {3: FIELDS[3], 7: NEW_FIELDS[0]})
    grown.set_texts({8: NEW[1]}, {8: NEW_FIELDS[1]})
    assert grown.n_items == whole.n_items == 9 and list(grown.titles) == list(whole.titles)
    assert list(grown.fields) == list(whole.fields)
    history, candidates = torch.tensor([[7, 3, 8], [1, 8, 0]]), torch.tensor([[3, 8, 7, 1], [7, 2, 5, 8]])
    assert same(told(grown, history, candidates), told(whole, history, candidates))
    assert same(told(grown, HISTORY, CANDIDATES), told(whole, HISTORY, CANDIDATES))


def test_new_items_are_numbered_on(tokenizer):
    encoder = encoder_of(tokenizer, TITLES)
    for wrong in ({8: "a gap"}, {0: "the padding item"}, {}):
        with pytest.raises(ValueError, match="numbered on from 7"):
            encoder.set_texts(wrong)


def test_a_file_that_is_not_as_it_was_written_is_refused(tokenizer, tmp_path):
    path = tmp_path / "pieces.safetensors"
    encoder_of(tokenizer, TITLES, FIELDS).pieces.save(path, "key")
    whole = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    changes = {
        "tokens": whole["tokens"] - 10_000,
        "offsets": whole["offsets"].flip(0),
        "shown/bytes": whole["shown/bytes"].long(),
    }
    for name, tensor in changes.items():
        save_file({**whole, name: tensor.contiguous()}, path, metadata=header)
        with pytest.raises((ValueError, TypeError)):
            ItemPieces.read(path, "key", TITLES)
    save_file(whole, path, metadata=header)
    with pytest.raises(ValueError, match="not there"):
        ItemPieces.read(path, "key", TITLES * 100)


def test_a_map_tells_the_piece_of_an_item_or_nothing():
    pieces = ItemMap.of({5: 50, 2: 20})
    assert pieces[torch.tensor([[2, 3], [9, 5]])].tolist() == [[20, NOTHING], [NOTHING, 50]]
    assert ItemMap.of({})[torch.tensor([1])].tolist() == [NOTHING]
    changed = pieces.with_pieces(ItemMap.of({2: NOTHING, 5: 51, 7: 70}))
    assert changed.items.tolist() == [5, 7] and changed.pieces.tolist() == [51, 70]


def test_one_of_the_tokenizers_reads_titles_together_with_marks(make_tokenizer):
    """Without that these tests would not ask about pieces with marks."""
    tokenizer = make_tokenizer([f" {text}, {text}." for text in (*TITLES[1:], *NEW)] * 4, 400)
    assert any(len(joined.items) for joined in encoder_of(tokenizer, TITLES).pieces.followed.values())
