"""The tiny Llama's synthetic tasks: answerable, seeded, and free of any user."""

from dataclasses import replace

import pytest
import torch

from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.prompt.encoding import PromptEncoder
from recbole_llara.tiny_llama.tasks import VECTOR_DIM, Stage
from recbole_llara.tiny_llama.texts import OPENERS, TITLES_PER_THEME, make_titles, train_tokenizer

HARD = Stage(
    candidate_max=20, short_share=0.3, lookup_share=0.3, reader_share=0.3, vector_share=0.5, closeness=0.5, history_max=10
)


def test_the_catalogue_is_ml_100k_with_titles_cleaned(catalogue):
    assert len(catalogue) == 1682
    assert {"The Usual Suspects", "The Postman (Il Postino)"} & {film.title for film in catalogue}
    assert not any(film.title.endswith(", The") for film in catalogue)


def test_the_shipped_tokenizer_is_the_one_its_module_trains(catalogue, tokenizer):
    assert train_tokenizer(catalogue, 6000).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("title", ["Ünïcödé ≠ 東京", "a\nb", "🎬", "</s> [ItemEmb]"])
def test_any_title_survives_the_tokenizer(tokenizer, title):
    tokens = tokenizer(title, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == title
    assert not set(tokens) & set(tokenizer.all_special_ids)


def test_a_batch_depends_on_seed_and_step_alone(make_maker):
    first, second = make_maker(), make_maker()
    second.batch(3, HARD)
    for step in (7, 8, 9):
        one, other = first.batch(step, HARD), second.batch(step, HARD)
        assert torch.equal(one.prompts.input_ids, other.prompts.input_ids)
        assert torch.equal(one.slot_vectors.nan_to_num(), other.slot_vectors.nan_to_num())
    assert not torch.equal(make_maker(2).batch(7, HARD).prompts.input_ids, first.batch(7, HARD).prompts.input_ids)


def test_every_slot_has_its_vector_and_every_row_an_answer(make_maker):
    maker = make_maker()
    for step in range(30):
        batch = maker.batch(step, HARD)
        assert batch.slot_vectors.shape == (len(batch.prompts.slot_rows), VECTOR_DIM)
        assert (batch.prompts.labels != IGNORED_LABEL).any(1).all()


LETTERED = replace(HARD, lookup_share=0.0, reader_share=0.0, letter_share=1.0)


def test_a_selection_by_letter_is_answered_by_the_targets_mark(make_maker, tokenizer):
    maker, kinds = make_maker(), set()
    for step in range(30):
        batch = maker.batch(step, LETTERED)
        kinds.add(batch.kind)
        labels = batch.prompts.labels
        assert ((labels != IGNORED_LABEL).sum(1) == 1).all()
        answers = labels[labels != IGNORED_LABEL]
        assert torch.equal(answers, batch.letters.gather(1, batch.position[:, None])[:, 0])
        text = tokenizer.decode(batch.prompts.input_ids[0])
        for letter in map(tokenizer.decode, batch.letters[0]):
            assert f"{letter.strip()}:" in text
    assert kinds == {"selection, hybrid, by letter", "selection, textual, by letter"}
    assert maker.batch(0, replace(LETTERED, letter_share=0.0)).letters is None


def test_themes_share_a_word_and_real_titles_stay_whole(catalogue):
    titles = make_titles(catalogue, 40, torch.Generator().manual_seed(0))
    real = {film.title for film in catalogue}
    assert titles[0] == "" and len(titles) == 1 + 40 * TITLES_PER_THEME
    for theme in range(40):
        group = titles[1 + theme * TITLES_PER_THEME : 1 + (theme + 1) * TITLES_PER_THEME]
        if theme % 4 == 0:
            assert set(group) <= real
        else:
            assert set.intersection(*(set(title.split()) for title in group))


def test_openers_stand_before_titles_and_alone_name_nothing(catalogue, tokenizer, make_maker):
    plain = make_titles(catalogue, 400, torch.Generator().manual_seed(0))
    opened = make_titles(catalogue, 400, torch.Generator().manual_seed(0), 0.35)
    changed = [(one, other) for one, other in zip(plain, opened, strict=True) if one != other]
    assert all(other.removesuffix(one).strip() in OPENERS for one, other in changed)
    assert abs(len(changed) / (0.75 * 400 * TITLES_PER_THEME) - 0.35) < 0.05  # a quarter of the groups are real titles
    # Titles cut to one token keep their first word of their own.
    maker = make_maker()
    assert maker.encoder(0, 1, 1.0).titles == maker.encoder(0, 1, 0.0).titles
    assert maker.encoder(0, 12, 1.0).titles != maker.encoder(0, 12, 0.0).titles


def test_the_target_of_a_selection_stands_anywhere_among_the_candidates(make_maker, monkeypatch):
    maker = make_maker()
    stage = replace(HARD, candidate_max=4, lookup_share=0.0, reader_share=0.0)
    seen, encode = [], PromptEncoder.encode

    def record(self, history, candidates, targets, *arguments):
        if candidates.shape[1] == 4:
            seen.append((candidates == targets[:, None]).int().argmax(1))
        return encode(self, history, candidates, targets, *arguments)

    monkeypatch.setattr(PromptEncoder, "encode", record)
    for step in range(120):
        maker.batch(step, stage)
    positions = torch.cat(seen)
    share = torch.bincount(positions, minlength=4) / len(positions)
    assert len(positions) > 500
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / len(positions)) ** 0.5
