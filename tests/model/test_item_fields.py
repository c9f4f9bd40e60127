"""Fields of items in prompts: every model that reads titles shows them, no answer holds them, and weights belong to them."""

import json
import re
from pathlib import Path

import pytest
import torch
from synthetic_data import add_item_fields
from toy_run import STOCK_KEYS

from recbole_llara.prompt.fields import bracketed
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

FIELDS = {"item_fields": ["release_year", "class", "popularity"]}
UNTRAINED = {"epochs": 0, "llm_tuning": "frozen"}


@pytest.fixture
def toy(keys, tmp_path):
    """The keys of a run over items of which more is known than a title."""
    add_item_fields(tmp_path)
    return keys


def result_of(paths):
    return json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("LLaRA", {"strategy": "curriculum"}),
        ("LLaRA", {"representation": "textual", "answer_loss": "listwise"}),
        ("RSLLM", {"stage_1_representation": "text_id", "strategy": "two_stage", "epochs": 2, "stage_1_epochs": 1}),
        ("TALLRec", {}),
        ("ZeroShotLLM", UNTRAINED),
    ],
)
def test_prompts_show_the_fields_of_every_item_and_answers_none(toy, make_trainer, model, changes):
    trainer, data = make_trainer({**toy, **changes, **FIELDS}, model)
    plain, _ = make_trainer({**toy, **changes}, model)
    told = bracketed(data.catalogue.fields)
    items = torch.arange(1, len(told))
    row = next(iter(data.test_data))[0]
    for encoder, is_told in ((trainer.model.encoder, True), (plain.model.encoder, False)):
        history, candidates = row["item_id_list"], row["candidate_id_list"]
        for representation in encoder.representations:
            prompts = encoder.encode(history, candidates, None, representation, torch.zeros(len(history), dtype=torch.int64))
            texts = encoder.tokenizer.batch_decode(prompts.input_ids.masked_fill(prompts.attention_mask == 0, encoder.pad_id))
            for text, shown in zip(texts, torch.cat([history, candidates], 1).tolist(), strict=True):
                for item in filter(None, shown):
                    assert (f"{data.catalogue.titles[item]} {told[item]}" in text) == is_told or not told[item]
            answers = plain.model.encoder.answer_ids(items, representation)
            assert torch.equal(encoder.answer_ids(items, representation), answers)
    pattern = re.compile(r"\((199\d)?(, )?(Drama|Action Sci-Fi|Children's)?(, )?((well )?known|(very )?popular)?\)|")
    assert all(map(pattern.fullmatch, told)) and len(set(told)) > 20
    assert trainer.model.result_fields()["item_fields"] == FIELDS["item_fields"]
    assert plain.model.result_fields()["item_fields"] == []


def test_rsllm_s_item_tower_reads_what_prompts_show(toy, make_trainer):
    trainer, data = make_trainer({**toy, **FIELDS}, "RSLLM")
    encoder, item = trainer.model.encoder, torch.tensor([5])
    (representation,) = {each for each in encoder.representations if each.name == "hybrid_with_dsr"}
    prompts = encoder.encode_items(item, representation)
    (text,) = encoder.tokenizer.batch_decode(prompts.input_ids)
    assert f"{data.catalogue.titles[5]} {bracketed(data.catalogue.fields)[5]}" in text


@pytest.mark.parametrize("decoding", ["score", "constrained", "generate"])
def test_a_run_answers_with_titles(toy, decoding):
    paths = run_recbole_llara("LLaRA", "toy", config_dict={**toy, **FIELDS, "decoding": decoding})
    cases = [json.loads(line) for line in Path(paths["cases_file"]).read_text(encoding="utf-8").splitlines()]
    for case in cases:
        if case["answer"] is not None:
            assert case["answer_text"].strip() == case["answer_title"] and case["answer_title"] in case["candidate_titles"]
    assert result_of(paths)["metrics"]["test"]["validratio"] == 1.0 or decoding == "generate"
    again = run_recbole_llara(
        "LLaRA", "toy", config_dict={**toy, **FIELDS, "decoding": decoding, "checkpoint": paths["checkpoint"]}
    )
    assert result_of(again)["metrics"] == result_of(paths)["metrics"]


def test_a_checkpoint_belongs_to_its_fields(toy, tmp_path):
    paths = run_recbole_llara("TALLRec", "toy", config_dict={**toy, **FIELDS})
    again = {**toy, "checkpoint": paths["checkpoint"]}
    for other in ({}, {"item_fields": ["class"]}, {**FIELDS, "max_field_tokens": 1}):
        with pytest.raises(UserError, match="does not fit this TALLRec: item_fields: '[0-9a-f]+' there"):
            run_recbole_llara("TALLRec", "toy", config_dict={**again, **other})
    path = tmp_path / "toy" / "toy.item"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("1994.0", "1894.0"), encoding="utf-8")
    with pytest.raises(UserError, match="item_fields: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        run_recbole_llara("TALLRec", "toy", config_dict={**again, **FIELDS})
    path.write_text(before.replace("1994.0", "1994"), encoding="utf-8")  # the same text in prompts
    run_recbole_llara("TALLRec", "toy", config_dict={**again, **FIELDS})


def test_a_checkpoint_without_fields_tells_none(toy):
    paths = run_recbole_llara("TALLRec", "toy", config_dict=toy)
    meta = json.loads((Path(paths["checkpoint"]) / "meta.json").read_text(encoding="utf-8"))
    assert meta["belongs_to"]["item_fields"] is None
    with pytest.raises(UserError, match="item_fields: None there, '[0-9a-f]+' here"):
        run_recbole_llara("TALLRec", "toy", config_dict={**toy, **FIELDS, "checkpoint": paths["checkpoint"]})


def test_a_stopped_run_does_not_go_on_with_other_fields(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llara.quick_start.build_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt) as stop:
            run_recbole_llara("TALLRec", "toy", config_dict={**toy, **FIELDS})
    (run,) = re.findall(r"--resume=(\S+)", str(stop.value))
    path = tmp_path / "toy" / "toy.item"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("Drama", "Tragedy"), encoding="utf-8")
    with pytest.raises(UserError, match="item_fields: '[0-9a-f]+' there, '[0-9a-f]+' here"):
        run_recbole_llara(argv=[f"--resume={run}"])
    path.write_text(before, encoding="utf-8")
    assert run_recbole_llara(argv=[f"--resume={run}"])["run_dir"] == run


@pytest.mark.parametrize(
    ("model", "keys_of_it", "message"),
    [
        ("LLaRA", {"item_fields": ["genre"]}, "title, release_year, class, expected 'genre': see item_fields"),
        ("LLaRA", {"item_fields": ["class", "class"]}, "item_fields: found .*expected each field once"),
        ("LLaRA", {"item_fields": "class"}, "item_fields: found 'class' .*expected a list of str or None"),
        ("LLaRA", {**FIELDS, "max_field_tokens": 0}, r"max_field_tokens: found 0, expected a number in \[1, inf\)"),
        ("LLaRA", {**FIELDS, "representation": "behavioural"}, "item_fields: found .* with representation behavioural, which shows no"),
        ("ZeroShotLLM", {**FIELDS, **UNTRAINED, "representation": "numerical"}, "item_fields: found .*representation numerical"),
        ("ChatLLM", {**FIELDS, "representation": "numerical"}, "item_fields: found .*representation numerical"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_before_anything_is_done(toy, monkeypatch, model, keys_of_it, message):
    monkeypatch.setattr("recbole_llara.model.build.load_llm", lambda *_, **__: pytest.fail("an LLM was loaded"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    given = toy if model != "ChatLLM" else {key: toy[key] for key in STOCK_KEYS}
    with pytest.raises(UserError, match=message):
        run_recbole_llara(model, "toy", config_dict={**given, **keys_of_it})


def test_the_recommender_is_the_same_with_fields_and_without(toy):
    """One that was trained before is taken from the cache."""
    first, second = (result_of(run_recbole_llara("LLaRA", "toy", config_dict={**toy, **more})) for more in ({}, FIELDS))
    assert [each["recommender"]["sha256"] for each in (first, second)] == [first["recommender"]["sha256"]] * 2
    assert second["recommender"]["training_seconds"] == 0.0 and first["recommender"]["path"] == second["recommender"]["path"]
